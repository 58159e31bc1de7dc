"""Which model rankers are to use: three are judged by every choice, before it is learned from. Pure NumPy.

*online* learns, *published* is what rankers use, *before* is what they used before that. All three say how
likely the choice was among the same candidates; their losses are compared pairwise, as running means over
a window, from the time on at which the published model became what it is.
"""

from __future__ import annotations

import copy
from enum import Enum

import numpy as np

from stream_app.learning.model import Floats, SoftmaxRanker
from stream_app.learning.online import Choice

PLACES = 10
WORST = 50.0
"""Nats; no loss counts as more, and a loss that is no number as that much."""
LATELY = 4
"""The last ones of so many equal parts of the fewest choices that a model is judged by."""


class Verdict(Enum):
    """What is to become of the published model."""

    KEEP = "kept"
    """The online model is not good enough, or too little has been seen"""
    PUBLISH = "published"
    """The online model takes over"""
    ROLL_BACK = "rolled_back"
    """The one before it takes over again"""
    RESTART = "restarted"
    """The online model has gone astray: it begins again as the published one"""


class Mean:
    """Running mean that reaches back over about ``window`` values; all count alike at first."""

    def __init__(self, window: int) -> None:
        self.count, self.value = 0, 0.0
        self._window = window

    def add(self, value: float) -> None:
        """Take in one more."""
        self.count += 1
        self.value += (value - self.value) / min(self.count, self._window)


class Shadow:
    """The models and how they compare."""

    def __init__(self, window: int, margin: float, least: int) -> None:
        """``margin`` in nats: what a model's mean loss may be above another's without being worse;
        ``least`` choices must have been seen before one is judged."""
        self.published: SoftmaxRanker | None = None
        self.before: SoftmaxRanker | None = None
        self.losses: dict[str, Mean] = {}
        """By model: ``online``, ``published``, ``before``"""
        self.gains: dict[str, Mean] = {}
        """NDCG@10 likewise, of the content chosen among its candidates"""
        self._window, self._margin, self._least = window, margin, least
        self._begin_anew()

    def judge(self, choice: Choice) -> None:
        """Take in one choice, as it was before the online model learned from it."""
        among = choice.among
        losses = {"online": self._judged("online", choice, among.scores)}
        for name, model in (("published", self.published), ("before", self.before)):
            if model is not None:
                losses[name] = self._judged(name, choice, model.score(among.features, among.groups))
        self._seen += 1
        if "published" in losses:
            self._ahead.add(losses["published"] - losses["online"])
            self._lately.add(losses["published"] - losses["online"])
        if "before" in losses:
            self._fallen.add(losses["published"] - losses["before"])

    def verdict(self) -> Verdict:
        """What the choices since the last change say."""
        if self.published is None:
            return Verdict.PUBLISH if self._seen >= self._least else Verdict.KEEP
        if self._fallen.count >= self._least and self._fallen.value > self._margin:
            return Verdict.ROLL_BACK
        # what it gained before it went astray must not hide that
        worst = min(self._ahead.value, self._lately.value)
        if self._ahead.count >= self._least and worst >= -self._margin:
            return Verdict.PUBLISH
        if self._ahead.count >= max(self._least, self._window) and self._ahead.value < -self._margin:
            return Verdict.RESTART
        return Verdict.KEEP

    def resume(self, model: SoftmaxRanker) -> None:
        """``model`` is the published one, from an earlier life."""
        self.published = model

    def publish(self, model: SoftmaxRanker) -> None:
        """A copy of ``model`` takes over."""
        self.before, self.published = self.published, copy.deepcopy(model)
        self._take_over("before", "published")
        self._take_over("published", "online")
        self._begin_anew()

    def roll_back(self) -> bool:
        """The model before takes over; returns whether the online one is worse than it, too.

        Raises LookupError without one.
        """
        if self.before is None:
            raise LookupError("there is no model before the published one")
        worse = self._fallen.value - self._ahead.value > self._margin
        self.published, self.before = self.before, None
        self._take_over("published", "before")
        self.losses.pop("before", None)
        self.gains.pop("before", None)
        self._begin_anew()
        return worse

    def restart(self) -> SoftmaxRanker:
        """A copy of the published model, which becomes the online one. Raises LookupError without any."""
        if self.published is None:
            raise LookupError("no model has been published")
        self._ahead, self._lately = Mean(self._window), Mean(self._least // LATELY + 1)
        self._take_over("online", "published")
        return copy.deepcopy(self.published)

    def _begin_anew(self) -> None:
        self._seen, self._fallen = 0, Mean(self._window)
        self._ahead, self._lately = Mean(self._window), Mean(self._least // LATELY + 1)

    def _take_over(self, name: str, former: str) -> None:
        for means in (self.losses, self.gains):
            if former in means:
                means[name] = copy.copy(means[former])

    def _judged(self, name: str, choice: Choice, scores: Floats) -> float:
        """Loss of one model, noted."""
        loss, gain = judged(scores, choice)
        self.losses.setdefault(name, Mean(self._window)).add(loss)
        self.gains.setdefault(name, Mean(self._window)).add(gain)
        return loss


def judged(scores: Floats, choice: Choice) -> tuple[float, float]:
    """Loss in nats, at most WORST, and NDCG@10 of ``scores`` [n] for a choice. The loss knows what was
    noticed, as learning does, or a model would be judged by another aim than its own."""
    own, among = float(scores[choice.place]), scores[choice.allowed].astype(np.float64)
    offsets = choice.among.offsets[choice.allowed]
    if not np.isfinite(among).all():
        return WORST, 0.0
    noticed = np.zeros(len(scores)) if choice.noticed is None else choice.noticed.astype(np.float64)
    logits = among + offsets + noticed[choice.allowed]
    top = logits.max()
    loss = float(top + np.log(np.exp(logits - top).sum())) - own - float(noticed[choice.place])
    above = float(np.exp(offsets[among > own]).sum())
    return min(loss, WORST), float(1 / np.log2(above + 2)) if above < PLACES else 0.0
