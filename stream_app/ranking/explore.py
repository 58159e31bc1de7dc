"""Exploration: a few places for contents that nobody ranked there, drawn by lot, with their propensities.

A ranker that only shows what it believes in never learns what it was wrong about, and a new content without
engagements stays without. So ``ranking.explore`` gives the last places of a slate away. The policy:

1. Everybody's pool are the contents that may be recommended and are among the newest, or rise most
   (engagement of the last hour or so beyond what the last day's pace gives), or are least engaged with:
   ``ranking.explore_from`` of each kind.
2. A user's lots are those of the pool that may be recommended to the user and are not ranked above. Of an
   author who has room for r more (``ranking.author_cap``), fewer than are drawn, r lots stay, by a draw of
   their own: n lots in all.
3. m of the n are drawn, without replacement, each set of m as likely as any other. So a content's
   *propensity*, the probability of being shown in this slate, is m / n; of an author with a lots of which r
   stay it is r / a of that.

The draw is a hash of salt, user, content and a span of stream time: the same wherever and whenever it is
repeated. Within a span a user's explored contents stay, unless they leave the pool or a newcomer's lot is
smaller; so exploration makes a slate news once a span, and not at every ranking. NumPy alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.content.index import ContentIndex
from stream_app.hashing import key64
from stream_app.ranking.popularity import HOUR_MS, ContentStatistics
from stream_app.settings import Ranking

SHORT_H, LONG_H = 1.0, 24.0
"""Half-lives between which a trend shows: the nearest configured ones are read."""
_MIX = tuple(np.uint64(n) for n in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_SHIFTS = tuple(np.uint64(n) for n in (30, 27, 31))
_NO_LOT = np.iinfo(np.uint64).max
_SECOND = np.uint64(0x9E3779B97F4A7C15)  # so that what stays and what is drawn are two draws


@dataclass(frozen=True)
class Explorable:
    """The pool at one time; [G]."""

    rows: NDArray[np.int64]
    """Of the index, ascending"""
    keys: NDArray[np.uint64]
    authors: NDArray[np.uint64]
    """0 = unknown"""
    catalogue: NDArray[np.uint64]
    """[N], the authors of all rows of the index"""


@dataclass(frozen=True)
class Drawn:
    """What is explored for B users, at most m contents each."""

    rows: NDArray[np.int64]
    """[B, m], rows of the index; -1 where the lots of a user did not suffice"""
    propensity: NDArray[np.float64]
    """[B, m], of each of them"""


def explorable(
    index: ContentIndex,
    statistics: ContentStatistics,
    available: NDArray[np.bool_],
    now_ms: int,
    each: int,
) -> Explorable:
    """The pool at ``now_ms``; ``available`` [N] says what may be recommended, ``each`` how many of a kind."""
    rows = np.flatnonzero(available)
    short, long = (statistics.nearest_half_life(hours) for hours in (SHORT_H, LONG_H))
    pace = float(statistics.half_lives_h[short] / statistics.half_lives_h[long])
    recent, usual = (statistics.engagement(half_life, now_ms)[rows] for half_life in (short, long))
    trend = recent.astype(np.float64) - pace * usual
    longest = int(np.argmax(statistics.half_lives_h))
    # equals by key: the same pool on every worker
    lot = index.keys[rows].astype(np.float64) * 2.0**-64
    quiet = -(2.0**-20) * lot - statistics.engagement(longest, now_ms)[rows]
    rising = np.flatnonzero(trend > 0)
    kinds = (
        rows[_most(index.created_by(now_ms)[rows] + lot, each)],
        rows[rising[_most((trend + 2.0**-20 * lot)[rising], each)]],
        rows[_most(quiet, each)],
    )
    pool = np.unique(np.concatenate(kinds))
    authors = index.authors[: len(available)].copy()
    return Explorable(pool, index.keys[pool], authors[pool], authors)


def places(ranking: Ranking) -> int:
    """m: how many places of a slate are for exploration; at least one where it is on, at most half."""
    if not ranking.explore:
        return 0
    return min(max(1, round(ranking.explore * ranking.slate_size)), ranking.slate_size // 2)


def draw(
    ranking: Ranking,
    pool: Explorable,
    users: list[bytes],
    excluded: tuple[NDArray[np.int64], NDArray[np.int64]],
    ranked: NDArray[np.int64],
    now_ms: int,
) -> Drawn:
    """Draw for B ``users`` (their ids), m = :func:`places` > 0.

    ``excluded`` are (user, row) pairs, [X] each. ``ranked`` [B, k] are the rows of the slates, -1 where
    there is none; the last m of them may have to go.
    """
    m, cap = places(ranking), ranking.author_cap
    above = ranked[:, : ranking.slate_size - m]
    may = np.ones((len(users), len(pool.rows)), np.bool_)  # [B, G]
    for who, rows in (excluded, (np.repeat(np.arange(len(above)), above.shape[1]), above.ravel())):
        place = np.searchsorted(pool.rows, rows)
        known = place < len(pool.rows)
        known[known] = pool.rows[place[known]] == rows[known]
        may[who[known], place[known]] = False
    lots = _mixed(_spans(ranking, users, now_ms)[:, None] ^ pool.keys)
    share = np.ones(may.shape)
    if cap:
        authors = np.where(above < 0, np.uint64(0), pool.catalogue[above])  # [B, k - m]
        room = cap - (authors[:, :, None] == pool.authors).sum(axis=1)  # [B, G], at least 0
        share = _share_that_stays(lots, may, room, pool.authors, m)
    lots = _mixed(lots ^ _SECOND)
    lots[~may] = _NO_LOT
    m = min(m, len(pool.rows))
    order = np.argsort(lots, axis=1)[:, :m]
    n = may.sum(axis=1)
    rows = np.where(np.arange(m) < n[:, None], pool.rows[order], -1)
    drawn = np.minimum(m, n) / np.maximum(n, 1)
    return Drawn(rows, drawn[:, None] * np.take_along_axis(share, order, axis=1))


def _share_that_stays(
    lots: NDArray[np.uint64],
    may: NDArray[np.bool_],
    room: NDArray[np.int64],
    authors: NDArray[np.uint64],
    m: int,
) -> NDArray[np.float64]:
    """[B, G], the part of the author's lots that stays, where there is ``room`` [B, G] for fewer than ``m``
    of them; the others leave ``may`` [B, G]."""
    share = np.ones(may.shape)
    _, inverse, counts = np.unique(authors, return_inverse=True, return_counts=True)
    short = (room < np.minimum(m, counts[inverse])).any(axis=0) & (authors != 0)
    for author in np.unique(authors[short]):
        (own,) = np.nonzero(authors == author)
        count = may[:, own].sum(axis=1, keepdims=True)  # [B, 1]
        left = np.maximum(room[:, own[:1]], 0)
        thin = (left < m) & (left < count)
        if thin.any():
            place = np.where(may[:, own], lots[:, own], _NO_LOT).argsort(axis=1).argsort(axis=1)
            may[:, own] &= ~thin | (place < left)
            share[:, own] = np.where(thin, left / np.maximum(count, 1), 1.0)
    return share


def _spans(ranking: Ranking, users: list[bytes], now_ms: int) -> NDArray[np.uint64]:
    """[B], a hash of salt, user and span. Each user's spans begin at another time, so that they do not all
    have news at once."""
    length = max(int(ranking.explore_span_h * HOUR_MS), 1)
    salt = ranking.explore_salt.encode() + b"\x00"
    found = np.zeros(len(users), np.uint64)
    for i, user in enumerate(users):
        span = (now_ms + key64(salt + user) % length) // length
        found[i] = key64(salt + span.to_bytes(8, "little", signed=True) + user)
    return found


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): all bits depend on all."""
    bits = (bits ^ (bits >> _SHIFTS[0])) * _MIX[0]
    bits = (bits ^ (bits >> _SHIFTS[1])) * _MIX[1]
    mixed: NDArray[np.uint64] = bits ^ (bits >> _SHIFTS[2])
    return mixed


def _most(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Places of the ``count`` largest values, of all where there are fewer."""
    if len(values) <= count:
        return np.arange(len(values))
    return np.argpartition(-values, count - 1)[:count]
