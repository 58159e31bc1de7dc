"""A ranker that learns while it goes: every first engagement is a step, and only then counted. NumPy only.

The same code learns in the trainer and in the evaluation: who feeds it differs, and where rows come from.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stream_app.learning.activity import Catalogue, catalogue_features, log_minutes
from stream_app.learning.candidates import Pool, pool_of
from stream_app.learning.coengagement import CoEngagement
from stream_app.learning.counts import EngagementCounts
from stream_app.learning.exposure import Exposure
from stream_app.learning.features import BANDS, NAMES, bands, candidate_features
from stream_app.learning.habits import AgeHabits
from stream_app.learning.history import STRONG_WEIGHT, UserHistory
from stream_app.learning.model import Floats, Rates, SoftmaxRanker
from stream_app.learning.trainer import OnlineTrainer

MEAN_CHANGES = 100
"""The vectors' mean is taken anew once one in so many contents has been replaced."""


@dataclass(frozen=True)
class Contents:
    """Columns of N rows, which their owner fills and changes; the arrays stay the same."""

    created_at: NDArray[np.int64]
    """[N], ms"""
    authors: NDArray[np.uint64]
    """[N], key64(author); 0 = unknown"""
    vectors: NDArray[np.float32]
    """[N, D], unit vectors, zero in free rows and for contents without one; D may be 0"""
    live: NDArray[np.bool_] | None = None
    """[N], rows that hold a content; None: all that are asked for"""
    max_future_ms: int = 0
    """Where ``live`` is given: contents created later than this after now cannot be chosen yet"""
    known: NDArray[np.bool_] | None = None
    """[N], rows whose ``created_at`` was given: others may be older. None: all"""

    def created_by(self, now: int, count: int) -> NDArray[np.int64]:
        """[count], ms: when they were created as seen at ``now``: what may be older is never ahead of it."""
        created = self.created_at[:count]
        if self.known is None:
            return created
        return np.where(self.known[:count], created, np.minimum(created, now))


@dataclass(frozen=True)
class Engagement:
    """What a user did with a content, and what was known of the user before it."""

    row: int
    time: int
    """ms, event time"""
    weight: float
    first: bool
    """The user had not engaged with this content before"""
    history: UserHistory
    known: NDArray[np.int64]
    """[k], rows of contents that the user has engaged with"""
    counts: bool = True
    """It stands for the user in the content's counts, which are of people and not of acts"""


@dataclass(frozen=True)
class Shown:
    """The n contents that a user was shown and chose from."""

    rows: NDArray[np.int64]
    """[n], each once"""
    positions: NDArray[np.uint16]
    """[n], 0 is on top"""
    penalties: Floats
    """[n], fatigue: what the ranker takes from their scores"""


@dataclass(frozen=True)
class Candidates:
    """n contents that a user could choose from, and what the model makes of them."""

    rows: NDArray[np.int64]
    """[n]"""
    features: Floats
    """[n, len(NAMES)]"""
    offsets: Floats
    """[n], logarithm of how many contents each stands for"""
    groups: tuple[int, int]
    scores: Floats
    """[n], of the model as it was"""


@dataclass(frozen=True)
class Choice:
    """What a step was made of."""

    among: Candidates
    allowed: NDArray[np.bool_]
    """[n], False for what the user knew already, and for what was not there"""
    place: int
    """Of the content chosen"""
    noticed: Floats | None = None
    """[n], logarithm of how readily each was noticed; None: nothing is known to have been shown"""


class OnlineLearning:
    """Model, habits, exposure, co-engagement and counts of N contents, kept event by event."""

    def __init__(
        self,
        contents: Contents,
        together: CoEngagement,
        *,
        hidden: int = 64,
        seed: int = 0,
        candidates: int | None = None,
        without: Collection[str] = (),
        rates: Rates | None = None,
    ) -> None:
        """With ``candidates`` no list is longer, and where there are more contents the catalogue's features
        are renewed once in N / ``candidates`` engagements; None: all contents, always current. Features
        named in ``without`` say nothing: that shows what they are worth."""
        self.trainer = OnlineTrainer(SoftmaxRanker(NAMES, BANDS, hidden, seed, rates), seed)
        self.together = together
        self.habits = AgeHabits()
        self.exposure = Exposure()
        self.counts = EngagementCounts(len(contents.created_at))
        self._contents = contents
        self._candidates = candidates
        self._without = [NAMES.index(name) for name in without]
        self._random = np.random.default_rng(seed)
        self._sum: Floats = np.zeros(contents.vectors.shape[1], np.float32)
        self._summed = self._members = self._replaced = 0  # rows, those of them that count, rows since
        self._current: _Current | None = None
        self._changes = 0

    def resume(self, model: SoftmaxRanker, habits: AgeHabits, exposure: Exposure, loss: float) -> None:
        """Go on with what was learned in an earlier life, where the mean loss was ``loss``."""
        self.trainer.model, self.habits, self.trainer.loss = model, habits, loss
        self.exposure = exposure

    def begin_again(self, model: SoftmaxRanker | None) -> None:
        """Go on with ``model``, or with an untrained one; habits that are no numbers are forgotten."""
        hidden = self.trainer.model.parameters["bias"].size
        self.trainer.model = SoftmaxRanker(NAMES, BANDS, hidden) if model is None else model
        self.trainer.loss = None
        if not (np.isfinite(self.habits.counts).all() and np.isfinite(self.habits.usual)):
            self.habits = AgeHabits()

    def contents_changed(self, rows: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Take note that these ``rows`` have changed, and that those in ``other`` belong to another content
        now, or to none: what was counted there is forgotten (``together`` is not touched)."""
        self.counts.forget(other)
        self._replaced += int(np.count_nonzero(rows < self._summed))
        if self._replaced > self._summed // MEAN_CHANGES:
            self._summed = self._members = self._replaced = 0
            self._sum[:] = 0
        self._current = None

    def consider(
        self,
        now: int,
        history: UserHistory,
        count: int,
        chosen: int | None = None,
        shown: NDArray[np.int64] | None = None,
    ) -> Candidates:
        """What a user could choose from at ``now`` (ms) among the rows below ``count``, the rows ``shown``
        and ``chosen`` (last) among it where only some are looked at."""
        current = self._at(now, count)
        if current.pool is None:
            rows, offsets, only = np.arange(count), np.zeros(count, np.float32), None
        else:
            rows, offsets = current.pool.draw(history, self.together, chosen, self._random, shown)
            only = rows
        features = candidate_features(
            current.shared, history, current.catalogue, self.together, self.habits, only
        )
        features[:, self._without] = 0
        groups = bands(history, now)
        scores = self.trainer.model.score(features, groups)
        return Candidates(rows, features, offsets, groups, scores)

    def engage(
        self,
        engagement: Engagement,
        now: int,
        count: int,
        among: Candidates | None = None,
        shown: Shown | None = None,
    ) -> Choice | None:
        """Learn from an engagement, then count it. ``among`` is what :meth:`consider` has just said of the
        same user and time, if it was asked; ``shown`` is what the user chose from, if that is known. Returns
        the choice that a step was made of, if any.

        Raises LearningError as :meth:`OnlineTrainer.learn`; the engagement is counted all the same.
        """
        try:
            # the first engagement of all publishes: nobody chose
            if engagement.first and engagement.weight > 0 and self.counts.engaged_at[engagement.row]:
                return self._step(engagement, now, count, among, shown)
            return None
        finally:
            self.associate(engagement, now)
            if engagement.counts:
                self.counts.count(engagement.row, engagement.time, engagement.weight)
                self._changes += 1

    def associate(self, engagement: Engagement, now: int) -> None:
        """Learn what is engaged with together and how old contents are by then; no step, no count."""
        row, history = engagement.row, engagement.history
        others = history.rows != row
        strong = engagement.weight >= STRONG_WEIGHT
        if engagement.first and engagement.weight >= 0:
            age = now - self._contents.created_at[row : row + 1]
            self.habits.learn(float(log_minutes(age)[0]))
            self.together.learn(row, strong, history.rows[others], history.strong[others])
        elif strong:
            place = np.flatnonzero(~others)
            # one that the user knew already is engaged with strongly for the first time
            if len(place) and not history.strong[place[0]]:
                self.together.strengthen(row, history.rows[others], history.strong[others])

    def recount(self, row: int, time: int, weight: float, *, counts: bool) -> None:
        """An earlier engagement counts from now on, or no longer does."""
        self.counts.count(row, time, weight, undo=not counts)
        self._changes += 1

    def _step(
        self, engagement: Engagement, now: int, count: int, among: Candidates | None, shown: Shown | None
    ) -> Choice:
        row = engagement.row
        if among is None:
            rows = None if shown is None else shown.rows
            among = self.consider(now, engagement.history, count, row, rows)
        if len(among.rows) == count:
            allowed = self._available(now, count)
            allowed[engagement.known] = False
            place = row
        else:
            allowed = ~np.isin(among.rows, engagement.known)
            place = len(among.rows) - 1
        allowed[place] = True
        if shown is None:
            self.trainer.learn(among.features, among.scores, allowed, among.groups, place, among.offsets)
            return Choice(among, allowed, place)
        return self._learn_shown(Choice(among, allowed, place), shown)

    def _learn_shown(self, choice: Choice, shown: Shown) -> Choice:
        """The step where some of the candidates were shown, and so noticed more readily; then one for the
        exposure, with the errors of the scores as they were."""
        among, allowed, place = choice.among, choice.allowed, choice.place
        _, at, of = np.intersect1d(among.rows, shown.rows, assume_unique=True, return_indices=True)
        noticed = np.zeros(len(among.rows), np.float32)
        noticed[at] = self.exposure.offsets(shown.positions[of]) - shown.penalties[of]
        offsets = among.offsets + noticed
        self.trainer.learn(among.features, among.scores + noticed, allowed, among.groups, place, offsets)
        logits = np.where(allowed, among.scores + offsets, -np.inf)
        odds = np.exp(logits - logits.max())
        errors = odds / odds.sum()
        errors[place] -= 1
        self.exposure.learn(shown.positions[of], errors[at])
        return replace(choice, noticed=noticed)

    def _available(self, now: int, count: int) -> NDArray[np.bool_]:
        """[count], rows that could be recommended to somebody."""
        contents = self._contents
        if contents.live is None:
            return np.ones(count, np.bool_)
        available: NDArray[np.bool_] = contents.live[:count].copy()
        available &= contents.created_by(now, count) <= now + contents.max_future_ms
        return available

    def _at(self, now: int, count: int) -> _Current:
        """The catalogue, as current as it has to be."""
        current = self._current
        late = 0 if self._candidates is None else count // self._candidates
        if (
            current is None
            or len(current.shared) != count
            or self._changes > late
            or (late == 0 and current.catalogue.now != now)
        ):
            current = self._current = self._renewed(now, count)
            self._changes = 0
        if current.catalogue.now == now:
            return current
        return replace(current, catalogue=replace(current.catalogue, now=now))

    def _renewed(self, now: int, count: int) -> _Current:
        contents = self._contents
        if count > self._summed:
            own = contents.vectors[self._summed : count]
            if contents.live is not None:
                own = own[contents.live[self._summed : count]]
            self._sum += own.sum(axis=0)
            self._members += int(np.count_nonzero(own.any(axis=1)))
            self._summed = count
        engaged, weighted = self.counts.at(now, count)
        catalogue = Catalogue(
            now=now,
            engaged=engaged,
            weighted=weighted,
            engaged_at=self.counts.engaged_at[:count],
            readers=self.together.users[:count],
            created_at=contents.created_by(now, count),
            authors=contents.authors[:count],
            vectors=contents.vectors[:count],
            mean=self._sum / np.float32(max(self._members, 1)),
        )
        shared = catalogue_features(catalogue)
        pool = None
        if self._candidates is not None and count > self._candidates:
            pool = pool_of(shared, self._available(now, count), self._candidates)
        return _Current(catalogue, shared, pool)


@dataclass(frozen=True)
class _Current:
    catalogue: Catalogue
    shared: Floats
    pool: Pool | None
    """Where not all contents are candidates"""
