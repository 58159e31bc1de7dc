"""Recommend, score, then update: one pass over a log, full ranking of everything published by then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from stream_app.evaluation.log import EvaluationLog
from stream_app.evaluation.scorer import Scorer, touches

PLACES = 10
WARM_UP = 0.2
"""First part of the events, which is learned from and not scored."""
FROZEN_AFTER = 0.8
"""Part of the events after which a frozen scorer takes nothing in any more."""
SHOWN = 500
"""Events between two looks at the progress."""


@dataclass(frozen=True)
class Outcome:
    """What became of T targets, in the log's order."""

    log: EvaluationLog
    at: NDArray[np.int64]
    """[T], events"""
    ranks: NDArray[np.int64]
    """[T], how many candidates stood above the target; as many as there were where it was not recommended"""
    candidates: NDArray[np.int64]
    """[T], how many there were, the target among them"""
    lists: NDArray[np.int32]
    """[T, 10], contents recommended, best first; -1 where there were fewer"""
    surprise: NDArray[np.float64]
    """[T], mean of -log2 of the share of users so far who had engaged with each recommended content"""


def run(
    log: EvaluationLog,
    scorer: Scorer,
    *,
    begin: float = WARM_UP,
    end: float = 1.0,
    frozen_after: float = 1.0,
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> Outcome:
    """Run ``scorer`` over the first ``end`` of the events, scoring from ``begin`` on (parts of all).

    From ``frozen_after`` on it gets no more updates. ``progress`` gets 0 to 1.
    """
    events, first, frozen = (int(len(log) * part) for part in (end, begin, frozen_after))
    lot = np.random.default_rng(seed).permutation(len(log.catalogue))
    lots = np.concatenate([lot, lot]).astype(np.int32)
    starts = np.random.default_rng(seed + 1).integers(0, max(len(lot), 1), len(log))
    withdrawn = log.catalogue.withdrawn if (log.catalogue.withdrawn < np.iinfo(np.int64).max).any() else None
    seen: dict[int, list[int]] = {}
    readers = np.zeros(len(log.catalogue))
    scored = np.flatnonzero(log.touch[:events])
    scored = scored[scored >= first]
    ranks, candidates = np.zeros(len(scored), np.int64), np.zeros(len(scored), np.int64)
    lists = np.full((len(scored), PLACES), -1, np.int32)
    surprise = np.zeros(len(scored))
    place = 0
    for index, touch in enumerate(islice(touches(log), events)):
        known = seen.setdefault(touch.user, [])
        if place < len(scored) and scored[place] == index:
            count = int(log.published[index])
            scores = np.array(scorer.score(touch.now, touch.user, count), np.float64)
            if scores.shape != (count,) or np.isnan(scores).any():  # nothing stands above what is no number
                raise AssertionError(f"{type(scorer).__name__} gave no number for some of {count} contents")
            scores[known] = -np.inf
            gone = 0
            if withdrawn is not None:
                out = withdrawn[:count] <= touch.now
                scores[out], gone = -np.inf, int(out.sum())
            order = lots[starts[index] : starts[index] + count]
            ranks[place] = _rank(scores, order, touch.content)
            candidates[place] = count - len(known) - gone
            best = _best(scores, order)
            lists[place, : len(best)] = best
            surprise[place] = _surprise(readers[best], len(seen))
            place += 1
        if touch.first:
            known.append(touch.content)
            readers[touch.content] += 1
        if index < frozen:
            scorer.update(touch)
        if index % SHOWN == 0:
            progress(index / max(events, 1))
    return Outcome(log, scored, ranks, candidates, lists, surprise)


def _rank(scores: NDArray[np.float64], order: NDArray[np.int32], target: int) -> int:
    """How many stand above the target; equals are ordered by their lots."""
    own = scores[target]
    if own == -np.inf:
        return len(scores)
    above = int(np.count_nonzero(scores > own))
    equal = scores == own
    return above + int(np.count_nonzero(order[equal] < order[target]))


def _best(scores: NDArray[np.float64], order: NDArray[np.int32]) -> NDArray[np.int64]:
    """The contents of the first places."""
    if len(scores) > PLACES:
        least = np.partition(scores, len(scores) - PLACES)[len(scores) - PLACES]
        above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        if (wanted := PLACES - len(above)) < len(equal):
            equal = equal[np.argpartition(order[equal], wanted - 1)[:wanted]]
        among = np.concatenate([above, equal])
    else:
        among = np.arange(len(scores))
    among = among[scores[among] > -np.inf]
    best: NDArray[np.int64] = among[np.lexsort((order[among], -scores[among]))]
    return best


def _surprise(readers: NDArray[np.float64], users: int) -> float:
    return float(np.mean(-np.log2((readers + 1) / (users + 1)))) if len(readers) else 0.0
