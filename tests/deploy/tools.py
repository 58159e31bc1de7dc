"""The programs that `make check-deploy` needs and Python does not bring, each under ``bin/`` of one folder.

``python -m tests.deploy.tools`` fetches what is missing. Debian's packages are taken apart, not
installed: the system stays as it is, nobody has to be root, and the folder goes with the virtual
environment. What comes from PyPI (docker-compose, hadolint, kubectl) is the extra ``deploy``.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(sys.prefix) / "deploy-tools"
TIMEOUT_S = 300


@dataclass(frozen=True)
class Package:
    """One of Debian's packages."""

    name: str
    programs: dict[str, str]
    """Name under ``bin/`` → file in the package"""
    libraries: tuple[str, ...] = ()
    """Folders with libraries of the packages that it depends on; without any those are not fetched"""


_LIBRARIES = "usr/lib/x86_64-linux-gnu"
PACKAGES = (
    Package("prometheus", {"prometheus": "usr/bin/prometheus", "promtool": "usr/bin/promtool"}),
    Package("chromium", {"chromium": "usr/lib/chromium/chromium"}, (_LIBRARIES, f"{_LIBRARIES}/pulseaudio")),
)


def tool(name: str) -> str:
    """Path of a program. Raises FileNotFoundError, with what to do, when it has not been fetched."""
    for path in (FOLDER / "bin" / name, Path(sys.prefix) / "bin" / name):
        if path.exists():
            return str(path)
    raise FileNotFoundError(f"{name} is not there: `make check-deploy` fetches it")


def fetch(packages: list[Package]) -> None:
    """Put the packages' programs under ``bin/``; packages that are there already stay as they are."""
    with tempfile.TemporaryDirectory() as scratch:
        apt = _apt(Path(scratch))
        _run([*apt, "update"], scratch)
        for package in packages:
            _run([*apt, "clean"], scratch)
            if package.libraries:
                options = ("--yes", "--download-only", "--no-install-recommends")
                _run([*apt, "install", *options, package.name], scratch)
            else:
                _run([*apt, "download", package.name], f"{scratch}/archives")
            place = FOLDER / package.name
            place.mkdir(parents=True, exist_ok=True)
            for archive in sorted(Path(scratch, "archives").glob("*.deb")):
                _run(["dpkg-deb", "-x", str(archive), str(place)], scratch)
            _link(package, place)


def _apt(scratch: Path) -> list[str]:
    """apt-get with lists and archives of its own, knowing what is installed but changing nothing of it."""
    for folder in ("lists/partial", "archives/partial"):
        (scratch / folder).mkdir(parents=True)
    options = {
        "Dir::State::lists": scratch / "lists",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": scratch,
        "Dir::Cache::archives": scratch / "archives",
        "Debug::NoLocking": 1,
        "APT::Sandbox::User": "",
    }
    return ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]


def _link(package: Package, place: Path) -> None:
    """Small scripts, so that a program finds the libraries that came with it."""
    (FOLDER / "bin").mkdir(parents=True, exist_ok=True)
    for name, file in package.programs.items():
        libraries = ":".join(str(place / folder) for folder in package.libraries)
        command = ["env", f"LD_LIBRARY_PATH={libraries}"] if libraries else []
        script = FOLDER / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join([*command, str(place / file)])} "$@"\n')
        script.chmod(0o755)


def _run(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")


def main() -> int:
    """Fetch what is missing."""
    missing = [p for p in PACKAGES if not all((FOLDER / "bin" / name).exists() for name in p.programs)]
    if missing:
        if shutil.which("apt-get") is None:
            raise SystemExit("check-deploy fetches Debian's packages with apt-get, which is not here")
        fetch(missing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
