"""How fast `stream-app worker serve` answers, under load and while slates change.

    python benchmarks/serve.py [--users N] [--seconds S] [--updates N] [--wrk PROGRAM]

Starts a local Apache Kafka, publishes a slate of ten contents for each user and vectors for the contents,
starts a replica as a process of its own, and asks it for the slates of random users over 1, 16 and 64
connections; then for similar contents, each of which is an exact search of all. The load comes from wrk
(Debian's package of that name; `--wrk` says where it is), on the same machine: it takes part of the
processors. Each connection asks anew once it is answered, so the more of them, the longer each waits. What
an answer costs the replica in processor time is what to compare on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector, encode
from stream_app.demo.roles import environment, free_port
from stream_app.kafka import clients
from stream_app.kafka.admin import ensure_topics
from stream_app.kafka.broker import broker_address
from stream_app.ranking.ranked import Item, Parts, Reason
from stream_app.recommendations import slate as slates
from stream_app.recommendations.slate import COLD_START_USER, Cause, Slate, rfc3339
from stream_app.settings import Settings, build

HOST = "127.0.0.1"
CONNECTIONS = (1, 16, 64)
READY_S = 300.0
SCRIPT = """
request = function()
  return wrk.format("GET", string.format("{path}", math.random(0, {count} - 1)))
end
"""


def slate_of(user: str, rng: np.random.Generator, contents: int) -> bytes:
    """A slate as rankers write them: ten contents, three reasons each."""
    now = rfc3339(time.time_ns() // 1_000_000)
    chosen = rng.integers(contents, size=(10, 4)).tolist()
    items = [
        Item(
            f"content-{content}",
            0.9 - 0.05 * place,
            Parts(*rng.random(4).round(4).tolist()),
            [Reason(f"content-{one}", "like", 0.25) for one in because],
        )
        for place, (content, *because) in enumerate(chosen)
    ]
    cause = Cause("likes", 1, 42, now, now)
    return slates.encode(Slate(user, now, "all-MiniLM-L6-v2", cause, "personal", items))


def fill(settings: Settings, users: int, contents: int) -> None:
    """Slates of all users, and vectors of all contents."""
    rng, now = np.random.default_rng(1), time.time_ns() // 1_000_000
    with clients.producer(settings) as producer:
        for number in range(users):
            user = f"user-{number}"
            producer.send("recommendations", key=user.encode(), value=slate_of(user, rng, contents))
        nobody = slate_of(COLD_START_USER.decode(), rng, contents)
        producer.send("recommendations", key=COLD_START_USER, value=nobody)
        for number in range(contents):
            vector = rng.standard_normal(settings.content.dimensions).astype(np.float32)
            unit = (vector / np.linalg.norm(vector)).astype(np.float16)
            record = encode(ContentVector(model_id(settings), "", now, now, unit))
            producer.send("content-vectors", key=f"content-{number}".encode(), value=record)
        producer.flush()


@contextlib.contextmanager
def changing(settings: Settings, users: int, contents: int, per_s: float) -> Iterator[None]:
    """Meanwhile so many slates a second are published anew."""
    done = threading.Event()

    def publish() -> None:
        rng = np.random.default_rng(2)
        with clients.producer(settings) as producer:
            while per_s and not done.wait(1 / per_s):
                user = f"user-{rng.integers(users)}"
                producer.send("recommendations", key=user.encode(), value=slate_of(user, rng, contents))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def replica(settings: Settings, log: Path) -> Iterator[float]:
    """A started replica; the seconds that it took to be ready."""
    command = [sys.executable, "-m", "stream_app", "worker", "serve", "--end-with-parent"]
    begun = time.monotonic()
    with log.open("w") as opened:
        worker = subprocess.Popen(  # noqa: S603  # our own command
            command, env=os.environ | environment(settings), stderr=opened
        )
    try:
        while "answering on port" not in log.read_text():
            if worker.poll() is not None or time.monotonic() - begun > READY_S:
                raise SystemExit(f"the replica did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield time.monotonic() - begun
    finally:
        worker.terminate()
        worker.wait(60)


def processor_s(settings: Settings) -> float:
    """Processor time that the replica has used, by its own metrics."""
    url = f"http://{HOST}:{settings.observability.port}/metrics"
    with urllib.request.urlopen(url, timeout=30) as page:  # our own
        return float(re.findall(r"^process_cpu_seconds_total (\S+)$", page.read().decode(), re.MULTILINE)[0])


def load(settings: Settings, wrk: str, path: str, count: int, connections: int, seconds: float) -> str:
    """One line of figures: requests a second, median and 99th percentile, refusals, processor time."""
    before = processor_s(settings)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT.format(path=path, count=count))
        script.flush()
        command = [wrk, "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--latency", "-s", script.name]
        command.append(f"http://{HOST}:{settings.serving.port}")
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # likewise
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", done.stdout)[0])
    at = dict(re.findall(r"\s(50|99)%\s+(\S+)", done.stdout))
    refused = re.findall(r"Non-2xx or 3xx responses: (\d+)", done.stdout) or ["0"]
    (answers,) = re.findall(r"(\d+) requests in", done.stdout)
    cost_us = 1e6 * (processor_s(settings) - before) / int(answers)
    return (
        f"{rate:8,.0f} /s   p50 {at['50']:>8}   p99 {at['99']:>8}   refused {refused[0]}   "
        f"{cost_us:.0f} us of processor time an answer"
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--contents", type=int, default=3_000)
    parser.add_argument("--updates", type=float, default=100.0, help="slates published anew each second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--wrk", default="wrk", help="where wrk is")
    arguments = parser.parse_args()
    if shutil.which(arguments.wrk) is None:
        raise SystemExit("wrk is not there: install Debian's package wrk, or name the program with --wrk")
    users, contents = arguments.users, arguments.contents
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = build(
            {
                "kafka": {"broker": stack.enter_context(broker_address())},
                "interests": {"data_dir": str(directory / "state")},
                "observability": {"port": free_port(HOST, 0)},
                "serving": {"port": free_port(HOST, 0), "rate_per_s": 0},
            }
        )
        ensure_topics(settings)
        fill(settings, users, contents)
        with replica(settings, directory / "first.log") as seconds:
            print(f"{users:,} slates read and answered for after {seconds:.1f} s")
        again = stack.enter_context(replica(settings, directory / "second.log"))
        print(f"started again: after {again:.1f} s")
        with changing(settings, users, contents, arguments.updates):
            for connections in CONNECTIONS:
                path = "/v1/users/user-%d/slate"
                figures = load(settings, arguments.wrk, path, users, connections, arguments.seconds)
                print(f"slate,   {connections:2} connections: {figures}", flush=True)
            path = "/v1/contents/content-%d/similar"
            figures = load(settings, arguments.wrk, path, contents, 4, arguments.seconds)
            print(f"similar,  4 connections: {figures}")


if __name__ == "__main__":
    main()
