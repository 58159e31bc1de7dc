"""One partition's users on disk: RocksDB behind the slab, always at or behind the changelog.

Values and the changelog position that they stand at go into one WriteBatch, so the database is
consistent at every crash; RocksDB's own write-ahead log is off, because the changelog is the log.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rocksdict import AccessType, BlockBasedOptions, Cache, Options, Rdict, WriteBatch, WriteOptions

from stream_app.errors import StateDirectoryError
from stream_app.settings import Interests

log = logging.getLogger(__name__)

POSITION_KEY = b"\x00position"
"""Reserved: user ids never start with a control character."""

BLOCK_CACHE_BYTES = 16 << 20
OPEN_ATTEMPTS = 20
OPEN_RETRY_S = 0.25
REBUILT = "Delete the directory: it is rebuilt from the changelog"


class PartitionStore:
    """The RocksDB database of one partition. Blocking; large calls belong in a thread."""

    def __init__(self, directory: Path, write_buffer_bytes: int = Interests().write_buffer_bytes) -> None:
        """Open or create. Raises StateDirectoryError when it is locked or cannot be written."""
        self._directory = directory
        self._write_buffer_bytes = write_buffer_bytes
        self._cache = Cache(BLOCK_CACHE_BYTES)
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True
        self._db = self._open()

    def _open(self) -> Rdict:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateDirectoryError(f"cannot make {self._directory}: {error.strerror}") from error
        for attempt in range(OPEN_ATTEMPTS):
            try:
                return Rdict(
                    str(self._directory), options=self._options(), access_type=AccessType.read_write()
                )
            except Exception as error:  # rocksdict raises nothing more specific
                text = str(error)
                locked = "/LOCK:" in text
                if locked and attempt < OPEN_ATTEMPTS - 1:
                    time.sleep(OPEN_RETRY_S)  # a worker that is just leaving still holds it
                elif text.startswith("Corruption") and attempt < OPEN_ATTEMPTS - 1:
                    # the changelog has everything: start over from it
                    log.warning("%s is damaged (%s): it is rebuilt from the changelog", self._directory, text)
                    shutil.rmtree(self._directory)
                else:
                    advice = (
                        "Two workers need two directories: set interests.data_dir for each"
                        if locked
                        else REBUILT
                    )
                    raise StateDirectoryError(f"cannot open {self._directory}: {text}. {advice}") from error
        raise AssertionError("the last attempt returns or raises")

    def _options(self) -> Options:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(self._write_buffer_bytes)
        options.set_max_write_buffer_number(2)
        options.set_keep_log_file_num(2)
        table = BlockBasedOptions()
        table.set_block_cache(self._cache)
        table.set_bloom_filter(10.0, False)
        options.set_block_based_table_factory(table)
        return options

    @property
    def position(self) -> int:
        """Changelog position that the values stand at: the offset to go on reading from."""
        value = self._db.get(POSITION_KEY)
        return int.from_bytes(value, "little") if value is not None else 0

    def get(self, users: Sequence[bytes]) -> list[bytes | None]:
        """Their records, None where there is none. Raises StateDirectoryError on a damaged file."""
        try:
            values: list[bytes | None] = self._db.get(list(users)) if users else []
        except Exception as error:  # rocksdict raises nothing more specific
            raise self._unreadable(error) from error
        return values

    def write(self, changed: Sequence[tuple[bytes, bytes | None]], position: int) -> None:
        """Put (None: delete) these users and the position, all or nothing."""
        batch = WriteBatch(raw_mode=True)
        for user, value in changed:
            if value is None:
                batch.delete(user)
            else:
                batch.put(user, value)
        batch.put(POSITION_KEY, position.to_bytes(8, "little"))
        self._db.write(batch, self._unlogged)

    def scan(self, after: bytes, limit: int) -> Iterator[tuple[bytes, bytes]]:
        """Up to ``limit`` users in key order, those after ``after``; fewer only at the end.

        Raises StateDirectoryError on a damaged file.
        """
        items = self._db.iter()
        items.seek(max(after, POSITION_KEY) + b"\x00")  # the position comes before every user
        for _ in range(limit):
            if not items.valid():
                break
            yield items.key(), items.value()
            items.next()
        try:
            items.status()  # what cannot be read looks like the end
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StateDirectoryError:
        return StateDirectoryError(f"cannot read {self._directory}: {error}. {REBUILT}")

    def clear(self) -> None:
        """Start over with an empty database (its position has left the changelog)."""
        self._db.close()
        shutil.rmtree(self._directory)
        self._db = self._open()

    def close(self, *, flush: bool = True) -> None:
        """Close; with ``flush`` what was written is durable, so that the next start reads little."""
        if flush:
            self._db.flush()
        self._db.close()
