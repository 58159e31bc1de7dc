"""A micro-batch of users as arrays: what their interest records say, ready for the device (NumPy).

Ragged histories are padded to the longest of the batch. Padding has weight zero everywhere, so that a
user's numbers do not depend on whom they are padded with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.hashing import model_code
from stream_app.interests.record import APPLIED, INTERACTION, InterestRecord, joined, states
from stream_app.ranking.excluded import Excluded
from stream_app.settings import Settings

DAY_MS = 86_400_000.0

RowsOf = Callable[[NDArray[np.uint64]], NDArray[np.int64]]
"""Content keys → rows of the index, -1 where unknown; any shape."""


@dataclass(frozen=True)
class UserBatch:
    """B users with at most R recent interactions each. A cold-start user's weights are all zero."""

    personal: NDArray[np.bool_]
    """[B], whether the user's own interests count; False means cold start"""
    interests: NDArray[np.float32]
    """[B, D], S / |S|; zero for cold start"""
    norms: NDArray[np.float32]
    """[B], |S|; one for cold start"""
    excluded: Excluded
    """What must not be recommended to them"""
    recent_rows: NDArray[np.int64]
    """[B, R], row of each recent interaction's content; 0 where padded or unknown"""
    recent_share: NDArray[np.float32]
    """[B, R], w · 2^(-(t_ref - t)/h): the interaction's weight in S; 0 unless applied and known"""
    recent_match: NDArray[np.float32]
    """[B, R], w / w_max · 2^(-(now - t)/h) in 0..1; 0 unless applied, known and positive"""
    recent_actions: NDArray[np.uint16]
    """[B, R], action codes"""


@dataclass(frozen=True)
class Interest:
    """How interest records are read: the constants of one configuration and encoder."""

    dimensions: int
    model: int
    half_life_ms: float
    min_mass: float
    top_weight: float
    """w_max: the largest configured weight, at which one fresh engagement is a full match"""

    @classmethod
    def of(cls, settings: Settings, model: str, dimensions: int) -> Interest:
        """From the settings; ``model`` is the encoder's id."""
        top = max((a.weight for a in settings.events.actions), default=0.0)
        half_life_ms = settings.interests.half_life_days * DAY_MS
        return cls(
            dimensions, model_code(model), half_life_ms, settings.ranking.min_mass, top if top > 0 else 1.0
        )

    def is_personal(self, record: InterestRecord | None, now_ms: int) -> bool:
        """Whether a record says enough, about vectors of this encoder, to rank by it at ``now_ms``.

        Its mass is decayed from t_ref to now, so a user who has been away for long starts afresh.
        """
        if record is None or record.header["model"] != self.model or len(record.vector) != self.dimensions:
            return False
        age = max(now_ms - record.t_ref, 0)
        return record.mass * 2.0 ** (-age / self.half_life_ms) >= self.min_mass and bool(record.vector.any())

    def gather(
        self,
        records: Sequence[InterestRecord | None],
        now_ms: int,
        rows_of: RowsOf,
        without: Excluded,
    ) -> UserBatch:
        """The batch of these users (None = nothing is known of the user)."""
        b = len(records)
        personal = np.array([self.is_personal(r, now_ms) for r in records], np.bool_)
        interests = np.zeros((b, self.dimensions), np.float32)
        for i, record in enumerate(records):
            if record is not None and personal[i]:
                interests[i] = record.vector
        norms = np.sqrt(np.einsum("bd,bd->b", interests, interests))
        norms[~personal] = 1.0
        interests /= norms[:, None]

        rings = [r.interactions if r is not None else _NO_INTERACTIONS for r in records]
        lengths = np.array([len(ring) for ring in rings], np.int64)
        flat = joined(rings)
        users = np.repeat(np.arange(b), lengths)
        slots = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        t_refs = np.array([r.t_ref if r is not None else 0 for r in records], np.int64)

        rows = rows_of(flat["content"])
        counts = (states(flat) == APPLIED) & (rows >= 0) & personal[users]
        weight = np.where(counts, flat["weight"], np.float32(0))
        share = weight * np.exp2((flat["time"] - t_refs[users]) / self.half_life_ms)
        age = np.maximum(now_ms - flat["time"], 0)
        match = np.clip(weight / self.top_weight, 0, 1) * np.exp2(-age / self.half_life_ms)

        shape = (b, max(int(lengths.max(initial=0)), 1))
        batch = UserBatch(
            personal=personal,
            interests=interests,
            norms=norms,
            excluded=without,
            recent_rows=np.zeros(shape, np.int64),
            recent_share=np.zeros(shape, np.float32),
            recent_match=np.zeros(shape, np.float32),
            recent_actions=np.zeros(shape, np.uint16),
        )
        batch.recent_rows[users, slots] = np.maximum(rows, 0)
        batch.recent_share[users, slots] = share
        batch.recent_match[users, slots] = match
        batch.recent_actions[users, slots] = flat["action"]
        return batch


_NO_INTERACTIONS: NDArray[np.void] = np.zeros(0, INTERACTION)
