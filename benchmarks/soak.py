"""An hour of steady load on real workers and a real broker: does anything grow?

    python benchmarks/soak.py --minutes 60 --rate 100 --summary soak.json --plot docs/soak.svg

A local Apache Kafka, the four workers as processes, a seeded event rate over a fixed population of
users, contents that appear and are deleted at one rate. Every ten seconds: memory, processor time,
open files and threads of each process, bytes in RocksDB and in Kafka's log, lag, freshness. Exits
with 1 when a worker ended, or when a judged series grew after the warm-up (see ``soak_trend``).

Everything that has a memory is given one that the warm-up fills, so that what grows afterwards grows
for ever: short records (32 seen contents), half-lives of minutes for the statistics of deleted
contents, small RocksDB write buffers, log segments of a minute and a retention of three.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import FrameType

import msgspec
from kafka.admin import ConfigResource, ConfigResourceType
from prometheus_client.parser import text_string_to_metric_families
from soak_load import Load
from soak_plot import Panel, svg
from soak_trend import Trend, quantile, trend

from stream_app.demo.roles import ROLES, Roles
from stream_app.errors import StreamAppError
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker
from stream_app.kafka.clients import admin_client
from stream_app.observability.logging import configure
from stream_app.settings import Settings, build
from stream_app.topics import declare

SAMPLE_S = 10.0
PROGRESS_S = 60.0
CHECK_S = 1.0
PAGE_TIMEOUT_S = 60.0
"""For a metrics page. On a crowded machine one took more than five seconds, and ended a run of 46 minutes;
a worker that stands still ends by itself, later than this."""
WARM_UP_SHARE, WARM_UP_MIN = 0.25, 15.0
"""The first quarter of the run is warm-up, at most 15 minutes."""
RETENTION_MS = "180000"
PROCESSES = (*ROLES, "broker")
JUDGED = ("rss_mb", "files", "threads", "rocksdb_mb")
"""Series that must be flat, for workers; the broker's and the others are reported."""

BROKER = {
    # the log reaches its steady size within minutes: compacted topics are cleaned as soon as a segment
    # is closed
    "log.segment.bytes": str(4 << 20),
    "log.roll.ms": "60000",
    "log.retention.check.interval.ms": "10000",
    "log.segment.delete.delay.ms": "5000",
    "log.cleaner.delete.retention.ms": "60000",
    "log.cleaner.min.cleanable.ratio": "0.3",
}


def settings_for(address: str, contents: int) -> Settings:
    """The soak's settings: every horizon within the warm-up."""
    return build(
        {
            # tombstones and the markers of transactions stay on compacted topics for so long
            "kafka": {"broker": address, "app_id": "soak", "delete_retention_h": 1 / 60},
            "events": {"retry_delays_s": (0.5, 1.0, 2.0)},
            "interests": {
                "recent": 32,
                "seen": 32,
                "stats_half_lives_h": (0.01, 0.03),  # forgotten four times 108 s after the last engagement
                "expiry_interval_s": 30.0,
                "write_buffer_bytes": 1 << 20,
            },
            "content": {"capacity": 2 * contents, "remembered_texts": contents},
            "observability": {"port": 0},
        }
    )


def shorten_retention(settings: Settings) -> None:
    """Let the topics whose records are deleted reach their steady size within the warm-up."""
    topics = [topic.name for topic in declare(settings) if topic.cleanup == "delete"]
    configs = {"retention.ms": RETENTION_MS}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, configs=configs) for name in topics]
    with contextlib.closing(admin_client(settings)) as admin:
        admin.alter_configs(resources)


class Sampler:
    """Reads one flat row of figures: ``name.process`` → value."""

    def __init__(self, settings: Settings, pids: dict[str, int], ports: dict[str, int], files: Path) -> None:
        self._host = settings.observability.host
        self._pids, self._ports, self._files = pids, ports, files
        self._cpu: dict[str, tuple[float, float]] = {}
        self._fresh: dict[float, float] = {}

    def sample(self) -> dict[str, float | None]:
        """Figures as of now; rates are those since the last call."""
        row: dict[str, float | None] = {}
        for name, pid in self._pids.items():
            proc = Path(f"/proc/{pid}")
            status = dict(
                line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
            )
            row[f"rss_mb.{name}"] = int(status["VmRSS"].split()[0]) / 1024
            row[f"threads.{name}"] = int(status["Threads"])
            row[f"files.{name}"] = len(os.listdir(proc / "fd"))
            fields = (proc / "stat").read_text().rpartition(")")[2].split()
            now, used = time.monotonic(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            before, used_before = self._cpu.get(name, (now, used))
            row[f"cpu_cores.{name}"] = (used - used_before) / (now - before) if now > before else None
            self._cpu[name] = now, used
        row["rocksdb_mb"] = disk_mb(self._files / "state")
        row["kafka_log_mb"] = disk_mb(self._files / "broker" / "records")
        for name in self._ports:
            row[f"lag.{name}"] = self._total(name, "stream_app_consumer_lag")
        row["contents_indexed"] = self._total("interests", "stream_app_content_indexed")
        row["slab_rows"] = self._total("interests", "stream_app_slab_rows")
        row["accounted"] = self._total("interests", "stream_app_events")
        row["slates"] = self._total("ranker", "stream_app_slates")
        buckets: dict[float, float] = {}
        for labels, value in self._metric("ranker", "stream_app_freshness_seconds", "_bucket"):
            buckets[float(labels["le"])] = value
        for share, name in ((0.5, "freshness_ms.p50"), (0.99, "freshness_ms.p99")):
            seconds = quantile(self._fresh, buckets, share)
            row[name] = None if seconds is None else 1000 * seconds
        self._fresh = buckets
        return row

    def _total(self, role: str, metric: str) -> float:
        return sum(value for _, value in self._metric(role, metric, ""))

    def _metric(self, role: str, metric: str, ending: str) -> list[tuple[dict[str, str], float]]:
        url = f"http://{self._host}:{self._ports[role]}/metrics"
        with urllib.request.urlopen(url, timeout=PAGE_TIMEOUT_S) as page:
            families = text_string_to_metric_families(page.read().decode())
            return [
                (sample.labels, sample.value)
                for family in families
                if family.name == metric
                for sample in family.samples
                if sample.name in (metric + ending, metric + "_total")
            ]


def disk_mb(directory: Path) -> float:
    """Megabytes that the files below a directory take on disk; files may come and go meanwhile."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total / 2**20


class Soak:
    """One run: load, samples, verdict."""

    def __init__(self, minutes: float, warm_up_min: float) -> None:
        self.samples: list[dict[str, float | None]] = []
        self.failure: str | None = None
        self._minutes, self._warm_up_min = minutes, warm_up_min
        self._ending = False

    def end(self, _number: int, _frame: FrameType | None) -> None:
        """A signal: finish early, with what there is."""
        self._ending = True

    def run(self, load: Load, roles: Roles, sampler: Sampler) -> None:
        """Feed and sample until the time is over, a signal comes or a worker ends."""
        began = time.monotonic()
        sampled, checked, told = began - SAMPLE_S, began, began
        try:
            while not self._ending and (now := time.monotonic()) - began < 60 * self._minutes:
                load.feed(now - began)
                if now - checked >= CHECK_S:
                    checked = now
                    roles.check()
                if now - sampled >= SAMPLE_S:
                    sampled = now
                    row: dict[str, float | None] = {
                        "seconds": now - began,
                        "sent": float(load.events),
                        "contents_sent": float(load.contents),
                    }
                    self.samples.append(row | sampler.sample())
                if now - told >= PROGRESS_S:
                    told = now
                    print(self._progress(), flush=True)
                time.sleep(load.pause_s)
        except (StreamAppError, OSError) as error:
            self.failure = str(error)
            print(f"ended early: {error}", file=sys.stderr)

    def _progress(self) -> str:
        row = self.samples[-1]

        def of(name: str) -> str:
            return " ".join(f"{p} {row[f'{name}.{p}'] or 0:.4g}" for p in PROCESSES)

        fresh = " / ".join(f"{row[f'freshness_ms.{q}'] or 0:.0f}" for q in ("p50", "p99"))
        lag = sum(row[f"lag.{role}"] or 0 for role in ROLES)
        return (
            f"{(row['seconds'] or 0) / 60:5.1f} min  {row['sent']:,.0f} events, lag {lag:.0f}, "
            f"freshness {fresh} ms; MB {of('rss_mb')}; files {of('files')}; "
            f"RocksDB {row['rocksdb_mb']:.1f} MB, Kafka {row['kafka_log_mb']:.0f} MB"
        )

    def series(self, name: str) -> list[float | None]:
        """One series of the samples."""
        return [row.get(name) for row in self.samples]

    def trends(self) -> dict[str, Trend]:
        """Trend of every series after the warm-up."""
        seconds = [row["seconds"] or 0.0 for row in self.samples]
        names = [name for name in (self.samples[0] if self.samples else {}) if name != "seconds"]
        found = ((name, trend(seconds, self.series(name), 60 * self._warm_up_min)) for name in names)
        return {name: t for name, t in found if t is not None}


def idle(row: dict[str, float | None], contents: int) -> list[str]:
    """What did not get done by the last sample: workers that do nothing do not grow either."""
    found = {name: value or 0.0 for name, value in row.items()}
    due = {
        "events accounted for": (found["accounted"], 0.98 * found["sent"]),
        "contents indexed": (found["contents_indexed"], 0.9 * contents),
        "slates": (found["slates"], 0.2 * found["sent"]),  # many events of a user share one
    }
    return [
        f"{what}: {done:,.0f}, expected {least:,.0f}" for what, (done, least) in due.items() if done < least
    ]


def judged(name: str) -> bool:
    """Whether this series decides the verdict."""
    kind, _, process = name.partition(".")
    return kind in JUDGED and process != "broker"


def table(trends: dict[str, Trend]) -> str:
    """The verdict as the documentation shows it."""
    lines = ["| series | mean | growth in the window | noise (σ) | verdict |", "|---|---|---|---|---|"]
    for name, t in trends.items():
        if name.partition(".")[0] in (*JUDGED, "kafka_log_mb", "freshness_ms", "cpu_cores"):
            verdict = ("flat" if t.flat else "GROWS") if judged(name) else "flat" if t.flat else "rises"
            mark = "" if judged(name) else " (not judged)"
            lines.append(f"| {name} | {t.mean:.4g} | {t.growth:+.3g} | {t.noise:.3g} | {verdict}{mark} |")
    return "\n".join(lines)


def picture(soak: Soak, title: str, warm_up_min: float) -> str:
    """All series as SVG."""

    def of(name: str, members: tuple[str, ...] = PROCESSES) -> dict[str, list[float | None]]:
        return {member: soak.series(f"{name}.{member}") for member in members}

    panels = [
        Panel("resident memory", "MB", of("rss_mb")),
        Panel("processor", "cores", of("cpu_cores")),
        Panel("open files, workers", "files", of("files", ROLES)),
        Panel("open files, broker", "files", of("files", ("broker",))),
        Panel("threads", "threads", of("threads")),
        Panel("on disk: RocksDB", "MB", {"RocksDB": soak.series("rocksdb_mb")}),
        Panel("on disk: Kafka's log", "MB", {"Kafka": soak.series("kafka_log_mb")}),
        Panel("lag", "records", of("lag", ROLES)),
        Panel("from event to slate", "ms", of("freshness_ms", ("p50", "p99"))),
    ]
    return svg(title, [(s or 0.0) / 60 for s in soak.series("seconds")], panels, warm_up_min)


def summary(soak: Soak, args: argparse.Namespace, load: Load, warm_up_min: float) -> dict[str, object]:
    """Everything, as JSON."""
    trends = soak.trends()
    growing = [name for name, t in trends.items() if judged(name) and not t.flat]
    undone = idle(soak.samples[-1], args.contents) if soak.samples else ["nothing was sampled"]
    return {
        "parameters": vars(args) | {"warm_up_minutes": warm_up_min},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "minutes": (soak.samples[-1]["seconds"] or 0.0) / 60 if soak.samples else 0.0,
        "events": load.events,
        "contents": load.contents,
        "failed_sends": load.failed,
        "failure": soak.failure,
        "flat": not growing and not undone and soak.failure is None and any(map(judged, trends)),
        "growing": growing,
        "undone": undone,
        "trends": {
            name: {
                "mean": t.mean,
                "growth": t.growth,
                "noise": t.noise,
                "per_hour": t.per_hour,
                "flat": t.flat,
            }
            for name, t in trends.items()
        },
        "samples": soak.samples,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0, help="events a second")
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--contents", type=int, default=500, help="contents at any time")
    parser.add_argument(
        "--churn", type=float, default=0.5, help="contents that appear, and are deleted, a second"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--summary", type=Path, help="write all samples and the verdict as JSON")
    parser.add_argument("--plot", type=Path, help="write the series as SVG")
    parser.add_argument("--logs", type=Path, help="keep the workers' logs in this directory")
    args = parser.parse_args()
    configure("soak", "info")
    warm_up_min = min(WARM_UP_MIN, WARM_UP_SHARE * args.minutes)
    soak = Soak(args.minutes, warm_up_min)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, soak.end)
    with tempfile.TemporaryDirectory(prefix="stream-app-soak-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        with LocalBroker(directory / "broker", properties=BROKER) as broker:
            settings = settings_for(broker.address, args.contents)
            create_topics(settings)
            shorten_retention(settings)
            roles = Roles(settings, directory, keep=False)
            load = Load(
                settings,
                args.seed,
                rate=args.rate,
                users=args.users,
                contents=args.contents,
                churn=args.churn,
            )
            try:
                roles.start()
                roles.wait_until_ready(lambda line: print(line, flush=True))
                load.open()
                sampler = Sampler(settings, roles.pids | {"broker": broker.pid}, roles.ports, directory)
                soak.run(load, roles, sampler)
            finally:
                load.close()
                roles.stop()
                if args.logs:
                    args.logs.mkdir(parents=True, exist_ok=True)
                    for log in directory.glob("*.log"):
                        (args.logs / log.name).write_bytes(log.read_bytes())
    result = summary(soak, args, load, warm_up_min)
    population = f"{args.users:,} users, {args.contents:,} contents"
    title = f"{result['minutes']:.0f} minutes at {args.rate:g} events/s, {population}"
    if args.summary:
        args.summary.write_bytes(msgspec.json.format(json.dumps(result, default=str).encode()))
    if args.plot:
        args.plot.write_text(picture(soak, title, warm_up_min), encoding="utf-8")
    print(f"{title}; judged after {warm_up_min:.1f} minutes\n{table(soak.trends())}")
    cause = soak.failure or result["undone"] or result["growing"] or "too short to tell"
    print("flat" if result["flat"] else f"NOT FLAT: {cause}")
    return 0 if result["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
