"""The baselines by name, their grids, and how they are tuned: on the warm-up alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from stream_app.evaluation import metrics, prequential
from stream_app.evaluation.baselines import DecayedPopularity, Newest, Popularity, Random
from stream_app.evaluation.collaborative import Bpr, ContentProfile, ItemKnn
from stream_app.evaluation.fusion import Fusion
from stream_app.evaluation.log import EvaluationLog
from stream_app.evaluation.scorer import Maker, World

TUNED_FROM = 0.5
"""Part of the warm-up that is only learned from when hyper-parameters are compared on the rest of it."""
MOST_CONTENTS_KNN = 20_000
"""Item-kNN keeps 4 N² bytes: 1.6 GB at this many contents, beyond which it is left out."""
FUSION = "rank fusion"
FUSED = 3
FUSION_CONSTANTS = (2.0, 10.0, 60.0)


@dataclass(frozen=True)
class Method:
    """A baseline and the values that are tried for each of its parameters."""

    make: Callable[..., Any]
    grid: Mapping[str, Sequence[float]]
    personal: bool
    seeded: bool = False
    """Its constructor takes a seed."""

    def choices(self) -> list[dict[str, float]]:
        """Every combination."""
        return [
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]


BASELINES = {
    "random": Method(Random, {}, personal=False),
    "newest": Method(Newest, {}, personal=False),
    "popularity": Method(Popularity, {}, personal=False),
    "decayed popularity": Method(
        DecayedPopularity, {"half_life_h": (1 / 6, 1 / 3, 1, 6, 24, 168)}, personal=False
    ),
    "item-kNN": Method(
        ItemKnn,
        {"fading": (2.0, 5.0, 50.0), "exponent": (0.25, 0.4, 0.5), "half_life_h": (1.0, 24.0, 1e9)},
        personal=True,
    ),
    "BPR": Method(Bpr, {"rate": (0.03, 0.06, 0.1, 0.15)}, personal=True, seeded=True),
    "content profile": Method(ContentProfile, {"half_life_days": (1.0, 7.0, 30.0)}, personal=True),
}


@dataclass(frozen=True)
class Tuned:
    """A baseline with the parameters that were best on the warm-up."""

    name: str
    make: Maker
    parameters: dict[str, float]
    warm_up_ndcg: float
    personal: bool


def tuned(
    name: str, log: EvaluationLog, world: World, seed: int, progress: Callable[[str, float], None]
) -> Tuned:
    """The best choice of a baseline's grid. ``progress`` gets a line and 0 to 1."""
    method = BASELINES[name]
    choices, make = method.choices(), partial(method.make, seed=seed) if method.seeded else method.make
    best: tuple[float, dict[str, float]] = (-math.inf, {})
    for number, choice in enumerate(choices):
        progress(f"tuning {name}", number / len(choices))
        found = _on_warm_up(partial(make, **choice), log, world, seed)
        if found > best[0]:
            best = (found, choice)
    return Tuned(name, partial(make, **best[1]), best[1], best[0], method.personal)


def fused(members: Sequence[Tuned], log: EvaluationLog, world: World, seed: int) -> Tuned:
    """Reciprocal-rank fusion of the FUSED that are best on the warm-up, with the best constant."""
    best = sorted(members, key=lambda m: -m.warm_up_ndcg)[:FUSED]
    makes = {k: partial(Fusion, members=[member.make for member in best], k=k) for k in FUSION_CONSTANTS}
    found = {k: _on_warm_up(make, log, world, seed) for k, make in makes.items()}
    k = max(found, key=found.__getitem__)
    return Tuned(FUSION, makes[k], {"k": k}, found[k], any(member.personal for member in best))


def fitting(world: World) -> list[str]:
    """The baselines that this log's size and vectors allow."""
    left_out = {"item-kNN"} if world.contents > MOST_CONTENTS_KNN else set()
    left_out |= {"content profile"} if not world.vectors.shape[1] else set()
    return [name for name in BASELINES if name not in left_out]


def _on_warm_up(make: Maker, log: EvaluationLog, world: World, seed: int) -> float:
    end = prequential.WARM_UP
    outcome = prequential.run(log, make(world), begin=TUNED_FROM * end, end=end, seed=seed)
    return float(np.mean(metrics.gains(outcome)[0])) if len(outcome.at) else 0.0
