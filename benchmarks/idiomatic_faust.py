"""The comparison: the same work as an idiomatic Faust agent does it, one event at a time.

A Table on RocksDB keyed by user, JSON values by Faust's own serializer, at-least-once. It keeps the
decayed vector and mass only: no validation, event ids, recent interactions, seen contents, content
statistics or transactions. ``state_path.py`` runs it; alone: ``python idiomatic_faust.py worker``.
"""

from __future__ import annotations

import os
import time
from typing import Any

import faust
import numpy as np

WEIGHTS = {"likes": 1.0, "comments": 2.0, "shares": 3.0}
HALF_LIFE_MS = 7 * 86_400_000.0
PREFIX = os.environ["BENCH_PREFIX"]
VECTORS = np.load(os.environ["BENCH_VECTORS"])

app = faust.App(
    PREFIX + "faust",
    broker="kafka://" + os.environ["BENCH_BROKER"],
    store="rocksdb://?driver=rocksdict",
    datadir=os.environ["BENCH_DIRECTORY"],
    topic_partitions=4,
    web_enabled=False,
    key_serializer="raw",
    value_serializer="json",
)
events = app.topic(*(PREFIX + name for name in WEIGHTS), key_type=bytes, value_serializer="json")
table = app.Table("interests", key_type=bytes, value_type=bytes, partitions=4)
done = 0


@table.on_recover  # type: ignore[untyped-decorator]  # Faust has no types
async def recovered() -> None:
    """Says how long the restoring of the table took, by Faust's own clock."""
    seconds = time.monotonic() - app.tables.recovery._recovery_started_at
    # on a line of its own: what Faust shows while it starts does not end its line
    os.write(1, f"\nrecovered {seconds} {len(table)}\n".encode())


@app.agent(events)  # type: ignore[untyped-decorator]
async def apply(stream: Any) -> None:
    """Decay the user's vector to this event's time and add the content's vector."""
    global done
    async for event in stream.events():
        value = event.value
        user, when = event.key, float(value["occurred_at"])
        weight = WEIGHTS[event.message.topic[len(PREFIX) :]]
        vector = weight * VECTORS[int(value["content_id"][1:])]
        stored = table.get(user)
        mass, t_ref = weight, when
        if stored is not None:
            head = np.frombuffer(stored, np.float64, 2)
            t_ref = max(when, head[0])
            old = 2.0 ** (-(t_ref - head[0]) / HALF_LIFE_MS)
            new = 2.0 ** (-(t_ref - when) / HALF_LIFE_MS)
            vector = np.frombuffer(stored, np.float32, offset=16) * old + vector * new
            mass = head[1] * old + weight * new
        table[user] = np.array([t_ref, mass]).tobytes() + vector.astype(np.float32).tobytes()
        done += 1
        if done % 1000 == 0:
            cpu = time.process_time()
            os.write(1, f"progress {done} {time.monotonic()} {cpu}\n".encode())  # Faust redirects print


if __name__ == "__main__":
    app.main()
