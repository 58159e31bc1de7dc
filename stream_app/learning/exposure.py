"""How much more readily users notice what they are shown, by its position. Pure NumPy.

A user can only choose what was noticed. The position-based model of clicks (Craswell et al., 2008) says
that a content is chosen with the product of being noticed at its position and being liked; among several,
the choice is then a softmax over ``s_j + b[position of j]``, and of all other contents over ``s_j`` alone:

    p_j = exp(s_j + b_j) / Σ_k exp(s_k + b_k),      dL/db[i] = Σ over j at i of (p_j - [j = t])

The b are learned together with the scores and used in learning only (as the shallow tower of Zhao et al.,
2019): a content earns nothing by where it stood. They are logarithms of how much more readily a content is
noticed there than one that was not shown, kept within [0, MOST]. The bound is what clipping is to inverse
propensity weights: what was not shown never counts for nothing, or nothing would be learned of the many
contents that are never shown.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.learning.model import Floats

POSITIONS = 32
"""From the last one on all are alike."""
MOST = 8.0
BEGIN = 4.0
"""What is shown on top is noticed 55 times as readily, and what is shown below ``1 / (1 + position)`` of that
(as Joachims et al. assume, 2017), until the stream says more or less. Some curve must be assumed: where the
ranker puts the best on top, what is due to the position and what to the content can hardly be told apart."""
RATE = 0.1
SQUARES = 1.0
"""Adagrad's sum of squares to begin with."""


class Exposure:
    """Logarithms b of how readily each position is noticed."""

    def __init__(self) -> None:
        below = np.log1p(np.arange(POSITIONS, dtype=np.float32))
        self.logs: Floats = np.maximum(BEGIN - below, 0).astype(np.float32)
        """b [POSITIONS]"""
        self.squares: Floats = np.full(POSITIONS, SQUARES, np.float32)
        """Sums of squared gradients"""

    def offsets(self, positions: NDArray[np.integer]) -> Floats:
        """[n], b of each of ``positions`` [n]."""
        at: Floats = self.logs[np.minimum(positions, POSITIONS - 1)]
        return at

    def learn(self, positions: NDArray[np.integer], errors: Floats) -> None:
        """One step: contents shown at ``positions`` [n] had dL/ds ``errors`` [n]."""
        gradient = np.bincount(np.minimum(positions, POSITIONS - 1), errors, POSITIONS).astype(np.float32)
        self.squares += gradient * gradient
        self.logs -= np.float32(RATE) * gradient / np.sqrt(self.squares)
        np.clip(self.logs, 0, MOST, out=self.logs)
