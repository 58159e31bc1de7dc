"""What is found wrong in a run."""

from __future__ import annotations

from collections import Counter

SHOWN = 5
"""Of each kind, so many are told in words."""


class Findings:
    """Collects what is wrong: counts, and the first of each kind in words."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.differences: list[str] = []
        self._told: Counter[str] = Counter()

    def add(self, kind: str, what: str, count: int = 1) -> None:
        """``count`` more of this kind."""
        self.counts[kind] += count
        self._told[kind] += 1
        if self._told[kind] <= SHOWN:
            self.differences.append(f"{kind}: {what}")
