"""The state path against an idiomatic Faust agent: same events, same broker, same run.

    python benchmarks/state_path.py [--events N] [--users N] [--faust-events N] [--skip-faust]

Ours runs with everything on: validation, event ids, recent interactions, seen contents, content
statistics, one Kafka transaction a batch, RocksDB. Prints events/s, CPU µs an event and the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder
from figures import rates
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector, encode
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import broker_address
from stream_app.kafka.connection import aiokafka_options
from stream_app.settings import Settings, build

CONTENTS = 5_000
TOPICS = ("likes", "likes", "likes", "comments", "shares")
START_MS = 1_700_000_000_000
STALL_S = 120.0
FAUST_BOUND_S = 120.0


def drawn(count: int, users: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[count] users and [count] contents of the events, seeded. Event i is on ``TOPICS[i % 5]`` and half a
    second after the one before."""
    rng = np.random.default_rng(1)
    return rng.integers(0, users, count), rng.zipf(1.3, count) % CONTENTS


def drawn_vectors(dimensions: int = 384) -> NDArray[np.float16]:
    """[contents, dimensions] unit vectors, seeded."""
    vectors = np.random.default_rng(0).standard_normal((CONTENTS, dimensions)).astype(np.float32)
    unit: NDArray[np.float16] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    return unit


async def produce(settings: Settings, count: int, users: int, vectors: NDArray[np.float16]) -> dict[str, int]:
    """Write contents and events in large batches; returns events by topic."""
    producer = AIOKafkaProducer(**aiokafka_options(settings, "benchmark"), max_batch_size=900_000)
    await producer.start()
    partitions = settings.kafka.partitions
    model = model_id(settings)
    for number, vector in enumerate(vectors):
        record = ContentVector(model, f"author-{number % 500}", START_MS, START_MS, vector)
        await producer.send(settings.topic_name("content-vectors"), encode(record), key=b"c%d" % number)
    await producer.flush()
    who, what = drawn(count, users)
    keys = [b"user-%06d" % u for u in range(users)]
    home = [(murmur2(key) & 0x7FFFFFFF) % partitions for key in keys]
    builders: dict[tuple[str, int], BatchBuilder] = {}
    totals: dict[str, int] = {}
    for i, (u, c) in enumerate(zip(who.tolist(), what.tolist(), strict=True)):
        topic = TOPICS[i % len(TOPICS)]
        totals[topic] = totals.get(topic, 0) + 1
        value = msgspec.json.encode(
            {
                "event_id": f"e{i}",
                "user_id": keys[u].decode(),
                "content_id": f"c{c}",
                "occurred_at": START_MS + 500 * i,
            }
        )
        place = (settings.topic_name(topic), home[u])
        builder = builders.get(place)
        if builder is None:
            builder = builders[place] = producer.create_batch()
        if builder.append(key=keys[u], value=value, timestamp=None) is None:
            await producer.send_batch(builder, place[0], partition=place[1])
            builder = builders[place] = producer.create_batch()
            builder.append(key=keys[u], value=value, timestamp=None)
    for place, builder in builders.items():
        await producer.send_batch(builder, place[0], partition=place[1])
    await producer.flush()
    await producer.stop()
    return totals


def run_ours(settings: Settings, count: int, directory: Path, profile: str | None) -> dict[str, float]:
    """Run an interests worker over the backlog."""
    config = directory / "bench.toml"
    config.write_text(
        f'[kafka]\nbroker = "{settings.kafka.broker}"\napp_id = "{settings.kafka.app_id}"\n'
        f'topic_prefix = "{settings.kafka.topic_prefix}"\npartitions = {settings.kafka.partitions}\n'
        f'[interests]\ndata_dir = "{directory / "state"}"\n'
        f"[observability]\nport = {settings.observability.port}\n"
    )
    command = [sys.executable, "-m", "stream_app", "--config", str(config), "worker", "interests"]
    if profile:
        command[1:1] = ["-X", "perf"] if profile == "perf" else ["-m", "cProfile", "-o", profile]
    with (directory / "ours.log").open("w") as log:
        worker = subprocess.Popen(command, stderr=log)  # noqa: S603 - our own command
        try:
            samples: list[tuple[float, float, float]] = []
            changed = time.monotonic()
            while not samples or samples[-1][2] < count:
                time.sleep(0.2)
                if worker.poll() is not None or time.monotonic() - changed > STALL_S:
                    raise SystemExit("the worker stopped:\n" + (directory / "ours.log").read_text()[-3000:])
                done = applied(settings.observability.port)
                if done and (not samples or done > samples[-1][2]):
                    changed = time.monotonic()
                    samples.append((changed, cpu_seconds(worker.pid), done))
                    print(f"\r  ours: {done:,.0f} events", end="", file=sys.stderr)
            print(file=sys.stderr)
            steps = step_seconds(settings.observability.port)
        finally:
            worker.terminate()
            worker.wait(60)
    shown = ", ".join(f"{step} {1e6 * seconds / count:.2f}" for step, seconds in steps.items())
    print(f"wall µs an event by step (transactions overlap the other steps):\n  {shown}", file=sys.stderr)
    return rates(samples)


def metric_samples(port: int, metric: str, ending: str) -> list[Sample]:
    """Samples of one metric on the worker's page; none while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            text = page.read().decode()
    except OSError:
        return []
    families = (f for f in text_string_to_metric_families(text) if f.name == metric)
    return [sample for family in families for sample in family.samples if sample.name.endswith(ending)]


def applied(port: int) -> float:
    """Events accounted for so far."""
    return sum(sample.value for sample in metric_samples(port, "stream_app_events", "_total"))


def step_seconds(port: int) -> dict[str, float]:
    """Seconds spent in each step of the state path."""
    samples = metric_samples(port, "stream_app_state_seconds", "_sum")
    return {sample.labels["step"]: sample.value for sample in samples}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_faust(settings: Settings, count: int, directory: Path) -> dict[str, float]:
    """Run the idiomatic agent until it has done ``count`` events."""
    environment = {
        **os.environ,
        "BENCH_BROKER": settings.kafka.broker,
        "BENCH_PREFIX": settings.kafka.topic_prefix,
        "BENCH_VECTORS": str(directory / "vectors.npy"),
        "BENCH_DIRECTORY": str(directory / "faust"),
    }
    script = Path(__file__).with_name("idiomatic_faust.py")
    with (directory / "faust.log").open("w") as log:
        worker = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, str(script), "worker", "-l", "error", "--without-web"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        samples: list[tuple[float, float, float]] = []
        bound = threading.Timer(FAUST_BOUND_S, worker.kill)  # its output ends then, and so does the loop
        bound.start()
        try:
            for line in worker.stdout or ():
                if line.startswith("progress"):
                    _, done, when, cpu = line.split()
                    samples.append((float(when), float(cpu), float(done)))
                    print(f"\r  Faust: {int(done):,} events", end="", file=sys.stderr)
                    if float(done) >= count:
                        break
            print(file=sys.stderr)
        finally:
            bound.cancel()
            worker.terminate()
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
    if len(samples) < 2:
        raise SystemExit("Faust made no progress:\n" + (directory / "faust.log").read_text()[-3000:])
    return rates(samples)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_200_000)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--faust-events", type=int, default=40_000)
    parser.add_argument("--skip-faust", action="store_true")
    parser.add_argument("--profile", metavar="FILE", help="write a cProfile of our worker's main thread")
    parser.add_argument("--port", type=int, default=8690, help="our worker's metrics port")
    args = parser.parse_args()
    with broker_address() as address, tempfile.TemporaryDirectory(prefix="stream-app-bench-") as folder:
        directory = Path(folder)
        prefix = f"bench{os.getpid()}-"
        settings = build(
            {
                "kafka": {"broker": address, "app_id": prefix + "app", "topic_prefix": prefix},
                "observability": {"port": args.port},
            }
        )
        create_topics(settings)
        vectors = drawn_vectors()
        np.save(directory / "vectors.npy", vectors.astype(np.float32))
        print(f"producing {args.events:,} events of {args.users:,} users …", file=sys.stderr)
        asyncio.run(produce(settings, args.events, args.users, vectors))
        results = {"stream-app": run_ours(settings, args.events, directory, args.profile)}
        if not args.skip_faust:
            results["idiomatic Faust"] = run_faust(settings, args.faust_events, directory)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {args.users:,} users")
    print(f"{'':16} {'events':>12} {'events/s':>12} {'CPU µs/event':>14}")
    for name, r in results.items():
        print(f"{name:16} {r['events']:12,.0f} {r['events_per_s']:12,.0f} {r['cpu_us']:14.1f}")
    if not args.skip_faust:
        ours, theirs = results["stream-app"], results["idiomatic Faust"]
        ratio = ours["events_per_s"] / theirs["events_per_s"]
        print(f"ratio {ratio:.1f} in events/s, {theirs['cpu_us'] / ours['cpu_us']:.1f} in CPU")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
