"""How fast state comes back: users from the changelog, contents into a ranker.

    python benchmarks/recovery.py [--users 1000000] [--contents 100000] [--skip-users] [--skip-contents]

Fills a local Apache Kafka with what a long-running system leaves behind, then measures

- the changelog read alone, without keeping anything;
- ``InterestPartition.open`` of all partitions side by side, into an empty state directory and again
  into the one that this left;
- a whole interests worker from start to ready, empty and warm;
- a whole ranker from start to ready and to its first slate.

Prints the table that the documentation shows. Processor time counts every thread of the measured
process, not the broker, and is the figure to compare on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
from faust.types import TP
from recovery_fill import fill_contents, fill_users

from stream_app import settings as configuration
from stream_app.content.index import ContentIndex
from stream_app.content.model import model_id
from stream_app.demo.roles import environment
from stream_app.interests.batch import BatchPreparation
from stream_app.interests.contents import IndexedContents
from stream_app.interests.owners import written_topics
from stream_app.interests.partition import InterestPartition
from stream_app.interests.standby import store_directory
from stream_app.interests.store import PartitionStore
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker
from stream_app.kafka.changelog import ChangelogReader
from stream_app.kafka.shared import Share, SharedTransactions
from stream_app.kafka.topic_ids import Bounds, CommittedOffset
from stream_app.settings import Settings, build

POLL_S = 0.02
READY_TIMEOUT_S = 600.0


class _NoInputs:
    """Partitions are opened here and not fed."""

    async def committed(self, _tps: Iterable[TP]) -> dict[TP, CommittedOffset]:
        return {}

    async def offsets(self, _tps: Iterable[TP]) -> dict[TP, CommittedOffset]:
        return {}

    async def confirm(self, _member: object) -> None:
        raise AssertionError("there is nobody to fence")

    async def claim(self, _marks: object, _member: object) -> None:
        raise AssertionError("there are no inputs to claim")

    async def bounds(self, _tps: Iterable[TP]) -> dict[TP, Bounds]:
        return {}

    async def topic_id(self, _tp: TP) -> str:
        raise AssertionError("asked only about what was taken or written, and nothing is")

    async def stable_end(self, _tp: TP) -> int:
        raise AssertionError("asked only about what was taken or written, and nothing is")


@dataclass
class Measured:
    """One line of the table."""

    what: str
    seconds: float
    cpu_s: float
    peak_mb: float
    records: int
    mb: float = 0.0
    note: str = ""

    def line(self) -> str:
        """As a row of a Markdown table."""
        rate = f"{self.records / self.seconds:,.0f}" if self.records else ""
        cost = f"{1e6 * self.cpu_s / self.records:.1f}" if self.records else ""
        mb = f"{self.mb / self.seconds:,.0f}" if self.mb else ""
        peak = f"{self.peak_mb:,.0f}" if self.peak_mb else ""
        figures = f"{self.seconds:.2f} | {rate} | {mb} | {self.cpu_s:.1f} | {cost} | {peak}"
        return f"| {self.what} | {figures} |"


HEAD = (
    "| step | s | records/s | MB/s | processor s | processor µs a record | peak memory MB |\n"
    "|---|---|---|---|---|---|---|"
)


# -- in a process of its own: parts of an interests worker


async def read_only(settings: Settings) -> dict[str, float]:
    """Read every partition of the changelog to its end, side by side, and keep nothing."""
    count = 0

    async def drop(records: Sequence[object], _position: int) -> None:
        nonlocal count
        count += len(records)

    async def read(partition: int) -> None:
        reader = ChangelogReader(settings, settings.topic_name("interests"), partition)
        await reader.start(0)
        await reader.read_to_end(drop)
        await reader.stop()

    begun = time.monotonic()
    await asyncio.gather(*(read(p) for p in range(settings.kafka.partitions)))
    return {"seconds": time.monotonic() - begun, "records": count}


async def open_partitions(settings: Settings) -> dict[str, float]:
    """Open every partition, side by side, as an assignment does."""
    spent = {"write_cpu_s": 0.0, "write_s": 0.0, "records": 0.0}
    lock, write = threading.Lock(), PartitionStore.write

    def timed(store: PartitionStore, changed: Sequence[object], *rest: object) -> None:
        wall, cpu = time.monotonic(), time.thread_time()
        write(store, changed, *rest)  # type: ignore[arg-type]  # handed through
        with lock:
            spent["write_s"] += time.monotonic() - wall
            spent["write_cpu_s"] += time.thread_time() - cpu
            spent["records"] += len(changed)

    PartitionStore.write = timed  # type: ignore[method-assign, assignment]  # only this process
    model = model_id(settings)
    preparation = BatchPreparation(settings, IndexedContents(ContentIndex(settings, model)))

    def broken(error: BaseException) -> None:
        raise error

    transactions = SharedTransactions(
        settings, settings.group("interests"), "interests", written_topics(settings), _NoInputs
    )

    async def open_one(number: int) -> InterestPartition:
        partition = InterestPartition(
            settings,
            number,
            Share(transactions, ()),
            preparation,
            model=model,
            on_lost=lambda: None,
            on_broken=broken,
        )
        buffer = settings.interests.write_buffer_bytes
        store = await asyncio.to_thread(PartitionStore, store_directory(settings, number), buffer)
        await partition.open(store, [], _NoInputs())
        return partition

    begun, main_cpu = time.monotonic(), time.thread_time()
    await transactions.assigned(None)
    opened = await asyncio.gather(*(open_one(p) for p in range(settings.kafka.partitions)))
    spent["seconds"], spent["main_cpu_s"] = time.monotonic() - begun, time.thread_time() - main_cpu
    spent["cpu_s"], spent["peak_mb"] = used()
    begun = time.monotonic()
    for partition in opened:
        await partition.close()
    await transactions.close()
    return spent | {"close_s": time.monotonic() - begun}


def used() -> tuple[float, float]:
    """Processor seconds of this process so far, and its largest memory in MB."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def child(what: str, profile: str | None) -> None:
    """Measure one part in this process and print the figures as JSON."""
    settings = configuration.load()
    parts = {"read": read_only, "open": open_partitions}
    before, _ = used()
    profiler = cProfile.Profile() if profile else None
    if profiler:
        profiler.enable()
    figures = asyncio.run(parts[what](settings))
    if profiler:
        profiler.disable()
        profiler.dump_stats(f"{profile}.{what}")
    cpu, peak = used()
    figures = {"cpu_s": cpu, "peak_mb": peak} | figures
    figures["cpu_s"] -= before
    print(json.dumps(figures))


# -- around it


def in_child(settings: Settings, what: str, profile: str | None) -> dict[str, float]:
    """Run :func:`child`."""
    command = [sys.executable, __file__, "--child", what, *(["--profile", profile] if profile else [])]
    done = subprocess.run(  # noqa: S603  # our own command
        command, env=os.environ | environment(settings), stdout=subprocess.PIPE, text=True, check=True
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


@dataclass
class Started:
    """A worker from its start to where it was let run to."""

    seconds: float
    cpu_s: float
    peak_mb: float
    log: str
    begun: float
    """Wall clock, s since 1970."""
    used: list[tuple[float, float]]
    """(wall clock, processor s so far), every few hundredths of a second."""

    def logged(self, text: str) -> float:
        """Wall clock of the first line of the log with this text."""
        line = next(line for line in self.log.splitlines() if text in line)
        return datetime.fromisoformat(line.split(" ", 1)[0]).timestamp()

    def step(self, what: str, start: float, end: float, records: int = 0) -> Measured:
        """What happened between two moments of the wall clock."""
        times, cpu = zip(*self.used, strict=True)
        before, after = np.interp([start, end], times, cpu)
        return Measured(f"- {what}", end - start, float(after - before), 0.0, records)


def start_worker(settings: Settings, role: str, log: Path, until: Callable[[Settings], bool]) -> Started:
    """Start a role, wait until it is ready and ``until`` holds, read its figures, stop it in order."""
    command = [sys.executable, "-m", "stream_app", "worker", role, "--end-with-parent"]
    begun, wall, spent = time.monotonic(), time.time(), [(time.time(), 0.0)]
    with log.open("w") as file:
        worker = subprocess.Popen(command, env=os.environ | environment(settings), stderr=file)  # noqa: S603
    try:
        while not (answers(settings, "readyz") and until(settings)):
            if worker.poll() is not None or time.monotonic() - begun > READY_TIMEOUT_S:
                raise SystemExit(f"the {role} worker did not get ready:\n{log.read_text()[-3000:]}")
            time.sleep(POLL_S)
            spent.append((time.time(), cpu_seconds(worker.pid)))
        seconds = time.monotonic() - begun
        spent.append((time.time(), cpu_seconds(worker.pid)))
        status = Path(f"/proc/{worker.pid}/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]  # Linux has it
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(120)
    return Started(seconds, spent[-1][1], peak, log.read_text(), wall, spent)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def page(settings: Settings, name: str) -> str:
    """One of the worker's pages; raises OSError."""
    with urllib.request.urlopen(f"http://127.0.0.1:{settings.observability.port}/{name}", timeout=30) as p:
        return str(p.read().decode())


def answers(settings: Settings, name: str) -> bool:
    """Whether a page answers with 200."""
    try:
        page(settings, name)
    except OSError:
        return False
    return True


def first_slate(settings: Settings) -> bool:
    """Whether the ranker has published."""
    found = re.search(
        r'^stream_app_slates_total\{result="published"\} (\S+)', page(settings, "metrics"), re.M
    )
    return found is not None and float(found[1]) > 0


def read_seconds(log: str, label: str) -> tuple[int, float]:
    """Records and seconds of a reader, as it logged them."""
    found = re.search(rf"{label}: read (\d+) records in (\S+) s", log)
    assert found is not None, log  # noqa: S101  # the log's wording changed
    return int(found[1]), float(found[2])


def measure_users(settings: Settings, users: int, directory: Path, profile: str | None) -> list[Measured]:
    """Recovery of the interests table."""
    say(f"writing {users:,} users …")
    begun = time.monotonic()
    size = asyncio.run(fill_users(settings, users))
    seconds = time.monotonic() - begun
    mb = users * size / 1e6
    say(f"{users:,} records of {size} bytes in {seconds:.1f} s")
    rows = []
    f = in_child(settings, "read", profile)
    rows.append(
        Measured(
            "changelog read, nothing kept", f["seconds"], f["cpu_s"], f["peak_mb"], int(f["records"]), mb
        )
    )
    say(rows[-1].line())
    for state in ("empty", "warm"):
        f = in_child(settings, "open", profile if state == "empty" else None)
        records = int(f["records"])
        rest = f["cpu_s"] - f["main_cpu_s"] - f["write_cpu_s"]
        note = (
            f"of its processor time the event loop (fetch, parse) took {f['main_cpu_s']:.1f} s, WriteBatches "
            f"{f['write_cpu_s']:.1f} s, other threads {rest:.1f} s; closed in {f['close_s']:.1f} s"
        )
        rows.append(
            Measured(
                f"partitions opened, {state} directory",
                *(f["seconds"], f["cpu_s"], f["peak_mb"], records, mb if records else 0.0, note),
            )
        )
        say(rows[-1].line())
    rocksdb = sum(path.stat().st_size for path in directory.rglob("*.sst")) / 1e6
    rows[-1].note += f"; RocksDB has {rocksdb:,.0f} MB"
    for state in ("empty", "warm"):
        data = msgspec.structs.replace(settings.interests, data_dir=str(directory / "worker-state"))
        worker = msgspec.structs.replace(settings, interests=data)
        w = start_worker(worker, "interests", directory / f"interests-{state}.log", lambda _: True)
        records = users if state == "empty" else 0
        rows.append(
            Measured(
                f"interests worker, start to ready, {state} directory",
                *(w.seconds, w.cpu_s, w.peak_mb, records, mb if records else 0.0),
            )
        )
        say(rows[-1].line())
    return rows


def measure_contents(settings: Settings, contents: int, directory: Path) -> list[Measured]:
    """Start of a ranker."""
    say(f"writing {contents:,} contents and their statistics …")
    asyncio.run(fill_contents(settings, contents))
    w = start_worker(settings, "ranker", directory / "ranker.log", first_slate)
    vectors, vectors_s = read_seconds(w.log, "contents")
    statistics, _ = read_seconds(w.log, "statistics")
    contents_end, statistics_end = w.logged("contents: read"), w.logged("statistics: read")
    contents_start, ready = contents_end - vectors_s, w.begun + w.seconds
    rows = [
        Measured("ranker: start to first slate", w.seconds, w.cpu_s, w.peak_mb, 0),
        w.step("Python, torch, topics checked", w.begun, contents_start),
        w.step("contents", contents_start, contents_end, vectors),
        w.step("statistics, a record a content and partition", contents_end, statistics_end, statistics),
        w.step("joining the group, first ranking", statistics_end, ready),
    ]
    for row in rows:
        say(row.line())
    return rows


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--contents", type=int, default=100_000)
    parser.add_argument("--skip-users", action="store_true")
    parser.add_argument("--skip-contents", action="store_true")
    parser.add_argument("--port", type=int, default=8691, help="the workers' metrics port")
    parser.add_argument("--profile", metavar="FILE", help="write cProfile files of the main thread's work")
    parser.add_argument("--child", choices=("read", "open"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.profile)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was begun is cleaned up
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="stream-app-recovery-") as folder:
        directory = Path(folder)
        with LocalBroker(directory / "broker") as broker:
            for name, wanted in (("users", not args.skip_users), ("contents", not args.skip_contents)):
                if wanted:
                    settings = build(
                        {
                            "kafka": {"broker": broker.address, "app_id": name, "topic_prefix": f"{name}."},
                            "interests": {"data_dir": str(directory / "state")},
                            "content": {"capacity": max(args.contents, 100_000)},
                            "observability": {"port": args.port},
                        }
                    )
                    create_topics(settings)
                    rows += (
                        measure_users(settings, args.users, directory, args.profile)
                        if name == "users"
                        else measure_contents(settings, args.contents, directory)
                    )
    busy = f"load average {os.getloadavg()[1]:.1f}"
    table = "\n".join([HEAD, *(row.line() for row in rows)])
    print(f"{platform.machine()}, {os.cpu_count()} cores shared with the broker, {busy}\n\n{table}\n")
    for row in rows:
        if row.note:
            print(f"{row.what}: {row.note}")


if __name__ == "__main__":
    main()
