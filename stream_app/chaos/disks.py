"""State directories that can be filled up: a small tmpfs each, in a mount namespace of its own.

A *keeper* process holds the namespace, so that the state outlives the worker, and ends with the driver
(its stdin is our pipe). Where namespaces are not allowed, a limit on file sizes (RLIMIT_FSIZE) of
the running worker takes the place of the full disk.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

SIZE_MB = 192
TMPFS, LIMIT = "tmpfs", "rlimit"


class Disk(Protocol):
    """Where one worker keeps its state."""

    how: str
    """``tmpfs`` or ``rlimit``."""

    @property
    def root(self) -> Path:
        """The state directory as the driver sees it."""

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command that runs ``command`` where it sees this disk; the process id stays its own."""

    def fill(self, pid: int) -> None:
        """From now on nothing can be written; ``pid`` is the worker's."""

    def free(self, pid: int | None) -> None:
        """There is room again; ``pid`` is the worker's if it still lives."""

    def close(self) -> None:
        """Let go of it."""


class SmallDisk:
    """A tmpfs of SIZE_MB on ``directory``, seen by nobody but its worker."""

    how = TMPFS

    def __init__(self, directory: Path) -> None:
        """Raises OSError where namespaces are not allowed."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory.resolve()
        mount = f"mount -t tmpfs -o size={SIZE_MB}m none {shlex.quote(str(self._directory))}"
        self._keeper = subprocess.Popen(  # noqa: S603 - our own command
            ["unshare", "-rm", "sh", "-c", f"{mount} && echo mounted && exec cat"],  # noqa: S607
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        if self._keeper.stdout.readline().strip() != "mounted":
            self.close()
            raise OSError("a mount namespace of our own is not allowed here")

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self._keeper.pid}/root{self._directory}")

    def inside(self, command: Sequence[str]) -> list[str]:
        namespace = ["--target", str(self._keeper.pid), "--user", "--mount", "--preserve-credentials"]
        return ["nsenter", *namespace, f"--wd={Path.cwd()}", "--", *command]

    def fill(self, pid: int) -> None:
        with self._ballast.open("ab") as file, contextlib.suppress(OSError):
            while room := os.statvfs(self.root).f_bavail * os.statvfs(self.root).f_frsize:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), room)

    def free(self, pid: int | None) -> None:
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            if pipe is not None:
                pipe.close()
        self._keeper.kill()
        self._keeper.wait()

    @property
    def _ballast(self) -> Path:
        return self.root / "ballast"


class LimitedDisk:
    """A plain directory; a full disk is a worker that may write no file any more."""

    how = LIMIT

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    @property
    def root(self) -> Path:
        return self._directory

    def inside(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def fill(self, pid: int) -> None:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))

    def free(self, pid: int | None) -> None:
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))

    def close(self) -> None:
        """Nothing is held."""


def disk(directory: Path) -> Disk:
    """The better of the two that is allowed here."""
    if shutil.which("unshare") and shutil.which("nsenter"):
        with contextlib.suppress(OSError):
            return SmallDisk(directory)
    return LimitedDisk(directory)


def newest_files(root: Path, count: int) -> list[Path]:
    """The ``count`` files below ``root`` that were written last."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "LOCK"]
    return sorted(files, key=_written, reverse=True)[:count]


def _written(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def truncate(path: Path, share: float) -> None:
    """Leave only this part of a file."""
    with contextlib.suppress(FileNotFoundError):
        os.truncate(path, int(path.stat().st_size * share))


def delete_below(root: Path) -> None:
    """Delete everything in ``root``, but not ``root`` itself."""
    for path in root.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
