"""Every method over one log, and what is said of them: figures, intervals and paired differences."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_app.errors import ConfigurationError
from stream_app.evaluation import methods, metrics, prequential
from stream_app.evaluation.log import EvaluationLog
from stream_app.evaluation.methods import FUSION, Tuned
from stream_app.evaluation.metrics import NAMES, Bootstrap, Estimate
from stream_app.evaluation.prequential import FROZEN_AFTER, Outcome
from stream_app.evaluation.scorer import Maker, World

Say = Callable[[str, float], None]
"""Gets a line and how much is done of it, 0 to 1."""


class Figures(msgspec.Struct):
    """One method on one slice of the targets."""

    targets: int
    means: dict[str, float]
    """By the names of the metrics"""
    intervals: dict[str, tuple[float, float]]
    """95 %, over users"""


class Row(msgspec.Struct):
    """One method on the whole log."""

    name: str
    product: bool
    personal: bool
    parameters: dict[str, float]
    slices: dict[str, Figures]
    """By the names of :func:`stream_app.evaluation.metrics.slices`, those with targets"""
    coverage: float
    novelty_bits: float
    diversity: float | None
    """Mean 1 - cosine within the lists; None without vectors"""
    online: Figures | None
    """On the targets after FROZEN_AFTER"""
    frozen: Figures | None
    """There, without any update since"""
    online_gain: tuple[float, float, float] | None
    """NDCG@10, online less frozen: mean and interval of the paired difference"""
    curve: list[float | None]
    """NDCG@10 along the log, in POINTS parts of equal length"""


POINTS = 40


@dataclass
class Comparison:
    """The rows, and the gains behind them for paired differences."""

    log: EvaluationLog
    seed: int
    rows: list[Row] = field(default_factory=list)
    ranked_ms: dict[str, float] = field(default_factory=dict)
    """Mean wall time of scoring one user and taking in what came since; never twice the same"""
    _gains: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    _bootstrap: Bootstrap | None = None

    def add(self, name: str, outcome: Outcome) -> NDArray[np.float64]:
        """Keep the gains of an outcome, [3, T]."""
        if self._bootstrap is None:
            self._bootstrap, self._masks = Bootstrap(outcome, self.seed), metrics.slices(outcome)
        self._gains[name] = metrics.gains(outcome)
        return self._gains[name]

    def figures(self, name: str) -> dict[str, Figures]:
        """Of one method, by slice."""
        return {
            slice_: found
            for slice_, mask in self._masks.items()
            if (found := figures(self._gains[name], mask, self._bootstrap_of_all)) is not None
        }

    def difference(self, name: str, other: str, slice_: str) -> dict[str, tuple[float, float, float]]:
        """Mean and interval of ``name`` less ``other``, paired, by metric."""
        less = self._gains[name] - self._gains[other]
        found = {
            m: self._bootstrap_of_all.estimate(less[i], self._masks[slice_]) for i, m in enumerate(NAMES)
        }
        return {metric: (e.mean, e.low, e.high) for metric, e in found.items() if e is not None}

    def best_baseline(self, slice_: str, *, personal: bool = True) -> Row | None:
        """With the largest NDCG@10 on a slice; among those that know no person where not ``personal``."""
        rows = [r for r in self.rows if not r.product and (personal or not r.personal) and slice_ in r.slices]
        return max(rows, key=lambda r: r.slices[slice_].means["ndcg@10"], default=None)

    @property
    def _bootstrap_of_all(self) -> Bootstrap:
        if self._bootstrap is None:
            raise AssertionError("nothing has been added yet")
        return self._bootstrap


def compare(
    log: EvaluationLog,
    world: World,
    products: Mapping[str, Maker],
    baselines: Sequence[str],
    seed: int,
    say: Say,
    done: Callable[[Row], None] = lambda _: None,
    *,
    frozen: bool = True,
) -> Comparison:
    """Tune the ``baselines``, then run them and the ``products`` over the log.

    ``done`` gets each row as it is finished. Raises ConfigurationError when the log has no targets.
    """
    first = int(len(log) * prequential.WARM_UP)
    if not log.touch[first:].any():
        raise ConfigurationError(
            f"the log has {len(log):,} events that fit ({log.skipped:,} do not), and no target after the "
            f"first {prequential.WARM_UP:.0%}: nobody touches a content that somebody else has touched before"
        )
    entrants = [methods.tuned(name, log, world, seed, say) for name in baselines if name != FUSION]
    if FUSION in baselines and len(entrants) >= methods.FUSED:
        entrants.append(methods.fused(entrants, log, world, seed))
    comparison = Comparison(log, seed)
    for name, make in products.items():
        entrants.append(Tuned(name, make, {}, 0.0, personal=True))
    for entrant in entrants:
        began = time.perf_counter()
        outcome = prequential.run(log, entrant.make(world), seed=seed, progress=partial(say, entrant.name))
        comparison.ranked_ms[entrant.name] = 1000 * (time.perf_counter() - began) / len(outcome.at)
        row = _row(comparison, entrant, outcome, world, entrant.name in products)
        if frozen:
            _freeze(row, entrant, outcome, world, seed, partial(say, f"{entrant.name}, frozen"))
        comparison.rows.append(row)
        done(row)
    return comparison


def figures(gains: NDArray[np.float64], mask: NDArray[np.bool_], bootstrap: Bootstrap) -> Figures | None:
    """Figures of the targets in ``mask`` [T]; None without any."""
    if not mask.any():
        return None
    found: dict[str, Estimate] = {}
    for name, values in zip(NAMES, gains, strict=True):
        if (estimate := bootstrap.estimate(values, mask)) is not None:
            found[name] = estimate
    means = {name: estimate.mean for name, estimate in found.items()}
    return Figures(int(mask.sum()), means, {name: (e.low, e.high) for name, e in found.items()})


def _row(comparison: Comparison, entrant: Tuned, outcome: Outcome, world: World, product: bool) -> Row:
    gains = comparison.add(entrant.name, outcome)
    places = outcome.at * POINTS // len(outcome.log)
    return Row(
        name=entrant.name,
        product=product,
        personal=entrant.personal,
        parameters=entrant.parameters,
        slices=comparison.figures(entrant.name),
        coverage=metrics.coverage(outcome),
        novelty_bits=metrics.novelty(outcome),
        diversity=metrics.intra_list_diversity(outcome, world.vectors) if world.vectors.shape[1] else None,
        online=None,
        frozen=None,
        online_gain=None,
        curve=[float(gains[0, here].mean()) if (here := places == p).any() else None for p in range(POINTS)],
    )


def _freeze(
    row: Row, entrant: Tuned, online: Outcome, world: World, seed: int, progress: Callable[[float], None]
) -> None:
    """Run once more without updates after FROZEN_AFTER, and compare on what follows."""
    outcome = prequential.run(
        online.log,
        entrant.make(world),
        begin=FROZEN_AFTER,
        frozen_after=FROZEN_AFTER,
        seed=seed,
        progress=progress,
    )
    if not len(outcome.at):
        return
    bootstrap, all_ = Bootstrap(outcome, seed), np.ones(len(outcome.at), np.bool_)
    with_updates = metrics.gains(online)[:, online.at >= outcome.at[0]]
    without = metrics.gains(outcome)
    row.online, row.frozen = figures(with_updates, all_, bootstrap), figures(without, all_, bootstrap)
    gain = bootstrap.estimate(with_updates[0] - without[0], all_)
    row.online_gain = None if gain is None else (gain.mean, gain.low, gain.high)
