"""What an engagement costs the trainer, one at a time and in batches.

``python benchmarks/training.py [--contents 3000 100000] [--rates 1 10 100 300 1000] [--profile 300]``

Synthetic users with full histories engage with synthetic contents, at so many engagements a second of stream
time: with one a second each is a batch of its own, with more they share batches. The records of ``interests``
are made first and then fed to the trainer as Kafka's would be; neither Kafka nor Faust runs. All rates have
the same engagements, and take turns; the fastest turn of each counts, in processor time, since what else the
machine does only ever adds to it. *Steps* is the part of the engagements that was learned from; all are
counted. *Loss* is the mean over what was timed, before each step.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from pathlib import Path

import numpy as np
from aiokafka import ConsumerRecord

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "ranking"))  # the tests' synthetic world

import ranking_world as world

from stream_app.content.index import ContentIndex
from stream_app.interests.contents import IndexedContents
from stream_app.interests.record import APPLIED, COUNTED, HEADER, INTERACTION
from stream_app.kafka.records import Record
from stream_app.learning.training import Training
from stream_app.settings import Settings

SLICE = 100
"""Records that the role learns from at a time."""
BEGINNING = 2_500
"""Engagements that are learned first, so that neighbours and models are there."""
USERS = 500


def stream(settings: Settings, index: ContentIndex, rate: int, events: int) -> list[Record]:
    """Records of users who engage with contents that are new to them, a few often, ``rate`` a second."""
    random = np.random.default_rng(3)
    ids = list(index.rows)
    recent, seen = settings.interests.recent, settings.interests.seen
    past: list[list[world.Engagement]] = [[] for _ in range(USERS)]
    records: list[Record] = []
    known: set[tuple[int, int]] = set()
    for offset in range(-USERS * seen // 4, events):
        user = int(random.integers(USERS))
        row = int(len(ids) * random.random() ** 3)
        while (user, row) in known:
            row = (row + 12) % len(ids)
        known.add((user, row))
        at = world.NOW + offset * 1000 // rate
        past[user].append(world.Engagement(ids[row], at, state=APPLIED | COUNTED))
        if offset >= 0:
            value = _record(settings, index, past[user], recent, seen)
            records.append(_arrived(b"user-%d" % user, value, offset))
    return records


def _arrived(key: bytes, value: bytes, offset: int) -> Record:
    size = len(key), len(value)
    record: Record = ConsumerRecord("interests", 0, offset, world.NOW, 0, key, value, None, *size, ())
    return record


def _record(
    settings: Settings, index: ContentIndex, past: list[world.Engagement], recent: int, seen: int
) -> bytes:
    """The user's record, its rings turned as they are once they are full."""
    once = list(dict.fromkeys(one.content_id for one in past))
    value = bytearray(world.interest_record(settings, index, past[-recent:], seen=once[-seen:]))
    header = np.frombuffer(value, HEADER, count=1)[0]
    header["total"], header["seen_total"] = len(past), len(once)
    at = HEADER.itemsize + 4 * int(header["dimensions"])
    ring = np.frombuffer(value, INTERACTION, count=int(header["interactions"]), offset=at)
    keys = np.frombuffer(value, "<u8", offset=at + ring.nbytes)
    if len(past) > recent:
        ring[:] = np.roll(ring, len(past) % recent)
    if len(once) > seen:
        keys[:] = np.roll(keys, len(once) % seen)
    return bytes(value)


class Run:
    """A trainer that is fed with one stream, at its beginning already."""

    def __init__(self, settings: Settings, index: ContentIndex, rate: int, events: int) -> None:
        self.rate = rate
        self.seconds = np.inf
        """Processor time of an engagement in the fastest turn"""
        self.losses: list[float] = []
        self._records = stream(settings, index, rate, BEGINNING + events)
        self._training = Training(settings, IndexedContents(index))
        self._training.begin({0: 0})
        for now in (1, 2):  # a published model, and one before it: the shadow has three to judge
            self._learn(BEGINNING // 2)
            self._training.publication(now)
        self._begun = self.steps

    @property
    def steps(self) -> int:
        """Engagements that the model has learned from."""
        return self._training._online.trainer.model.steps

    def share(self, events: int) -> float:
        """Part of ``events`` engagements since the beginning that the model has learned from."""
        return (self.steps - self._begun) / events

    def turn(self, events: int) -> None:
        """Learn from the next engagements."""
        start = time.process_time()
        self._learn(events)
        self.seconds = min(self.seconds, (time.process_time() - start) / events)
        self.losses.append(self._training._online.trainer.loss or 0.0)

    def _learn(self, events: int) -> None:
        records, self._records = self._records[:events], self._records[events:]
        for start in range(0, events, SLICE):
            self._training.learn(records[start : start + SLICE])


def main() -> None:
    """Print a line for each number of contents and each rate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contents", type=int, nargs="+", default=[3_000])
    parser.add_argument("--rates", type=int, nargs="+", default=[1, 10, 100, 300, 1_000], help="a second")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--events", type=int, default=600, help="engagements a turn")
    parser.add_argument("--profile", type=int, default=0, help="where the time goes at that rate, instead")
    args = parser.parse_args()
    print(
        f"{'contents':>9} {'a second':>9} {'µs each':>8} {'against the first':>18} {'steps':>6} {'loss':>6}"
    )
    for contents in args.contents:
        settings = world.settings(content={"dimensions": 384, "capacity": contents})
        index = world.filled_index(settings, contents)
        rates, events = [args.profile] if args.profile else args.rates, args.turns * args.events
        runs = [Run(settings, index, rate, events) for rate in rates]
        profile = cProfile.Profile()
        if args.profile:
            profile.enable()
        for _ in range(args.turns):
            for run in runs:
                run.turn(args.events)
        if args.profile:
            profile.disable()
            pstats.Stats(profile).sort_stats("cumulative").print_stats(40)
        for run in runs:
            ratio = runs[0].seconds / run.seconds
            print(
                f"{contents:>9} {run.rate:>9} {1e6 * run.seconds:>8.0f} {ratio:>17.1f}x "
                f"{run.share(events):>6.2f} {np.mean(run.losses):>6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
