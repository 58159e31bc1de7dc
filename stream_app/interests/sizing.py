"""How many records of a batch one transaction can take, told before they are computed: the slab has their
outcome before it is known how large it is."""

from __future__ import annotations

from collections.abc import Sequence

from stream_app.kafka.records import Record

RECORD_BYTES = 256
"""For a content's statistics, or the record itself where it is passed on."""


class OutputSize:
    """What a partition's batches come to in bytes: a record of state a key, and something for each record.
    That is the most for usual producers; how much of it comes true is learned from batch to batch."""

    def __init__(self, row_bytes: int) -> None:
        """``row_bytes``: the largest record of state."""
        self._row_bytes = row_bytes
        self._share = 0.5  # of the estimate that came true lately; above one where the key is not the user
        self._estimate = 0

    def fitting(self, records: Sequence[Record], most_bytes: int) -> int:
        """How many of the records, from the first, stay within ``most_bytes``; at least one."""
        count = len(records)
        while True:
            keyed = {record.key for record in records[:count]}
            keyless = sum(record.key is None for record in records[:count]) if None in keyed else 0
            self._estimate = self._row_bytes * (len(keyed) + keyless) + RECORD_BYTES * count
            size = self._share * self._estimate
            if size <= most_bytes or count <= 1:
                return count
            count = max(1, int(count * most_bytes / size))

    def were(self, size: int) -> None:
        """What came of the records that fitted last had ``size`` bytes."""
        self._share = max(size / self._estimate, self._share / 2)
