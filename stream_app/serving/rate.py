"""How many requests a second are answered: a token bucket (pure arithmetic)."""

from __future__ import annotations


class Rate:
    """Admits ``per_s`` requests a second on average, and bursts of one second's worth."""

    def __init__(self, per_s: float) -> None:
        """0 admits everything."""
        self._per_s = per_s
        self._most = max(1.0, per_s)
        self._left = self._most
        self._at: float | None = None

    def wait_s(self, now_s: float) -> float:
        """0 when a request at ``now_s`` (seconds that never go back) is admitted, and counts; else the
        seconds until one would be.

        >>> rate = Rate(2)
        >>> [rate.wait_s(0.0), rate.wait_s(0.0), rate.wait_s(0.0), rate.wait_s(0.5)]
        [0.0, 0.0, 0.5, 0.0]
        """
        if self._per_s == 0:
            return 0.0
        if self._at is not None:
            self._left = min(self._most, self._left + (now_s - self._at) * self._per_s)
        self._at = now_s
        if self._left < 1.0:
            return (1.0 - self._left) / self._per_s
        self._left -= 1.0
        return 0.0
