"""How many users a second the ranking engine serves, and where the time goes.

``python benchmarks/ranking.py [--ranker learned] [--device cuda] [--contents 3000 100000] [--batches 1 32]``,
or with both rankers as a part of ``benchmarks/suite.py``.

Synthetic contents and users from a fixed seed, 384 dimensions, full histories (32 interactions, 256
seen contents, of which the learned ranker reads 128; 64 neighbours of each content). Each figure is the
fastest of all runs within ``--seconds``, since what else the machine does only ever adds time; the median
stands beside it. ``--summary`` writes users/s of all runs: slowest, median and fastest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from figures import spread
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "ranking"))  # the tests' synthetic world

import ranking_world as world

from stream_app.interests import record
from stream_app.learning import neighbours_record
from stream_app.learning.activity import HALF_LIVES_H
from stream_app.learning.coengagement import CHANNELS
from stream_app.learning.features import BANDS, NAMES
from stream_app.learning.habits import AgeHabits
from stream_app.learning.model import SoftmaxRanker
from stream_app.learning.neighbours_record import Neighbours
from stream_app.observability import metrics
from stream_app.ranking.device import limit_threads
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.popularity import ContentStatistics
from stream_app.ranking.published import Published
from stream_app.ranking.ranked import User

STEPS = ("gather", "retrieve", "blend", "score", "diversify", "explain", "assemble")
NEIGHBOURS = 64


def built(args: argparse.Namespace, contents: int, users: int) -> tuple[RankingEngine, list[User]]:
    """An engine over ``contents`` contents, half of them with statistics, and users with full histories."""
    ranking = {
        "device": args.device,
        "batch_users": 256,
        "arms": [{"name": "all", "ranker": args.ranker, "share": 1.0}],
        "all_up_to": args.all_up_to,
    }
    config = world.settings(
        content={"dimensions": 384, "capacity": contents},
        interests={"stats_half_lives_h": HALF_LIVES_H},
        ranking=ranking,
    )
    index = world.filled_index(config, contents)
    counts = ContentStatistics(config, index)
    rng = np.random.default_rng(2)
    ids = list(index.rows)
    for id_ in ids[::2]:
        likes = {"like": rng.exponential(3, size=len(config.interests.stats_half_lives_h)).tolist()}
        counts.apply([(id_, world.statistics_value(config, int(rng.integers(4)), world.NOW, likes))])
    engine = RankingEngine(config, index, counts)
    if (table := engine.neighbours) is not None:
        engine.adopt(Published(1, SoftmaxRanker(NAMES, BANDS), AgeHabits()))
        for start in range(0, contents, 4000):
            near = (key for key in index.keys[rng.integers(contents, size=(4000, NEIGHBOURS))])
            table.apply(
                (id_, neighbours_record.encode(Neighbours(9.0, 3.0, np.unique(keys), counts_of(keys))))
                for id_, keys in zip(ids[start : start + 4000], near, strict=False)
            )
            engine.refresh()
    some: list[User] = []
    for u in range(users):
        seen = [ids[i] for i in rng.integers(contents, size=config.interests.seen)]
        past = [
            world.Engagement(id_, world.NOW - int(rng.integers(10 * world.DAY)), 2.0, "comment")
            for id_ in seen[: config.interests.recent]
        ]
        value = world.interest_record(config, index, past, seen=seen)
        some.append((b"user-%d" % u, record.decode(value)))
    engine.observe(some)
    return engine, some


def counts_of(keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    """[4, k] counts of common readers, for so many different keys."""
    return np.ones((len(CHANNELS), len(np.unique(keys))), np.float32)


def seconds_by_step() -> dict[str, float]:
    """Seconds counted so far, by step."""
    samples = [s for family in metrics.RANK_SECONDS.collect() for s in family.samples]
    return {s.labels["step"]: s.value for s in samples if s.name.endswith("_sum")}


def measure(engine: RankingEngine, users: list[User], seconds: float) -> tuple[list[float], dict[str, float]]:
    """Seconds of each run, and the fastest run's seconds by step. The first run warms up."""
    engine.rank_prepared(users)
    runs: list[float] = []
    steps: dict[str, float] = {}
    deadline = time.perf_counter() + seconds
    while len(runs) < 3 or time.perf_counter() < deadline:
        before, start = seconds_by_step(), time.perf_counter()
        engine.rank_prepared(users)
        runs.append(time.perf_counter() - start)
        if runs[-1] == min(runs):
            after = seconds_by_step()
            steps = {step: after[step] - before.get(step, 0.0) for step in STEPS if step in after}
    return runs, steps


def main() -> None:
    """Print one line for each number of contents and batch size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--ranker", choices=("blend", "learned"), default="blend")
    parser.add_argument("--all-up-to", type=int, default=2_000, help="as ranking.all_up_to")
    parser.add_argument("--contents", type=int, nargs="+", default=[3_000, 100_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring, each")
    parser.add_argument("--threads", type=int, default=0, help="processor threads; 0 as in ranking.threads")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    limit_threads(args.threads)
    summary = []
    for contents in args.contents:
        engine, users = built(args, contents, max(args.batches))
        start = time.perf_counter()
        engine.refresh()
        refresh = time.perf_counter() - start
        if contents == args.contents[0]:
            print(f"torch {torch.__version__}, {engine.device}, {torch.get_num_threads()} CPU threads")
            print(f"{'contents':>9} {'users':>6} {'best ms':>8} {'median':>8} {'users/s':>8}   µs a user")
        for batch in args.batches:
            runs, steps = measure(engine, users[:batch], args.seconds)
            shown = "  ".join(f"{step} {1e6 * s / batch:.0f}" for step, s in steps.items())
            print(
                f"{contents:>9} {batch:>6} {1e3 * min(runs):>8.2f} {1e3 * statistics.median(runs):>8.2f} "
                f"{batch / min(runs):>8.0f}   {shown}",
                flush=True,
            )
            rates = spread([batch / seconds for seconds in runs])
            what = {"contents": contents, "ranker": args.ranker, "users": batch, "device": str(engine.device)}
            summary.append({**what, "users_per_s": rates["median"], "spread": rates})
        print(f"{contents:>9} first refresh of mirror and priors {1e3 * refresh:.1f} ms", flush=True)
    if args.summary:
        args.summary.write_text(json.dumps(summary))


if __name__ == "__main__":
    main()
