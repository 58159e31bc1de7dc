"""The comparison: the same work as an idiomatic Quix Streams application does it, with default settings.

State in RocksDB with a changelog, JSON values by its own deserializer, at-least-once. It keeps the decayed
vector and mass only. Quix keeps changes in memory between two commits, 5 s apart by default: a user who
comes twice in that time is written once. ``suite.py`` runs it, in an environment that has Quix Streams:
``python idiomatic_quix.py BROKER PREFIX VECTORS DIRECTORY EVENTS USERS`` (USERS, comma-separated, are
printed in the end).
"""

from __future__ import annotations

import base64
import functools
import sys
import time
from typing import Any

import numpy as np
from quixstreams import Application, State, message_context

WEIGHTS = {"likes": 1.0, "comments": 2.0, "shares": 3.0}
HALF_LIFE_MS = 7 * 86_400_000.0
KEY = "interest"


class Interests:
    """Decays the user's vector to this event's time and adds the content's vector."""

    def __init__(self, prefix: str, vectors: str, events: int, users: list[str]) -> None:
        self._prefix, self._vectors, self._events = prefix, np.load(vectors), events
        self._last = dict.fromkeys(users, b"")
        self._done = 0

    def apply(self, value: dict[str, Any], state: State) -> None:
        when = float(value["occurred_at"])
        weight = WEIGHTS[message_context().topic[len(self._prefix) :]]
        vector = weight * self._vectors[int(value["content_id"][1:])]
        mass, t_ref = weight, when
        stored = state.get_bytes(KEY)
        if stored is not None:
            head = np.frombuffer(stored, np.float64, 2)
            t_ref = max(when, head[0])
            old = 2.0 ** (-(t_ref - head[0]) / HALF_LIFE_MS)
            new = 2.0 ** (-(t_ref - when) / HALF_LIFE_MS)
            vector = np.frombuffer(stored, np.float32, offset=16) * old + vector * new
            mass = head[1] * old + weight * new
        changed = np.array([t_ref, mass]).tobytes() + vector.astype(np.float32).tobytes()
        state.set_bytes(KEY, changed)
        if value["user_id"] in self._last:
            self._last[value["user_id"]] = changed
        self._done += 1
        if self._done % 1000 == 0 or self._done == self._events:
            print(f"progress {self._done} {time.monotonic()} {time.process_time()}", flush=True)
        if self._done == self._events:
            for user, last in self._last.items():
                print(f"state {user} {base64.b64encode(last).decode()}")
            print("done", flush=True)


def main(broker: str, prefix: str, vectors: str, directory: str, events: str, users: str) -> None:
    application = Application(
        broker_address=broker,
        consumer_group=prefix + "quix",
        auto_offset_reset="earliest",
        state_dir=directory,
        loglevel="WARNING",
    )
    frames = [
        application.dataframe(
            application.topic(prefix + name, key_deserializer="bytes", value_deserializer="json")
        )
        for name in WEIGHTS
    ]
    interests = Interests(prefix, vectors, int(events), users.split(","))
    all_events = functools.reduce(lambda left, right: left.concat(right), frames)
    all_events.update(interests.apply, stateful=True)
    application.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
