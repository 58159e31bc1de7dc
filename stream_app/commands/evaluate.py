"""``stream-app evaluate``: how good the recommendations would have been, from a recorded log alone."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec

from stream_app.errors import ConfigurationError, StreamAppError
from stream_app.evaluation import methods, movielens, plot, report
from stream_app.evaluation.compare import Row, compare
from stream_app.evaluation.learned import LEFT_OUT, LearnedRanker
from stream_app.evaluation.log import EvaluationLog, columns
from stream_app.evaluation.methods import FUSION
from stream_app.evaluation.scorer import Maker, World
from stream_app.replay.formats import detect, open_log, with_actions_of
from stream_app.replay.progress import Progress
from stream_app.settings import Settings

HELP = "measure the recommendations on a recorded log: recommend, score, then update; without Kafka"

FIXED, LIVE, LEARNED = "fixed blend", "live ranker", "learned ranker"
PRODUCTS = (FIXED, LIVE, LEARNED)
SHOWN_DIFFERENCES = 5
ALL = (*methods.BASELINES, FUSION, *PRODUCTS)
ABLATIONS = {f"{LEARNED} without {part}": changes for part, changes in LEFT_OUT.items()}
"""What each part of the learned ranker brings; run when asked for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--log",
        type=Path,
        required=True,
        help="JSON lines (.jsonl, .jsonl.gz), the Deskdrop directory, or "
        f"`{movielens.NAME}`, which is fetched the first time",
    )
    parser.add_argument(
        "--methods",
        metavar="A,B",
        help=f"only these: {', '.join(ALL)} (default: all); or {LEARNED} without one of its parts: "
        f"{', '.join(ABLATIONS)}",
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="at most this many events")
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="S",
        help="of lots, intervals and learners (default %(default)s)",
    )
    parser.add_argument(
        "--frozen",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run each method a second time without updates after 80 %% of the log (default: yes)",
    )
    parser.add_argument(
        "--through-kafka",
        type=_count,
        metavar="N",
        help="instead, send the first N events through the roles and a real Kafka as well, and compare each "
        "slate with the one straight from the log; 1 when any differs",
    )
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them as SVG")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0; or 1 when slates through Kafka are not those straight from the log."""
    # these load torch, which takes seconds: not for --help and not for other commands
    from stream_app.evaluation.product import LiveRanker
    from stream_app.evaluation.vectors import encoded
    from stream_app.ranking.device import limit_threads

    wanted = list(ALL) if args.methods is None else [name.strip() for name in args.methods.split(",")]
    known = (*ALL, *ABLATIONS)
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigurationError(f"--methods {', '.join(unknown)}: expected some of {', '.join(known)}")
    limit_threads(settings.ranking.threads)
    progress = Progress()
    settings, log = _read(args, settings, args.through_kafka or args.limit, progress)
    began = time.monotonic()
    vectors = encoded(settings, log.catalogue, partial(progress.show, "encoding the contents"))
    progress.finish(f"{len(vectors):,} contents encoded in {time.monotonic() - began:.1f} s")
    world = World.of(log, vectors)
    if args.through_kafka is not None:
        return _through_kafka(settings, log, world, args.seed, progress)
    products: Mapping[str, Maker] = {
        FIXED: partial(LiveRanker, settings=settings, log=log),
        LIVE: partial(
            LiveRanker,
            settings=settings,
            log=log,
            learner=partial(
                LearnedRanker,
                recent=settings.interests.recent,
                neighbours=settings.learning.neighbours,
                seed=args.seed,
            ),
        ),
        **{name: partial(LearnedRanker, seed=args.seed, **part) for name, part in ABLATIONS.items()},
        LEARNED: partial(LearnedRanker, seed=args.seed),
    }
    fit = [*methods.fitting(world), FUSION]

    def done(row: Row) -> None:
        mean = row.slices["any"].means["ndcg@10"]
        progress.finish(f"{row.name}: NDCG@10 {mean:.4f} {row.parameters or ''}")

    comparison = compare(
        log,
        world,
        {name: make for name, make in products.items() if name in wanted},
        [name for name in fit if name in wanted],
        args.seed,
        progress.show,
        done,
        frozen=args.frozen,
    )
    title = f"{args.log.name}: {len(log):,} events, {len(log.catalogue):,} contents"
    if args.summary:
        found = report.summary(comparison, args.log.name)
        _write(args.summary, msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    if args.plot:
        _write(args.plot, plot.svg(comparison, title).encode())
    print("\n\n".join(part for part in (report.table(comparison), report.verdict(comparison)) if part))
    return 0


def _through_kafka(
    settings: Settings, log: EvaluationLog, world: World, seed: int, progress: Progress
) -> int:
    """Do both ways agree? On a broker of our own, unless there is one to be used."""
    from stream_app.evaluation import through_kafka
    from stream_app.kafka.broker import broker_address

    replace = msgspec.structs.replace
    with broker_address() as address:
        settings = replace(settings, kafka=replace(settings.kafka, broker=address))
        began = time.monotonic()
        pairs = through_kafka.run(
            settings, log, world, seed, partial(progress.show, "events through Kafka and straight")
        )
        progress.finish(f"{len(pairs):,} events, both ways, in {time.monotonic() - began:.1f} s")
    found = through_kafka.Agreement.of(pairs)
    print(
        f"{found.events:,} events, ranked by {' and '.join(found.rankers)}: "
        f"{found.differing:,} slates differ\n"
        f"(alike but for ties: {found.ties:,}; made before the event's own statistics had come: "
        f"{found.early:,}; no slate either way: {found.silent:,})"
    )
    for pair in [pair for pair in pairs if not pair.same][:SHOWN_DIFFERENCES]:
        ways = [pair.live, *pair.direct]
        shown = " | ".join(", ".join(i.content_id for i in way.items) if way else "none" for way in ways)
        print(f"event {pair.place + 1}: {shown}")
    return 1 if found.differing else 0


def _read(
    args: argparse.Namespace, settings: Settings, limit: int | None, progress: Progress
) -> tuple[Settings, EvaluationLog]:
    """The log, and the settings with its actions."""
    began = time.monotonic()
    if str(args.log) == movielens.NAME:
        path = movielens.fetched(progress.finish)
        events = msgspec.structs.replace(settings.events, actions=movielens.ACTIONS)
        settings, log_format = msgspec.structs.replace(settings, events=events), detect(path)
    else:
        path, log_format = args.log, detect(args.log)
        settings = with_actions_of(settings, log_format)
    log = columns(list(open_log(path, log_format, limit).records), settings)
    skipped = f" ({log.skipped:,} more do not fit)" if log.skipped else ""
    progress.finish(
        f"{len(log):,} events{skipped} of {len(log.user_ids):,} users and {len(log.catalogue):,} contents "
        f"read in {time.monotonic() - began:.1f} s"
    )
    return settings, log


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StreamAppError(f"{path}: {error.strerror}") from None


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
