"""The longer memory of what a user has had: 32-bit fingerprints of the contents that left the seen keys.

Four bytes a content instead of eight, up to ``interests.seen_long`` of them; a user who has had less than
``interests.seen`` contents has none. A content that the user never had is taken for one with probability
l / 2^32 for l fingerprints: 5e-7 at 2,048, one user in twenty at whose slate one of 100,000 contents is
missing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fingerprints(keys: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """The upper halves of content keys, which are hashes."""
    return (keys >> np.uint64(32)).astype(np.uint32)


class Fingerprints:
    """Fingerprints of a catalogue, sorted, so that many users' memories are looked up quickly."""

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        """``keys`` [N], content keys by row; 0 where a row is free."""
        found = fingerprints(keys)
        self._rows: NDArray[np.int64] = np.argsort(found, kind="stable")
        self._rows = self._rows[keys[self._rows] != 0]
        self._sorted = found[self._rows]

    def pairs(self, remembered: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where ``remembered`` [l] meets the catalogue: places in it, and the rows there, in pairs."""
        first = np.searchsorted(self._sorted, remembered, "left")
        counts = np.searchsorted(self._sorted, remembered, "right") - first
        places = np.repeat(np.arange(len(remembered)), counts)
        nth = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        return places, self._rows[first[places] + nth]
