"""A/B arms: which ranker serves whom. The same user is always in the same arm, on every worker."""

from __future__ import annotations

from collections.abc import Sequence

from stream_app.hashing import key64
from stream_app.settings import Arm


class Arms:
    """Users in arms, by their shares."""

    def __init__(self, arms: Sequence[Arm], salt: str) -> None:
        """Another ``salt`` draws other users."""
        self._arms = tuple(arms)
        self._salt = salt.encode() + b"\x00"
        total, ends = sum(arm.share for arm in arms), []
        end = 0.0
        for arm in arms:
            end += arm.share / total * 2.0**64
            ends.append(end)
        self._ends = ends[:-1]

    def of(self, user_id: bytes) -> Arm:
        """The user's arm; reserved keys, which begin with a zero byte, are in the first."""
        if user_id.startswith(b"\x00"):
            return self._arms[0]
        place = key64(self._salt + user_id)
        return self._arms[sum(place >= end for end in self._ends)]
