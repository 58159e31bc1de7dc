"""Recovery's part of the suite: our interests table and a Faust table, from Kafka alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer
from alternatives import say
from contenders import DIMENSIONS, ended
from figures import ratio, spread
from recovery import in_child
from recovery_fill import fill_users
from sizes import Sizes
from state_path import drawn_vectors

from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker
from stream_app.kafka.clients import admin_client
from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.guard import die_with_parent
from stream_app.settings import Settings, build

BOUND_S = 300.0
PARTITIONS = 4


def measure(sizes: Sizes) -> dict[str, Any]:
    """The summary's ``recovery``: records/s into an empty state directory, ours and Faust's.

    Ours is from the opening of all partitions to the last one ready, Faust's by its own clock of a recovery:
    neither start of a process nor joining of a group counts.
    """
    with (
        LocalBroker(full_jit=True) as broker,
        tempfile.TemporaryDirectory(prefix="stream-app-recovery-") as folder,
    ):
        directory = Path(folder)
        settings = build({"kafka": {"broker": broker.address, "app_id": "ours", "topic_prefix": "ours."}})
        create_topics(settings)
        say(f"writing {sizes.recovered_users:,} users for ours, {sizes.faust_records:,} for Faust …")
        asyncio.run(fill_users(settings, sizes.recovered_users))
        asyncio.run(fill_faust(settings, sizes.faust_records))
        np.save(directory / "vectors.npy", drawn_vectors(DIMENSIONS).astype(np.float32))
        in_child(settings, "read", None)  # the broker is warm now
        ours, theirs = [], []
        for number in range(sizes.repeats):
            interests = msgspec.structs.replace(
                settings.interests, data_dir=str(directory / f"state{number}")
            )
            found = in_child(msgspec.structs.replace(settings, interests=interests), "open", None)
            ours.append(sizes.recovered_users / found["seconds"])
            say(f"ours: {ours[-1]:,.0f} records/s")
            seconds = faust_seconds(settings, directory, number, sizes.faust_records)
            theirs.append(sizes.faust_records / seconds)
            say(f"Faust: {theirs[-1]:,.0f} records/s")
    mine, others = spread(ours), spread(theirs)
    return {
        "records_per_s": mine["median"],
        "vs_faust": ratio(mine["median"], others["median"]),
        "users": sizes.recovered_users,
        "faust_records": sizes.faust_records,
        "spread": {"stream-app": mine, "idiomatic Faust": others},
    }


async def fill_faust(settings: Settings, records: int) -> None:
    """The changelog that the idiomatic agent would leave: as many users, a record each."""
    prefix = settings.kafka.topic_prefix
    topic = f"{prefix}faust-interests-changelog"
    admin = admin_client(settings)
    admin.create_topics(
        {
            topic: {
                "num_partitions": PARTITIONS,
                "replication_factor": 1,
                "configs": {"cleanup.policy": "compact"},
            }
        }
    )
    admin.close()
    producer = AIOKafkaProducer(**aiokafka_options(settings, "benchmark"), max_batch_size=900_000)
    await producer.start()
    head = np.array([1.75e12, 1.0]).tobytes()
    vectors = [head + vector.astype(np.float32).tobytes() for vector in drawn_vectors(DIMENSIONS)]
    for number in range(records):
        await producer.send(
            topic, vectors[number % len(vectors)], key=b"user-%06d" % number, partition=number % PARTITIONS
        )
    await producer.flush()
    await producer.stop()


def faust_seconds(settings: Settings, directory: Path, number: int, records: int) -> float:
    """Seconds of one recovery by a Faust worker with an empty directory.

    Raises SystemExit with the end of its log when not every record is there in the end.
    """
    environment = {
        **os.environ,
        "BENCH_BROKER": settings.kafka.broker,
        "BENCH_PREFIX": settings.kafka.topic_prefix,
        "BENCH_VECTORS": str(directory / "vectors.npy"),
        "BENCH_DIRECTORY": str(directory / f"faust{number}"),
    }
    script = Path(__file__).with_name("idiomatic_faust.py")
    log = directory / "faust.log"
    with log.open("w") as file:
        worker = subprocess.Popen(  # noqa: S603  # our own command
            [sys.executable, str(script), "worker", "-l", "error", "--without-web"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            preexec_fn=die_with_parent,
        )
    bound = threading.Timer(BOUND_S, worker.kill)  # its output ends then, and so does the loop
    bound.start()
    found: list[tuple[float, int]] = []
    try:
        for line in worker.stdout or ():
            match line.split():
                case ["recovered", seconds, count]:
                    found.append((float(seconds), int(count)))
                    break
    finally:
        bound.cancel()
        ended(worker)
    if not found or found[0][1] != records:
        raise SystemExit(f"Faust recovered {found} of {records:,} records:\n" + log.read_text()[-3000:])
    return found[0][0]
