"""The benchmark suite: each part against what one would use instead, in one run on this machine.

    python benchmarks/suite.py [--parts state freshness …] [--quick] [--repeats N] [--summary FILE]

Parts: the state path against plain aiokafka, an idiomatic Faust agent, Quix Streams and Kafka Streams;
freshness, from event to slate; recovery against Faust's; encoding against sentence-transformers; ranking.
docs/BENCHMARKS.md says what each of them does and does not do. A part or an alternative that cannot be had
here (no network, no Java, no Maven) is named with the reason, and the rest runs. Wants a machine that does
nothing else: the load before and after is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import alternatives
import contenders
import encoding
import faust_recovery
import freshness
from alternatives import UnavailableError, say
from sizes import Sizes, add_options, chosen
from summary import table

from stream_app.errors import StreamAppError
from stream_app.kafka import distribution

RANKERS = ("blend", "learned")
RANKED_TOGETHER = 32
"""Users, as under load."""
RANKING_BOUND_S = 900.0
PACKAGES = (
    "stream-app",
    "faust-streaming",
    "aiokafka",
    "kafka-python",
    "numpy",
    "rocksdict",
    "torch",
    "transformers",
)


def ranking(sizes: Sizes, _skipped: dict[str, str]) -> list[dict[str, Any]]:
    """The summary's ``ranking``, each ranker in a process of its own."""
    entries = []
    for ranker in RANKERS:
        with tempfile.TemporaryDirectory(prefix="stream-app-ranking-") as folder:
            file = Path(folder) / "ranking.json"
            script = Path(__file__).with_name("ranking.py")
            options = ["--ranker", ranker, "--summary", file, "--seconds", sizes.seconds]
            command = [sys.executable, script, *options, "--batches", RANKED_TOGETHER, "--contents"]
            subprocess.run(  # noqa: S603  # our own command
                [*map(str, command), *map(str, sizes.contents)],
                stdout=sys.stderr,
                check=True,
                timeout=RANKING_BOUND_S,
            )
            entries += json.loads(file.read_text())
    return entries


PARTS: dict[str, tuple[str, Callable[[Sizes, dict[str, str]], Any]]] = {
    "state": ("state_path", contenders.measure),
    "freshness": ("freshness", lambda sizes, _: freshness.measure(sizes)),
    "recovery": ("recovery", lambda sizes, _: faust_recovery.measure(sizes)),
    "encoding": ("encoding", encoding.measure),
    "ranking": ("ranking", ranking),
}
"""Name → key in the summary, and what measures it."""


def versions() -> dict[str, str]:
    """Of all that takes part; what is not installed, or was not used, has none."""
    found = {"Python": platform.python_version(), "Apache Kafka (broker)": distribution.VERSION}
    found |= {name: version(name) for name in PACKAGES}
    for name, package in (("quix", "quixstreams"), ("sentence-transformers", "sentence-transformers")):
        if (python := alternatives.KEPT / name / "bin" / "python").exists():
            with contextlib.suppress(UnavailableError):
                found[package] = alternatives.installed(python, package)
    with contextlib.suppress(UnavailableError, StopIteration):
        found["Kafka Streams"] = alternatives.kafka_streams_version()
        found["Java (Kafka Streams)"] = alternatives.java_version()
    return found


def machine() -> dict[str, Any]:
    """This machine, as far as it bears on the figures."""
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
    }


def commit() -> str | None:
    """The commit that is measured, with a plus when files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],  # noqa: S607  # whichever git there is
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def measured(parts: Sequence[str], sizes: Sizes) -> dict[str, Any]:
    """The whole summary. A part that fails is named with the reason, and the others run."""
    summary: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "sizes": dataclasses.asdict(sizes),
        "load_average": [os.getloadavg()[0]],
        "skipped": {},
        "failed": {},
        "seconds": {},
    }
    for name in PARTS:
        key, measure = PARTS[name]
        if name not in parts:
            summary["skipped"][name] = "not among --parts"
            continue
        say(f"== {name}")
        begun = time.monotonic()
        with failing(summary["failed"], name):
            summary[key] = measure(sizes, summary["skipped"])
        summary["seconds"][name] = round(time.monotonic() - begun, 1)
    summary["load_average"].append(os.getloadavg()[0])
    summary["versions"] = versions()
    return summary


@contextlib.contextmanager
def failing(failed: dict[str, str], name: str) -> Iterator[None]:
    """What cannot be measured is named, with its reason; the suite's status tells as well."""
    try:
        yield
    except (
        SystemExit,
        StreamAppError,
        OSError,
        ValueError,
        RuntimeError,
        subprocess.SubprocessError,
    ) as error:
        if isinstance(error, SystemExit) and not isinstance(error.code, str):
            raise  # we are told to end
        failed[name] = str(error)
        say(f"FAILED {name}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = tuple(PARTS)
    parser.add_argument(
        "--parts", nargs="+", choices=every, default=every, metavar="PART", help=f"of {', '.join(every)}"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: at most ten minutes")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write everything as JSON")
    add_options(parser)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was begun is cleaned up
    summary = measured(args.parts, chosen(args))
    print(table(summary))
    if args.summary:
        args.summary.write_text(json.dumps(summary, indent=2) + "\n")
    if summary["failed"]:
        raise SystemExit(f"failed: {', '.join(summary['failed'])}")


if __name__ == "__main__":
    main()
