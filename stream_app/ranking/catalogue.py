"""What the learned ranker reads of all contents at one time: computed once for everybody, on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_app.content.index import ContentIndex
from stream_app.learning.activity import AGE, Catalogue, catalogue_features
from stream_app.learning.features import SHRINK
from stream_app.learning.habits import age_bands
from stream_app.ranking.device import DeviceIndex
from stream_app.ranking.largest import largest
from stream_app.ranking.popularity import ContentStatistics

POPULAR = [0, 2, 4, 6]
"""Half-lives whose most engaged contents are everybody's candidates: 5 minutes, an hour, a day, 2 weeks."""


@dataclass(frozen=True)
class LiveCatalogue:
    """N rows of the index, as of one time."""

    now: int
    """ms, stream time"""
    created_at: NDArray[np.int64]
    """[N], ms; on the host, like the next two"""
    authors: NDArray[np.uint64]
    """[N]"""
    readers: NDArray[np.float32]
    """[2, N], users who engaged with the content, and those who did so strongly"""
    shared: Tensor
    """[N, S], :func:`catalogue_features`"""
    bands: Tensor
    """[N], band of the content's age"""
    damped: Tensor
    """[2, N], (readers + SHRINK)^-½"""
    mean: Tensor
    """[D], of the vectors"""
    popular: Tensor
    """[G], rows that are everybody's candidates, each once"""


def live_catalogue(
    index: ContentIndex,
    mirror: DeviceIndex,
    statistics: ContentStatistics,
    readers: NDArray[np.float32],
    available: NDArray[np.bool_],
    now_ms: int,
    each: int,
) -> LiveCatalogue:
    """The catalogue at ``now_ms``. ``readers`` [2, ≥ N]; ``available`` [N] says what may be recommended;
    ``each`` contents of every kind are everybody's candidates.

    The statistics have the half-lives of :mod:`stream_app.learning.activity`.
    """
    high = index.high
    activity = statistics.activity(now_ms)
    created_at, authors = index.created_by(now_ms), index.authors[:high].copy()
    readers = readers[:, :high].copy()
    shared = catalogue_features(
        Catalogue(
            now=now_ms,
            engaged=activity.engaged,
            weighted=activity.weighted,
            engaged_at=activity.engaged_at,
            readers=readers[0],
            created_at=created_at,
            authors=authors,
            vectors=np.zeros((high, 0), np.float32),  # those are on the device
            mean=np.zeros(0, np.float32),
        )
    )
    keys = index.keys[:high]
    candidates = [_top(values, keys, available, each) for values in (*activity.engaged[POPULAR], created_at)]
    device = mirror.device
    return LiveCatalogue(
        now=now_ms,
        created_at=created_at,
        authors=authors,
        readers=readers,
        shared=torch.from_numpy(shared).to(device),
        bands=torch.from_numpy(age_bands(shared[:, AGE])).to(device),
        damped=torch.from_numpy((readers + np.float32(SHRINK)) ** np.float32(-0.5)).to(device),
        mean=mirror.mean,
        popular=torch.from_numpy(np.unique(np.concatenate(candidates))).to(device),
    )


def _top(
    values: NDArray[np.float32] | NDArray[np.int64],
    keys: NDArray[np.uint64],
    available: NDArray[np.bool_],
    count: int,
) -> NDArray[np.int64]:
    """Available rows with the largest values above 0, ``count`` of them at most."""
    rows = np.flatnonzero(available & (values > 0))
    return rows[largest(values[rows], keys[rows], count)]
