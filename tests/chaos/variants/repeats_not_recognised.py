"""Broken on purpose: an event that stands in its user's record already is taken for a new one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.interests import update
from stream_app.interests.slab import Slab
from tests.chaos.variants import broken


def nothing_known(
    _slab: Slab, _rows: NDArray[np.int64], _group: NDArray[np.int64], events: NDArray[np.uint64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    broken.ran()
    return np.zeros(len(events), np.bool_), np.zeros(len(events), np.int64)


def break_it() -> None:
    update._known = nothing_known  # what is broken


if __name__ == "__main__":
    broken.main(break_it)
