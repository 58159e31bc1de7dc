"""``stream-app replay``: produce a recorded log into the topics, then account for every event."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

import msgspec

from stream_app.errors import StreamAppError
from stream_app.kafka.admin import ensure_topics
from stream_app.replay.accounting import Accounts, Summary
from stream_app.replay.formats import detect, open_log
from stream_app.replay.producer import Produced, produce
from stream_app.replay.progress import Progress
from stream_app.settings import Settings

HELP = "produce a recorded log into the topics and account for every event"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "--log", type=Path, required=True, help="JSON lines (.jsonl, .jsonl.gz), or the Deskdrop directory"
    )
    parser.add_argument(
        "--format",
        choices=("auto", "jsonl", "deskdrop"),
        default="auto",
        help="format of the log (default: %(default)s)",
    )
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--speed", type=_positive, metavar="N", help="log seconds a second, by the records' own times"
    )
    pace.add_argument("--as-fast-as-possible", action="store_true", help="without a pace (default)")
    parser.add_argument("--limit", type=_count, metavar="N", help="at most this many events")
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until every event is accounted for and every active user has a slate (default: yes)",
    )
    parser.add_argument(
        "--timeout",
        type=_positive,
        default=180.0,
        metavar="S",
        help="stop waiting after this many seconds without any change (default: %(default)g)",
    )
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the summary as JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0; or 1 when the wait ended before every event had its outcome."""
    log_format = detect(args.log) if args.format == "auto" else args.format
    log = open_log(args.log, log_format, args.limit)
    ensure_topics(settings)
    progress = Progress()
    began = time.monotonic()

    def sending(so_far: Produced) -> None:
        rate = so_far.events / max(time.monotonic() - began, 1e-9)
        progress.show(
            f"{so_far.events:,} events and {so_far.contents:,} contents sent, {rate:,.0f} events/s",
            log.fraction(),
        )

    def waiting(so_far: Summary) -> None:
        progress.show(
            f"{so_far.accounted:,} of {so_far.produced:,} events accounted for ({so_far.retrying:,} wait for "
            f"their content), {so_far.users_with_slate:,} of {so_far.active_users:,} users have a slate",
            so_far.accounted / max(so_far.produced, 1),
        )

    with contextlib.closing(Accounts(settings)) as accounts:
        produced = produce(settings, log.records, speed=args.speed, progress=sending)
        took = time.monotonic() - began
        progress.finish(f"{produced.events:,} events and {produced.contents:,} contents sent in {took:.1f} s")
        if args.wait:
            summary = accounts.wait(produced.events, produced.users, args.timeout, waiting)
        else:
            summary = accounts.summary(produced.events, produced.users)
    if args.summary:
        _write(args.summary, summary)
    print(describe(summary))
    if args.wait and not summary.settled:
        open_events = summary.produced - summary.accounted + summary.retrying
        print(
            f"nothing changed for {args.timeout:g} s and {open_events:,} events have no final outcome: are "
            "the workers running, with the same settings? `stream-app doctor` tells",
            file=sys.stderr,
        )
        return 1
    return 0


def describe(summary: Summary) -> str:
    """The summary, one figure a line."""
    fresh = summary.freshness_ms
    rows = [
        (name, f"{getattr(summary, name):,}") for name in Summary.__struct_fields__ if name != "freshness_ms"
    ]
    rows += [("freshness p50", "-" if fresh.p50 is None else f"{fresh.p50:,.0f} ms")]
    rows += [("freshness p99", "-" if fresh.p99 is None else f"{fresh.p99:,.0f} ms")]
    return "\n".join(f"{name.replace('_', ' '):<18}{figure:>14}" for name, figure in rows)


def _write(path: Path, summary: Summary) -> None:
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
    except OSError as error:
        raise StreamAppError(f"--summary {path}: {error.strerror}") from None


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
