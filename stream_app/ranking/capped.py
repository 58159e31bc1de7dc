"""The cap on authors beyond the candidates, and for the cheap list (NumPy).

:func:`stream_app.ranking.diversify.diversify` keeps to the cap among a user's candidates. One author may have
written all of them, while others wrote what comes after: then the slate is chosen once more without that
author's other contents. Where nobody else is left the cap gives way.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from stream_app.ranking.choose import Chosen
from stream_app.ranking.device import SortedRows
from stream_app.ranking.excluded import Excluded


def crowded(chosen: Chosen, authors: NDArray[np.uint64], cap: int) -> NDArray[np.int64]:
    """Users whose slates have more than ``cap`` contents of one author, though others may be had; ``authors``
    [N] are the index's, 0 = unknown."""
    if not cap or not chosen.full.any():
        return np.zeros(0, np.int64)
    written = np.sort(_authors(chosen.rows, authors), axis=1)  # [B, k]
    over = (written[:, cap:] == written[:, :-cap]) & (written[:, cap:] != 0)
    return np.flatnonzero(chosen.full & over.any(axis=1))


def others_of(
    rows: NDArray[np.int64], authors: NDArray[np.uint64], by_author: SortedRows, cap: int
) -> Excluded:
    """For users with slates of ``rows`` [B, k]: what each author with more than ``cap`` places wrote beside
    the contents at the first ``cap`` of them."""
    users, without = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for user, written in enumerate(_authors(rows, authors)):
        names, counts = np.unique(written[written != 0], return_counts=True)
        for name in names[counts > cap]:
            everything = by_author.all_of(np.array([name], np.uint64))[1]
            without.append(np.setdiff1d(everything, rows[user, written == name][:cap]))
            users.append(np.full(len(without[-1]), user))
    return Excluded(np.concatenate(users), np.concatenate(without))


def fill(chosen: Chosen, user: int, more: Chosen, place: int) -> None:
    """Give ``user`` the slate at ``place`` of ``more``, and after it what only the slate so far has."""
    new = more.rows[place][more.rows[place] >= 0]
    kept = np.flatnonzero(~np.isin(chosen.rows[user], new))[: chosen.rows.shape[1] - len(new)]
    for field in fields(Chosen):
        of_all, of_more = getattr(chosen, field.name), getattr(more, field.name)
        if of_all.ndim == 1:
            of_all[user] = of_more[place]
        else:
            of_all[user] = np.concatenate([of_more[place, : len(new)], of_all[user, kept]])


def cheapest(
    rows: NDArray[np.int64], authors: NDArray[np.uint64], cap: int, count: int
) -> tuple[NDArray[np.int64], bool]:
    """The first ``count`` of ``rows`` [n], best first, that keep to the cap on their ``authors`` [n]; where
    they are fewer, the first of the rest as well, and True."""
    if not cap:
        return rows[:count], False
    order = np.argsort(authors, kind="stable")
    nth = np.empty(len(rows), np.int64)  # of its author's, from 0
    nth[order] = np.arange(len(rows)) - np.searchsorted(authors[order], authors[order])
    over = (authors != 0) & (nth >= cap)
    gives_way = len(rows) - np.count_nonzero(over) < min(count, len(rows))
    return np.concatenate([rows[~over], rows[over]])[:count], bool(gives_way)


def _authors(rows: NDArray[np.int64], authors: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Of ``rows``, which may be -1: their authors, 0 there."""
    return np.where(rows < 0, np.uint64(0), authors[rows])
