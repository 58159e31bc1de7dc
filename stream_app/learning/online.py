"""A ranker that learns while it goes: from every first engagement, which is only then counted. NumPy only.

The same code learns in the trainer and in the evaluation: who feeds it differs, and where rows come from.

Engagements are learned from in batches: consecutive ones of the same second of stream time, at most BATCH
(:func:`same_batch`). A batch sees the model, the counts and the catalogue as they were before it, has one
sample of the catalogue, and is one step on SAMPLE of its choices at most, drawn by lot: learning samples,
counting does not. So it is the log that says what a batch is, and not how it was read; and features are never
older than a second, however many engagements there are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import LearningError
from stream_app.learning.activity import Catalogue, catalogue_features, log_minutes
from stream_app.learning.candidates import Pool, pool_of
from stream_app.learning.coengagement import CoEngagement
from stream_app.learning.counts import EngagementCounts
from stream_app.learning.exposure import Exposure
from stream_app.learning.features import BANDS, NAMES, NOTHING, CandidateFeatures, bands
from stream_app.learning.habits import AgeHabits
from stream_app.learning.history import STRONG_WEIGHT, UserHistory
from stream_app.learning.model import Floats, Listed, Rates, SoftmaxRanker
from stream_app.learning.trainer import OnlineTrainer

MEAN_CHANGES = 100
"""The vectors' mean is taken anew once one in so many contents has been replaced."""

BATCH, SAMPLE = 128, 16
"""Engagements that are counted at a time, and choices among them that the step is made of, at most."""
SECOND_MS = 1_000


def same_batch(size: int, first: int, now: int) -> bool:
    """Whether what comes at ``now`` belongs to a batch of ``size`` that began at ``first`` (ms)."""
    return size < BATCH and now // SECOND_MS == first // SECOND_MS


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

    def created_by(self, now: int, rows: slice | NDArray[np.int64]) -> NDArray[np.int64]:
        """[n], ms: when they were created as seen at ``now``: what may be older is never ahead of it."""
        created = self.created_at[rows]
        if self.known is None:
            return created
        return np.where(self.known[rows], created, np.minimum(created, now))


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
    shown: Shown | None = None
    """What the user chose from, if that is known"""


@dataclass(frozen=True)
class Recounted:
    """An earlier engagement that stands for its user in the content's counts from now on, or no longer does:
    it was taken back, or the user engaged with the content again."""

    row: int
    time: int
    """ms, its event time"""
    weight: float
    counts: bool


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


class Learned(NamedTuple):
    """What became of a batch."""

    choices: list[Choice]
    """That the step was made of"""
    refused: list[LearningError]
    """What was wrong with those that the model did not take"""


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
        self._known: NDArray[np.bool_] = np.zeros(len(contents.created_at), np.bool_)  # [N], for a moment
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

    def consider(self, now: int, history: UserHistory, count: int) -> Candidates:
        """What a user could choose from at ``now`` (ms, read as whole seconds) among the rows below
        ``count``."""
        return self._consider([_Chooser(history)], now - now % SECOND_MS, count)[0]

    def learn(
        self,
        batch: Sequence[Engagement | Recounted],
        now: int,
        count: int,
        considered: Mapping[int, Candidates] | None = None,
    ) -> Learned:
        """Learn from a batch in one step, then count it, in its order. ``now`` (ms, read as whole seconds)
        is the stream time of any of it, and ``count`` the rows that there are. ``considered`` is what
        :meth:`consider` has just said of the same users and second, by their places in the batch, where it
        was asked."""
        now -= now % SECOND_MS
        # the first engagement of all publishes: nobody chose
        steps = [
            (one, (considered or {}).get(place))
            for place, one in enumerate(batch)
            if isinstance(one, Engagement)
            and one.first
            and one.weight > 0
            and self.counts.engaged_at[one.row]
        ]
        if len(steps) > SAMPLE:
            lot = self._random.choice(len(steps), SAMPLE, replace=False)
            steps = [steps[place] for place in np.sort(lot).tolist()]
        learned = self._step(steps, now, count)
        for one in batch:
            if isinstance(one, Engagement):
                self.associate(one, now)
            if one.counts or isinstance(one, Recounted):
                self.counts.count(one.row, one.time, one.weight, undo=not one.counts)
                self._changes += 1
        return learned

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

    def _step(self, steps: Sequence[tuple[Engagement, Candidates | None]], now: int, count: int) -> Learned:
        unknown = [
            _Chooser(one.history, one.row, None if one.shown is None else one.shown.rows)
            for one, known in steps
            if known is None
        ]
        found = iter(self._consider(unknown, now, count) if unknown else [])
        choices = [self._choice(one, next(found) if known is None else known, now) for one, known in steps]
        outcomes = self.trainer.learn([self._listed(choice) for choice in choices])
        learned = Learned([], [])
        for (one, _), choice, outcome in zip(steps, choices, outcomes, strict=True):
            if isinstance(outcome, LearningError):
                learned.refused.append(outcome)
                continue
            learned.choices.append(choice)
            if one.shown is not None and choice.noticed is not None:
                self._learn_exposure(choice, choice.noticed, one.shown)
        return learned

    def _consider(self, choosers: Sequence[_Chooser], now: int, count: int) -> list[Candidates]:
        current = self._at(now, count)
        drawn = None if current.pool is None else current.pool.draw(self._random)
        common = None if drawn is None else drawn.rows
        features = CandidateFeatures(current.shared, current.catalogue, self.together, self.habits, common)
        found = []
        for history, chosen, shown in choosers:
            if drawn is None:
                rows, also, offsets = np.arange(count), NOTHING, np.zeros(count, np.float32)
            else:
                also, offsets = drawn.list(history, self.together, chosen, shown)
                rows = np.concatenate([drawn.rows, also])
            own = features.of(history, also)
            own[:, self._without] = 0
            groups = bands(history, now)
            found.append(Candidates(rows, own, offsets, groups, self.trainer.model.score(own, groups)))
        return found

    def _choice(self, engagement: Engagement, among: Candidates, now: int) -> Choice:
        rows, shown = among.rows, engagement.shown
        place = int(np.flatnonzero(rows == engagement.row)[0])
        allowed = self._available(now, rows)
        self._known[engagement.known] = True
        allowed &= ~self._known[rows]
        self._known[engagement.known] = False
        allowed[place] = True
        if shown is None:
            return Choice(among, allowed, place)
        _, at, of = np.intersect1d(rows, shown.rows, assume_unique=True, return_indices=True)
        noticed = np.zeros(len(rows), np.float32)
        noticed[at] = self.exposure.offsets(shown.positions[of]) - shown.penalties[of]
        return Choice(among, allowed, place, noticed)

    def _listed(self, choice: Choice) -> Listed:
        """Some of the candidates may have been shown, and so noticed more readily."""
        among, noticed = choice.among, choice.noticed
        scores, offsets = among.scores, among.offsets
        if noticed is not None:
            scores, offsets = scores + noticed, offsets + noticed
        return self.trainer.listed(
            among.features, scores, choice.allowed, among.groups, choice.place, offsets
        )

    def _learn_exposure(self, choice: Choice, noticed: Floats, shown: Shown) -> None:
        """A step with the errors of the scores as they were."""
        among = choice.among
        _, at, of = np.intersect1d(among.rows, shown.rows, assume_unique=True, return_indices=True)
        logits = np.where(choice.allowed, among.scores + among.offsets + noticed, -np.inf)
        odds = np.exp(logits - logits.max())
        errors = odds / odds.sum()
        errors[choice.place] -= 1
        self.exposure.learn(shown.positions[of], errors[at])

    def _available(self, now: int, rows: slice | NDArray[np.int64]) -> NDArray[np.bool_]:
        """[n], which of the rows could be recommended to somebody."""
        contents = self._contents
        created = contents.created_by(now, rows)
        if contents.live is None:
            return np.ones(len(created), np.bool_)
        available: NDArray[np.bool_] = contents.live[rows] & (created <= now + contents.max_future_ms)
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
            created_at=contents.created_by(now, slice(count)),
            authors=contents.authors[:count],
            vectors=contents.vectors[:count],
            mean=self._sum / np.float32(max(self._members, 1)),
        )
        shared = catalogue_features(catalogue)
        pool = None
        if self._candidates is not None and count > self._candidates:
            pool = pool_of(shared, self._available(now, slice(count)), self._candidates)
        return _Current(catalogue, shared, pool)


class _Chooser(NamedTuple):
    """Somebody whose candidates are looked for."""

    history: UserHistory
    chosen: int | None = None
    """A row that must be among them"""
    shown: NDArray[np.int64] | None = None
    """Rows that are to be, where they are available"""


@dataclass(frozen=True)
class _Current:
    catalogue: Catalogue
    shared: Floats
    pool: Pool | None
    """Where not all contents are candidates"""
