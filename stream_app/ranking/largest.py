"""The largest of many values, the same ones on every worker (NumPy)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def largest(
    values: NDArray[np.float32] | NDArray[np.int64], keys: NDArray[np.uint64], count: int
) -> NDArray[np.int64]:
    """Places of the ``count`` largest ``values`` [n], of all where there are fewer, largest first; equal ones
    in the order of their ``keys`` [n]."""
    places = np.arange(len(values))
    if 0 < count < len(values):
        least = np.partition(values, -count)[-count]
        equal = np.flatnonzero(values == least)
        above = np.flatnonzero(values > least)
        first = np.argsort(keys[equal])[: count - len(above)]
        places = np.concatenate([above, equal[first]])
    return places[np.lexsort((keys[places], -values[places]))][:count]
