"""One partition of ``recommendations`` on disk, as a replica answers from it.

A value is the slate's Kafka timestamp (ms, 8 bytes, little-endian) and its JSON as it came. What the topic's
retention has taken from the log is nobody's slate any more, so the age of each must be known here.
"""

from __future__ import annotations

import struct
import time

from rocksdict import BottommostLevelCompaction, CompactOptions

from stream_app.interests.store import PartitionStore
from stream_app.recommendations.slate import COLD_START_USER

_HEAD = struct.Struct("<q")
SWEEP_RECORDS = 2_000


def stamped(slate: bytes, timestamp_ms: int) -> bytes:
    """A value of the store."""
    return _HEAD.pack(timestamp_ms) + slate


class SlateStore(PartitionStore):
    """user → slate, with the position of the topic that they stand at."""

    def slate(self, user: bytes, oldest_ms: int) -> bytes | None:
        """JSON of the user's slate; None when there is none since ``oldest_ms``. The cold-start slate is
        of any age: it is written when it changes. Raises StateDamagedError."""
        (value,) = self.get([user])
        if value is None or (_HEAD.unpack_from(value)[0] < oldest_ms and user != COLD_START_USER):
            return None
        return value[_HEAD.size :]

    def sweep(self, oldest_ms: int) -> None:
        """Delete the slates from before ``oldest_ms``. Nothing else writes meanwhile."""
        after = b""
        while True:
            found = list(self.scan(after, SWEEP_RECORDS))
            old = [(user, None) for user, value in found if _HEAD.unpack_from(value)[0] < oldest_ms]
            if old:
                self.write(old, self.position)
            if len(found) < SWEEP_RECORDS:
                return
            after = found[-1][0]

    def compact(self) -> None:
        """Rewrite the files without what was deleted; reading goes on meanwhile."""
        everything = CompactOptions()
        everything.set_bottommost_level_compaction(BottommostLevelCompaction.force_optimized())
        try:
            self._db.compact_range(None, None, everything)
        except Exception as error:  # rocksdict raises nothing more specific
            raise self._unwritable(error) from error

    def reopen(self) -> None:
        """Close and open: RocksDB's manifest names users whose files are gone. Nobody reads meanwhile."""
        self.close()
        self._db = self._open()
        self._purged = time.monotonic()

    def is_due(self, seconds: float) -> bool:
        """Whether the files were last cleaned so long ago."""
        return time.monotonic() - self._purged >= seconds

    @property
    def held(self) -> int:
        """Slates, by RocksDB's estimate."""
        return max(0, int(self._db.property_int_value("rocksdb.estimate-num-keys") or 0) - 1)
