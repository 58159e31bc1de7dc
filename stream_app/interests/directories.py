"""Directories of partitions that have moved away: kept for a while, since partitions come back, then removed,
since nobody would take erased users out of them any more."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from rocksdict import Options, Rdict

from stream_app.settings import Settings

log = logging.getLogger(__name__)


class LeftDirectories:
    """The state directories under ``interests.data_dir`` that this worker does not serve. Blocking."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives seconds that never go back."""
        self._parent = Path(settings.interests.data_dir)
        self._prefix = f"{settings.group('interests')}-"
        self._delay_s = settings.interests.cleanup_delay_s
        self._clock = clock
        self._since: dict[int, float] = {}

    def remove(self, served: Collection[int]) -> list[int]:
        """Remove those that have not been among the ``served`` partitions for ``interests.cleanup_delay_s``,
        as far as they were looked at meanwhile; their numbers. What another worker has open stays."""
        now = self._clock()
        left = {number: path for number, path in self._ours() if number not in served}
        self._since = {number: self._since.get(number, now) for number in left}
        due = [number for number, since in self._since.items() if now - since >= self._delay_s]
        return [number for number in due if self._removed(left[number])]

    def _ours(self) -> Iterator[tuple[int, Path]]:
        if self._parent.is_dir():
            for path in self._parent.iterdir():
                number = path.name.removeprefix(self._prefix)
                if number.isdecimal() and path.name == f"{self._prefix}{int(number)}" and path.is_dir():
                    yield int(number), path

    def _removed(self, path: Path) -> bool:
        try:
            Rdict.destroy(str(path), Options(raw_mode=True))  # which refuses where somebody has it open
            if path.exists():  # with files that are not RocksDB's
                shutil.rmtree(path)
        except Exception as error:  # noqa: BLE001 - rocksdict raises nothing more specific
            log.warning("%s, of a partition that moved away, cannot be removed: %s", path, error)
            return False
        log.info("removed %s: its partition moved away %.0f s ago", path, self._delay_s)
        return True
