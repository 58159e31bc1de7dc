"""What it brings to tell the trainer what was shown: a small world that lives on its own recommendations.

``python benchmarks/impressions.py [--worlds 10] [--lists 3000]``

Users come one after the other and are shown the ten contents that the learned ranker scores highest (in
every fifth list one place is drawn by lot). They look from the top, so that a position is noticed with
``1 / (1 + position)^0.8``, and engage with at most one content, by their taste and its quality, of which
the ranker sees nothing but what follows from engagements. Half of the contents appear while it goes on.
The same worlds are lived through with and without impressions. Fatigue has no part in it.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np

from stream_app.learning.coengagement import CoEngagement
from stream_app.learning.history import UserHistory
from stream_app.learning.online import Contents, Engagement, OnlineLearning, Shown

BEGIN_MS = 1_700_000_000_000
DAY_MS = 86_400_000
CONTENTS, SUBJECTS, DIMENSIONS, USERS, PLACES = 400, 8, 16, 150, 10
NOTICED = 1 / (1 + np.arange(PLACES)) ** 0.8
TASTE, NOTHING = 2.5, 15.0
"""What a content of the user's subject gains, in nats; and the odds of engaging with nothing."""
RECENT = 64


class World:
    """Contents, users and one ranker."""

    def __init__(self, seed: int, lists: int) -> None:
        self._random = random = np.random.default_rng(seed)
        subjects = random.normal(size=(SUBJECTS, DIMENSIONS))
        self._subject = random.integers(SUBJECTS, size=CONTENTS)
        vectors = subjects[self._subject] / 4 + 0.15 * random.normal(size=(CONTENTS, DIMENSIONS))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self._quality = random.normal(size=CONTENTS)
        self._taste = random.integers(SUBJECTS, size=USERS)
        self._created = BEGIN_MS - 30 * DAY_MS + np.arange(CONTENTS) * (60 * DAY_MS // CONTENTS)
        self._step_ms = 30 * DAY_MS // lists
        columns = Contents(
            self._created,
            np.zeros(CONTENTS, np.uint64),
            vectors.astype(np.float32),
            np.ones(CONTENTS, np.bool_),
        )
        self._online = OnlineLearning(columns, CoEngagement(CONTENTS, 64), seed=seed)
        self._engaged: list[list[tuple[int, int]]] = [[] for _ in range(USERS)]

    def show(self, number: int, tell: bool) -> bool:
        """One list; whether its user engaged with anything."""
        now, user = BEGIN_MS + number * self._step_ms, int(self._random.integers(USERS))
        known = np.array(self._engaged[user][::-1], np.int64).reshape(-1, 2)
        rows, times = known[:RECENT, 0], known[:RECENT, 1]
        history = UserHistory(rows, times, np.zeros(len(rows), np.bool_), len(known))
        there = self._created <= now
        there[known[:, 0]] = False
        scores = np.where(there, self._online.consider(now, history, CONTENTS).scores, -np.inf)
        order = np.argsort(-scores)
        top, others = order[:PLACES].copy(), order[PLACES : np.count_nonzero(there)]
        if number % 5 == 0:
            top[self._random.integers(PLACES)] = self._random.choice(others)
        liked = TASTE * (self._subject[top] == self._taste[user]) + self._quality[top]
        odds = np.append(NOTICED * np.exp(liked), NOTHING)
        place = int(self._random.choice(PLACES + 1, p=odds / odds.sum()))
        if place == PLACES:
            return False
        row = int(top[place])
        if not self._online.counts.engaged_at[row]:
            self._online.counts.count(row, int(self._created[row]), 0.0)  # somebody published it
        shown = Shown(top, np.arange(PLACES, dtype=np.uint16), np.zeros(PLACES, np.float32)) if tell else None
        engagement = Engagement(row, now, 1.0, True, history, known[:, 0], shown=shown)
        self._online.learn([engagement], now, CONTENTS)
        self._engaged[user].append((row, now))
        return True


def main() -> None:
    """Print the share of lists with an engagement: of all, and of the last third."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--worlds", type=int, default=10)
    parser.add_argument("--lists", type=int, default=3_000)
    given = parser.parse_args()
    for tell in (False, True):
        shares = []
        for seed in range(given.worlds):
            world = World(seed, given.lists)
            engaged = [world.show(number, tell) for number in range(given.lists)]
            shares.append((np.mean(engaged), np.mean(engaged[2 * given.lists // 3 :])))
        for name, column in zip(("all lists", "the last third"), zip(*shares, strict=True), strict=True):
            error = statistics.stdev(column) / len(column) ** 0.5 if len(column) > 1 else 0.0
            said = "told what was shown" if tell else "not told"
            print(f"{said:>20}, {name:<14}: {statistics.mean(column):.3f} ± {error:.3f}", flush=True)


if __name__ == "__main__":
    main()
