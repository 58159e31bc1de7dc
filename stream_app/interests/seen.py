"""The longer memory of what a user has had: 32-bit fingerprints of the contents that left the seen keys.

Four bytes a content instead of eight, up to ``interests.seen_long`` of them; a user who has had no more than
``interests.seen`` contents has none. A content that the user never had is taken for one of l with probability
l / 2^32: 5e-7 at 2,048, so one such user in twenty misses one of 100,000 contents.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LOWER = np.uint64(0xFFFFFFFF)


def fingerprints(keys: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """The upper halves of content keys, which are hashes."""
    return (keys >> np.uint64(32)).astype(np.uint32)


def keys_of(remembered: NDArray[np.uint32]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first and the last content key that each of these fingerprints [l] stands for."""
    first = remembered.astype(np.uint64) << np.uint64(32)
    return first, first | _LOWER
