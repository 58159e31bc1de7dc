"""What candidates lose because the user was shown them before, in vain.

See :mod:`stream_app.ranking.device` for the legend, and :mod:`stream_app.learning.shown` for the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_app.learning.shown import ShownContents, fatigue
from stream_app.ranking.users import RowsOf


@dataclass(frozen=True)
class Tired:
    """B users, each with at most M contents that were shown in vain."""

    rows: NDArray[np.int64]
    """[B, M], rows of the index; -1 where padded or not known"""
    penalties: NDArray[np.float32]
    """[B, M], what is taken from their scores"""

    @classmethod
    def of(
        cls, users: Sequence[bytes], shown: ShownContents | None, now: int, strength: float, rows_of: RowsOf
    ) -> Tired:
        """What these users are tired of at ``now`` (ms)."""
        found = [] if shown is None else [shown.tired(user, now) for user in users]
        m = max((len(keys) for keys, _ in found), default=0)
        keys, counts = np.zeros((len(users), m), np.uint64), np.zeros((len(users), m), np.float32)
        padded = np.ones((len(users), m), np.bool_)
        for i, (own_keys, own_counts) in enumerate(found):
            keys[i, : len(own_keys)], counts[i, : len(own_keys)] = own_keys, own_counts
            padded[i, : len(own_keys)] = False
        rows = np.where(padded, -1, rows_of(keys)) if m else np.zeros((len(users), 0), np.int64)
        return cls(rows, fatigue(counts, strength))

    def of_candidates(self, rows: Tensor) -> Tensor:
        """[B, K], what candidates with these ``rows`` [B, K] lose; on their device."""
        own = torch.from_numpy(self.rows).to(rows.device).unsqueeze(1)  # [B, 1, M]
        penalties = torch.from_numpy(self.penalties).to(rows.device).unsqueeze(1)
        return ((rows.unsqueeze(2) == own) * penalties).sum(dim=2)
