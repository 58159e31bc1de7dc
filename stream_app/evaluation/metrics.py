"""HitRate, NDCG and MRR at 10 of an outcome, by slices, with 95 % bootstrap intervals over users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.evaluation.prequential import PLACES, Outcome
from stream_app.topics import DAY_MS

NAMES = ("ndcg@10", "hit@10", "mrr@10")
RESAMPLES = 1_000
HISTORY = {"0": (0, 1), "1-4": (1, 5), "5-19": (5, 20), "20+": (20, 1 << 62)}
HOUR_MS = DAY_MS // 24
AGE = {
    "under_1_hour": (-(1 << 62), HOUR_MS),
    "1_to_24_hours": (HOUR_MS, DAY_MS),
    "1_to_7_days": (DAY_MS, 7 * DAY_MS + 1),
    "older_than_7_days": (7 * DAY_MS + 1, 1 << 62),
}
"""Content ages in ms, from (included) to (excluded)."""


def gains(outcome: Outcome) -> NDArray[np.float64]:
    """[3, T]: NDCG, hit and reciprocal rank of each target, in the order of NAMES."""
    hit = outcome.ranks < np.minimum(PLACES, outcome.candidates)
    place = np.where(hit, outcome.ranks, 0)
    return np.stack([hit / np.log2(place + 2.0), hit.astype(np.float64), hit / (place + 1.0)])


def slices(outcome: Outcome) -> dict[str, NDArray[np.bool_]]:
    """Masks [T] by name: any, strong, history:…, age:…."""
    log, at = outcome.log, outcome.at
    age = log.now[at] - log.catalogue.created_at[log.contents[at]]
    history = log.history[at]
    masks = {"any": np.ones(len(at), np.bool_), "strong": log.strong[at]}
    masks |= {f"history:{name}": (history >= lo) & (history < hi) for name, (lo, hi) in HISTORY.items()}
    masks |= {f"age:{name}": (age >= lo) & (age < hi) for name, (lo, hi) in AGE.items()}
    return masks


@dataclass(frozen=True)
class Estimate:
    """A mean over targets, and its interval."""

    mean: float
    low: float
    high: float


class Bootstrap:
    """Resamples users: the same draws for every scorer, so that differences are paired."""

    def __init__(self, outcome: Outcome, seed: int = 0) -> None:
        _, self._users = np.unique(outcome.log.users[outcome.at], return_inverse=True)
        count = int(self._users.max(initial=-1)) + 1
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / max(count, 1)), RESAMPLES)
        self._draws = draws.astype(np.float64)  # [B, U], how often each user was drawn

    def estimate(self, values: NDArray[np.float64], mask: NDArray[np.bool_]) -> Estimate | None:
        """Mean and 95 % interval of ``values`` [T] over the targets in ``mask``; None without any."""
        if not mask.any():
            return None
        users, count = self._users[mask], self._draws.shape[1]
        sums = self._draws @ np.bincount(users, values[mask], count)
        sizes = self._draws @ np.bincount(users, minlength=count).astype(np.float64)
        means = sums[sizes > 0] / sizes[sizes > 0]
        low, high = np.percentile(means, (2.5, 97.5)) if len(means) else (np.nan, np.nan)
        return Estimate(float(values[mask].mean()), float(low), float(high))


def coverage(outcome: Outcome) -> float:
    """Part of the contents that could have been recommended which were, at least once."""
    possible = int(outcome.log.published[outcome.at[-1]]) if len(outcome.at) else 0
    shown = np.unique(outcome.lists)
    return float((shown >= 0).sum() / max(possible, 1))


def novelty(outcome: Outcome) -> float:
    """Mean surprise in bits: -log2 of the share of users who knew what was recommended."""
    return float(outcome.surprise.mean()) if len(outcome.at) else 0.0


def intra_list_diversity(outcome: Outcome, vectors: NDArray[np.float32]) -> float:
    """Mean of 1 - cosine over the pairs of each list; ``vectors`` [N, D]."""
    total, lists = 0.0, 0
    for start in range(0, len(outcome.lists), 1024):
        rows = outcome.lists[start : start + 1024]
        there = rows >= 0
        v = vectors[np.maximum(rows, 0)] * there[:, :, None]  # [T, 10, D]
        whole = v.sum(axis=1)
        size = there.sum(axis=1)
        pairs = size * (size - 1)
        cosines = np.einsum("td,td->t", whole, whole) - np.einsum("tkd,tkd->t", v, v)
        some = pairs > 0
        total += float((1 - cosines[some] / pairs[some]).sum())
        lists += int(some.sum())
    return total / max(lists, 1)
