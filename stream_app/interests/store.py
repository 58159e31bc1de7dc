"""One partition's users on disk: RocksDB behind the slab, always at or behind the changelog.

Values and the changelog position that they stand at go into one WriteBatch, so the database is
consistent at every crash; RocksDB's own write-ahead log is off, because the changelog is the log.

With the position stand the changelog's topic id and the time at which the position was its end:
another topic of the same name, or one whose tombstones may have been compacted away since, would
leave users in the database that are gone. Such a database is cleared, and so is one whose files are
damaged: the changelog has everything.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    BottommostLevelCompaction,
    Cache,
    CompactOptions,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from stream_app.errors import StateDamagedError, StateDirectoryError
from stream_app.settings import Interests

log = logging.getLogger(__name__)

STANDING_KEY = b"\x00position"
"""Reserved: user ids never start with a control character."""

STANDING = struct.Struct("<qq36s")
"""Position; wall-clock ms at which it was the changelog's end; id of the changelog's topic."""

CONDEMNED = "CONDEMNED"
"""A file of this name in the directory: what else is there cannot be read and is not opened again."""

BLOCK_CACHE_BYTES = 16 << 20
LOG_FILE_BYTES = 64 << 10
OPEN_ATTEMPTS = 20
OPEN_RETRY_S = 0.25
DURABLE_INTERVAL_S = 3600.0
"""Without a write-ahead log only what RocksDB has written out survives a kill. It does so when its
buffer is full; where little changes, this often, lest the directory looks long abandoned."""

NOT_DAMAGE = (
    "No space left",
    "Permission denied",
    "Read-only file system",
    "Too many open files",
    "Disk quota",
)
"""What a fresh directory would not cure."""


class PartitionStore:
    """The RocksDB database of one partition. Blocking; large calls belong in a thread.

    While one thread purges, others read, write and close.
    """

    def __init__(self, directory: Path, write_buffer_bytes: int = Interests().write_buffer_bytes) -> None:
        """Open or create. Raises StateDirectoryError when it is locked or cannot be written."""
        self._directory = directory
        self._write_buffer_bytes = write_buffer_bytes
        self._cache = Cache(BLOCK_CACHE_BYTES)
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True
        self._changelog = self._changelog_found = b""
        self.position = 0
        """Changelog position that the values stand at: the offset to go on reading from."""
        self._stood_ms: int | None = None
        self._durable = self._purged = time.monotonic()
        self._files = threading.RLock()
        """Held while files are replaced as a whole, or must all stay."""
        self._handle = threading.RLock()
        """Held while ``_db`` is used, and for the moment in which it is opened anew."""
        self._closed = self._purging = False
        self._db = self._open()
        self._standing()

    def _open(self) -> Rdict:
        if (self._directory / CONDEMNED).exists():
            log.warning("%s could not be read: it is rebuilt from the changelog", self._directory)
            self._remove()
        for attempt in range(OPEN_ATTEMPTS):
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StateDirectoryError(
                    f"cannot make {self._directory}: {error.strerror}; set interests.data_dir to a place "
                    "that can be written"
                ) from error
            try:
                options = self._options()
                return Rdict(
                    str(self._directory),
                    options=options,
                    # not named, it would come with the options that it was last open with: another
                    # write buffer, a cache of its own, and no filter
                    column_families={"default": options},
                    access_type=AccessType.read_write(),
                )
            except Exception as error:  # rocksdict raises nothing more specific
                text = str(error)
                last = attempt == OPEN_ATTEMPTS - 1
                if "/LOCK:" in text:
                    if last:
                        raise StateDirectoryError(
                            f"cannot open {self._directory}: {text}. Two workers need two directories: set "
                            "interests.data_dir for each"
                        ) from error
                    time.sleep(OPEN_RETRY_S)  # a worker that is just leaving still holds it
                elif last or any(cause in text for cause in NOT_DAMAGE):
                    raise self._unwritable(error) from error
                else:
                    # the changelog has everything: start over from it
                    log.warning("%s is damaged (%s): it is rebuilt from the changelog", self._directory, text)
                    self._remove()
        raise AssertionError("the last attempt returns or raises")

    def _remove(self) -> None:
        try:
            shutil.rmtree(self._directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StateDirectoryError(
                f"cannot remove {self._directory}, which is to be rebuilt: {error.strerror}; delete it"
            ) from error

    def _options(self) -> Options:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(self._write_buffer_bytes)
        options.set_max_write_buffer_number(2)
        # RocksDB's own log takes 5 kB a flush, in one file without end unless it is told otherwise
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(LOG_FILE_BYTES)
        options.set_max_manifest_file_size(LOG_FILE_BYTES)
        # vectors and hashes do not compress: with zstd 0.4 % of the size went, for four times the work
        options.set_compression_type(DBCompressionType.none())
        table = BlockBasedOptions()
        table.set_block_cache(self._cache)
        table.set_bloom_filter(10.0, False)
        options.set_block_based_table_factory(table)
        return options

    # -- where it stands

    def resume(self, changelog: str, now_ms: int, trusted_ms: int) -> int:
        """The position to read the changelog on from. ``changelog`` is its topic's id; writes from now
        on belong to it.

        0, and everything is cleared, when the values are another topic's, or their position was the
        changelog's end more than ``trusted_ms`` ago: tombstones after it may be gone by now.
        """
        self._changelog = changelog.encode()
        doubt = None
        if self._stood_ms is not None:
            if self._changelog_found != self._changelog:
                doubt = "its changelog was deleted and created again"
            elif not now_ms - trusted_ms <= self._stood_ms <= now_ms + trusted_ms:
                doubt = f"it has not followed its changelog for {(now_ms - self._stood_ms) / 3_600_000:.1f} h"
        if doubt is not None:
            log.warning("%s is rebuilt from the changelog: %s", self._directory, doubt)
            self.clear()
        return self.position

    def _standing(self) -> None:
        """Learn what the database says of itself."""
        self.position, self._stood_ms, self._changelog_found = 0, None, b""
        try:
            value = self._db.get(STANDING_KEY)
            if value is not None:
                self.position, self._stood_ms, topic = STANDING.unpack(value)
                self._changelog_found = topic.rstrip(b"\0")
        except Exception as error:  # noqa: BLE001 - rocksdict raises nothing more specific
            # unreadable, or of an older layout
            log.warning("%s", self._unreadable(error))
            self.clear()

    # -- users

    def get(self, users: Sequence[bytes]) -> list[bytes | None]:
        """Their records, None where there is none. Raises StateDamagedError."""
        try:
            with self._handle:
                values: list[bytes | None] = self._db.get(list(users)) if users else []
        except Exception as error:  # rocksdict raises nothing more specific
            raise self._unreadable(error) from error
        return values

    def write(
        self, changed: Sequence[tuple[bytes, bytes | None]], position: int, time_ms: int | None = None
    ) -> None:
        """Put (None: delete) these users and the position, all or nothing.

        ``time_ms``: when ``position`` was the changelog's end; now, where none is given. Raises
        StateDirectoryError when it cannot be written.
        """
        batch = WriteBatch(raw_mode=True)
        for user, value in changed:
            if value is None:
                batch.delete(user)
            else:
                batch.put(user, value)
        now_ms = time.time_ns() // 1_000_000
        stood = now_ms if time_ms is None else min(time_ms, now_ms)
        batch.put(STANDING_KEY, STANDING.pack(position, stood, self._changelog))
        try:
            with self._handle:
                self._db.write(batch, self._unlogged)
                if time.monotonic() - self._durable > DURABLE_INTERVAL_S:
                    self._db.flush()
                    self._durable = time.monotonic()
        except Exception as error:  # rocksdict raises nothing more specific
            raise self._unwritable(error) from error
        self.position, self._stood_ms, self._changelog_found = position, stood, self._changelog

    def scan(self, after: bytes, limit: int) -> Iterator[tuple[bytes, bytes]]:
        """Up to ``limit`` users in key order, those after ``after``; fewer only at the end.

        Raises StateDamagedError.
        """
        passing = ReadOptions()
        passing.fill_cache(False)  # or every round would replace what is looked up by what is passed by
        with self._files:  # a database is not closed before its iterators are
            items = self._db.iter(passing)
            items.seek(max(after, STANDING_KEY) + b"\x00")  # the position comes before every user
            for _ in range(limit):
                if not items.valid():
                    break
                yield items.key(), items.value()
                items.next()
            try:
                items.status()  # what cannot be read looks like the end
            except Exception as error:
                raise self._unreadable(error) from error
            finally:
                del items

    # -- the files

    def purge(self) -> None:
        """Leave nothing of users in the files who are deleted by now. Costs a rewrite of the whole database,
        in which others go on; given up when it is closed.

        Of the whole, since RocksDB's log would name the bounds of a smaller range; and opened anew,
        since its manifest names the first and last user of files that are gone.
        """
        everything = CompactOptions()
        everything.set_bottommost_level_compaction(BottommostLevelCompaction.force_optimized())
        with self._files:
            if self._closed:
                return
            self._purging = True
            try:
                self._db.compact_range(None, None, everything)
            except Exception as error:  # rocksdict raises nothing more specific
                if self._closed:
                    return
                raise self._unwritable(error) from error
            finally:
                self._purging = False
            with self._handle:
                if self._closed:
                    return
                try:
                    self._db.close()
                except Exception as error:  # as above
                    raise self._unwritable(error) from error
                self._db = self._open()
            self._purged = time.monotonic()

    def purge_after(self, seconds: float) -> None:
        """Purge if the last time was so long ago."""
        if time.monotonic() - self._purged >= seconds:
            self.purge()

    def clear(self) -> None:
        """Start over with an empty database."""
        with self._files, self._handle:
            with contextlib.suppress(Exception):  # what cannot be written out any more is not wanted either
                self._db.close()
            self._remove()
            self._db = self._open()
            self._standing()

    def close(self) -> None:
        """Close; what was written is durable, so that the next start reads little.

        Raises StateDirectoryError when it cannot be written out; then it stays open.
        """
        try:
            with self._handle:
                self._db.flush()
                self._closed = True
                given_up = self._purging
                if given_up:
                    self._db.cancel_all_background(False)
            with self._files:
                if given_up:
                    del self._db  # close() would flush once more, which is refused by now
                else:
                    self._db.close()
        except Exception as error:  # rocksdict raises nothing more specific
            raise self._unwritable(error) from error

    def _unreadable(self, error: Exception) -> StateDamagedError:
        """Also sees to it that the files are not opened again, lest the error comes back for ever."""
        with contextlib.suppress(OSError):  # then it comes back once more
            (self._directory / CONDEMNED).touch()
        return StateDamagedError(
            f"cannot read {self._directory}: {error}. It is rebuilt from the changelog when it is opened next"
        )

    def _unwritable(self, error: Exception) -> StateDirectoryError:
        return StateDirectoryError(
            f"cannot write {self._directory}: {error}. Free space there, or set interests.data_dir to "
            "another place, and start again: what is missing is read from the changelog"
        )
