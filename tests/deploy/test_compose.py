"""The compose file and the Dockerfile, each through its own validator and some rules of ours."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # comes with transformers

from tests.deploy.alerts import ROOT
from tests.deploy.deployment import composition
from tests.deploy.tools import tool

pytestmark = pytest.mark.deploy
FILES = ("docker-compose.yml", "Dockerfile", ".env", "deploy/prometheus/prometheus.yml")
WORKER_STOP_S = 37
"""A worker comes to rest within this time, or is void (docs/RELIABILITY.md)."""


def complaints(root: Path) -> list[str]:
    """What is wrong with the composition in ``root``."""
    lint = subprocess.run(
        [tool("hadolint"), "--failure-threshold", "info", str(root / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = lint.stdout.splitlines() if lint.returncode else []
    try:
        services = composition(root)
    except subprocess.CalledProcessError as error:
        return [*found, error.stderr]
    if "ranker" not in services or "ranker-gpu" in services:
        found.append("a plain `up` ranks on the CPU, once")
    for name, service in services.items():
        found += [f"{name}: {what}" for what in _wrong(service)]
    workers = {name for name, service in services.items() if (service.get("command") or [""])[0] == "worker"}
    if (scraped := _targets(root)) != {f"{name}:8600" for name in workers}:
        found.append(f"Prometheus scrapes {sorted(scraped)}")
    lock = tomllib.loads((ROOT / "stream_app/kafka/kafka.lock.toml").read_text())
    versions = {entry["version"] for entry in lock["dependencies"] if "kafka" in entry["artifactId"]}
    if services["kafka"]["image"].partition(":")[2] not in versions:
        found.append("the broker is not of the version that is tested")
    return found


def _wrong(service: dict[str, Any]) -> list[str]:
    found = []
    if service["image"].partition(":")[2] in ("", "latest"):
        found.append("its image is not pinned")
    if not service["image"].startswith("stream-app:"):
        return found
    if not service.get("read_only") or service.get("cap_drop") != ["ALL"]:
        found.append("it may write its root file system, or has capabilities")
    if service.get("user", "0").partition(":")[0] in ("", "0", "root"):
        found.append("it runs as root")
    if service["command"][0] == "worker":
        if "readyz" not in str(service.get("healthcheck")):
            found.append("it does not say when it is ready")
        if int(service.get("stop_grace_period", "10s").rstrip("s")) < WORKER_STOP_S:
            found.append("it is killed before it could come to rest")
        state = service["command"][1] in ("interests", "serve")
        if state and not any(v["target"] == "/var/lib/stream-app" for v in service.get("volumes", ())):
            found.append("its state is not on a volume")
    return found


def _targets(root: Path) -> set[str]:
    tree = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    job = next(job for job in tree["scrape_configs"] if job["job_name"] == "stream-app")
    return {target for group in job["static_configs"] for target in group["targets"]}


def test_nothing_is_wrong() -> None:
    assert complaints(ROOT) == []


def test_the_gpu_profile_ranks_on_a_gpu(tmp_path: Path) -> None:
    copy(tmp_path)
    (tmp_path / ".env").write_text("COMPOSE_PROFILES=gpu\n")
    services = composition(tmp_path)
    assert "ranker" not in services
    assert services["ranker-gpu"]["networks"]["default"]["aliases"] == ["ranker"]
    (device,) = services["ranker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def copy(place: Path) -> None:
    for file in FILES:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, place / file)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("Dockerfile", "USER 10001:10001", "USER root"),
        ("Dockerfile", "slim-bookworm\n", "slim-bookworm\nRUN cd /tmp\n"),
        ("docker-compose.yml", "condition: service_healthy", "condition: service_well"),
        ("docker-compose.yml", "    command: [worker, trainer]", "   command: [worker, trainer]"),
        ("docker-compose.yml", "topics: {condition", "topcis: {condition"),
        ("docker-compose.yml", "read_only: true", "read_only: false"),
        ("docker-compose.yml", "stop_grace_period: 40s", "stop_grace_period: 10s"),
        ("docker-compose.yml", 'volumes: ["interests-2:/var/lib/stream-app"]', "volumes: []"),
        ("docker-compose.yml", "apache/kafka:4.3.0", "apache/kafka:latest"),
        ("docker-compose.yml", "  trainer:\n", "  learner:\n"),
        (".env", "=cpu", "=gpu"),
        ("deploy/prometheus/prometheus.yml", "interests-2:8600", "interests-3:8600"),
    ],
)  # fmt: skip
def test_what_is_broken_is_noticed(tmp_path: Path, file: str, old: str, new: str) -> None:
    copy(tmp_path)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    assert complaints(tmp_path) != []
