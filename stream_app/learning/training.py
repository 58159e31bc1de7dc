"""All that the trainer knows, from its first record to its last: fed with records, asked what to publish.

Knows neither Faust nor Kafka's client. One thread at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_app.content.index import ContentIndex
from stream_app.errors import LearningError, RecordFormatError
from stream_app.events.times import newest_believed
from stream_app.interests import record as interest_record
from stream_app.interests.contents import IndexedContents
from stream_app.interests.record import InterestRecord
from stream_app.kafka.records import Record
from stream_app.learning import checkpoint
from stream_app.learning.beginning import ContentCounts
from stream_app.learning.engagements import RememberedUsers
from stream_app.learning.features import BANDS, NAMES
from stream_app.learning.followed import FollowedNeighbours
from stream_app.learning.impressions import FollowedImpressions
from stream_app.learning.models_record import ONLINE_KEY, RANKER_KEY, Description, description
from stream_app.learning.online import Contents, Engagement, OnlineLearning, Recounted, same_batch
from stream_app.learning.shadow import Shadow, Verdict
from stream_app.observability import metrics
from stream_app.settings import Settings

log = logging.getLogger(__name__)

NOT_FINITE = "not_finite"
"""Beside the shadow's verdicts."""


class News(NamedTuple):
    """One record to publish."""

    topic: str
    """Name without the prefix"""
    key: bytes
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class Training:
    """The online model, the published ones, and everything that features are made of.

    First what stands on ``models``, ``co-engagement`` and ``content-stats`` is read whole, in any order;
    then :meth:`begin` says where to read on; then :meth:`learn` is fed.
    """

    def __init__(self, settings: Settings, contents: IndexedContents) -> None:
        learning, index = settings.learning, contents.index
        self.positions: dict[int, int] = {}
        """Partition of ``interests`` → offset that learning goes on at"""
        self._settings, self._contents = settings, contents
        self._most_published = learning.published_contents
        self._followed = FollowedNeighbours(index, learning.neighbours)
        columns = Contents(
            index.created_at,
            index.authors,
            index.vectors,
            index.live,
            int(settings.events.max_future_s * 1000),
            index.known,
        )
        self._online = OnlineLearning(columns, self._followed.together, candidates=learning.candidates)
        self._shadow = Shadow(learning.shadow_window, learning.margin, learning.min_steps)
        self._users = RememberedUsers(learning.remembered_users)
        self._impressions = FollowedImpressions(settings, "trainer")
        self._counts = ContentCounts(settings)
        self._batch: list[tuple[bytes, InterestRecord, bool]] = []  # users' records; True: counted before
        self._stream_time = 0
        self._version = 0
        self._counted_until: dict[int, int] = {}
        self._published_positions: dict[int, int] | None = None
        with contents.still() as index:
            index.drain_changes()
            self._followed.adopt(np.arange(index.high))

    # -- the beginning

    def take_models(self, records: Iterable[Record]) -> None:
        """Take over what was published last; what cannot be read is counted, and learned anew."""
        for record in records:
            if record.value is None or record.key not in (RANKER_KEY, ONLINE_KEY):
                continue
            try:
                said = description(record.headers)
                self._version = max(self._version, said.version)
                model, habits = checkpoint.decode(record.value, NAMES, BANDS)
            except (RecordFormatError, LearningError) as error:
                metrics.TRAINER_REJECTED.labels("models").inc()
                log.warning("a model on the topic is left out: %s", error)
                continue
            if record.key == RANKER_KEY:
                self._shadow.resume(model)
            else:
                self._online.resume(model, habits, checkpoint.decode_exposure(record.value), said.loss)
                self.positions = dict(said.positions)

    def take_neighbours(self, records: Iterable[Record]) -> None:
        """Take over what stands on ``co-engagement``."""
        with self._contents.still() as index:
            self._follow(index)
            self._followed.apply((record.key, record.value) for record in records)

    def take_statistics(self, records: Iterable[Record]) -> None:
        """Take note of what stands on ``content-stats``."""
        for record in records:
            self._counts.take(record.partition, record.key, record.value)

    def begin(self, ends: dict[int, int]) -> dict[int, int]:
        """Count what the statistics say; they hold what stands on ``interests`` before ``ends``.

        Returns where to read on. What comes before ``ends`` is no step and not counted again: its counts
        would have been features of itself. Co-engagement does learn from it.
        """
        with self._contents.still() as index:
            self._follow(index)
            self._stream_time = self._counts.into(self._online.counts, index)
        self._counted_until = ends
        self._published_positions = self.positions
        self.positions = {p: min(self.positions.get(p, end), end) for p, end in ends.items()}
        metrics.TRAINER_VERSION.set(self._version)
        log.info(
            "learning goes on after %d steps, at version %d", self._online.trainer.model.steps, self._version
        )
        return dict(self.positions)

    # -- learning

    def take_impressions(self, records: Iterable[Record]) -> None:
        """Take note of what users were shown; may be fed at any time."""
        self._impressions.apply(records)

    def learn(self, records: Sequence[Record]) -> None:
        """Learn from records of one partition of ``interests``, in their order. Records that cannot be
        read, and steps that are no numbers, are counted and skipped.

        The newest records wait for the rest of their batch: until the next one begins, or what was learned
        is published.
        """
        with metrics.TRAINER_SECONDS.time(), self._contents.still() as index:
            self._follow(index)
            for record in records:
                self._take(record, index)

    def _take(self, record: Record, index: ContentIndex) -> None:
        """Put the record into the batch, and learn from the one before where it belongs to another."""
        self.positions[record.partition] = record.offset + 1
        user, value = record.key, record.value
        if not user or user.startswith(b"\x00"):
            metrics.TRAINER_REJECTED.labels("interests").inc()
            return
        if value is None:
            self._learn(index)
            self._users.forget(user)
            self._impressions.shown.forget(user)
            return
        try:
            state = interest_record.decode(value)
        except RecordFormatError:
            metrics.TRAINER_REJECTED.labels("interests").inc()
            return
        now = max(self._stream_time, min(state.t_ref, newest_believed(self._settings)))
        if not same_batch(len(self._batch), self._stream_time, now):
            self._learn(index)
        self._stream_time = now
        counted = record.offset < self._counted_until.get(record.partition, 0)
        self._batch.append((user, state, counted))

    def _learn(self, index: ContentIndex) -> None:
        """Learn from the batch, and begin the next one."""
        batch, self._batch = self._batch, []
        latest = newest_believed(self._settings)
        found: list[Engagement | Recounted] = []
        for user, state, counted in batch:
            try:
                news = list(self._users.news(user, state, index))
            except RecordFormatError:
                metrics.TRAINER_REJECTED.labels("interests").inc()
                continue
            for one in news:
                if one.time > latest:  # of a wrong clock, and taken by an earlier version
                    one = replace(one, time=latest)
                if isinstance(one, Engagement):
                    one = replace(one, shown=self._impressions.chosen_from(user, one, index))
                if not counted:
                    found.append(one)
                elif isinstance(one, Engagement):
                    self._online.associate(one, self._stream_time)
        learned = self._online.learn(found, self._stream_time, index.high)
        for error in learned.refused:
            metrics.TRAINER_REJECTED.labels("interests").inc()
            log.warning("an engagement is not learned from: %s", error)
        for choice in learned.choices:
            self._shadow.judge(choice)
            metrics.TRAINER_STEPS.inc()
            metrics.TRAINER_SHOWN_STEPS.inc(choice.noticed is not None)

    def _follow(self, index: ContentIndex) -> None:
        rows: NDArray[np.int64] = index.drain_changes()
        if len(rows):
            self._online.contents_changed(rows, self._followed.adopt(rows))

    # -- what becomes of it

    def publication(self, now_ms: int) -> list[News]:
        """What is to be published now: changed neighbours, a model for the rankers if one takes over, and
        where learning stands; nothing if nothing was read. Must be published, or this object not be used
        any more."""
        with self._contents.still() as index:
            self._follow(index)
            self._learn(index)
            news = [News("co-engagement", key, None) for key in sorted(self._followed.gone)]
            self._followed.gone.clear()
            rows = self._followed.together.take_changed(self._most_published)
            found = [self._followed.record(row) for row in rows.tolist()]
        news += [News("co-engagement", *record) for record in found if record is not None]
        metrics.TRAINER_CONTENTS.inc(len(news))
        if self.positions == self._published_positions and not news:
            return []
        self._published_positions = dict(self.positions)
        news += self._model(now_ms)
        news.append(self._record(ONLINE_KEY, now_ms))
        self._show()
        return news

    def _model(self, now_ms: int) -> list[News]:
        """The model that takes over, if any does."""
        online, shadow = self._online, self._shadow
        verdict = shadow.verdict().value if self._finite() else NOT_FINITE
        metrics.TRAINER_VERDICTS.labels(verdict).inc()
        if verdict != Verdict.KEEP.value:
            log.info("the model after %d steps: %s", online.trainer.model.steps, verdict)
        if verdict == NOT_FINITE:
            online.begin_again(None if shadow.published is None else shadow.restart())
        elif verdict == Verdict.RESTART.value:
            online.begin_again(shadow.restart())
        elif verdict == Verdict.PUBLISH.value:
            shadow.publish(online.trainer.model)
        elif verdict == Verdict.ROLL_BACK.value and shadow.roll_back():
            online.begin_again(shadow.restart())
        if verdict not in (Verdict.PUBLISH.value, Verdict.ROLL_BACK.value):
            return []
        self._version += 1
        metrics.TRAINER_VERSION.set(self._version)
        return [self._record(RANKER_KEY, now_ms)]

    def _finite(self) -> bool:
        try:
            checkpoint.encode(self._online.trainer.model, self._online.habits)
        except LearningError:
            return False
        return True

    def _record(self, key: bytes, now_ms: int) -> News:
        published = self._shadow.published if key == RANKER_KEY else None
        model = self._online.trainer.model if published is None else published
        losses = self._shadow.losses
        mean = losses.get("online" if published is None else "published")
        said = Description(
            self._version,
            model.steps,
            self._online.trainer.loss or 0.0 if mean is None else mean.value,
            now_ms,
            self.positions,
        )
        exposure = self._online.exposure if key == ONLINE_KEY else None
        value = checkpoint.encode(model, self._online.habits, exposure)
        return News("models", key, value, said.headers())

    def _show(self) -> None:
        for name, mean in self._shadow.losses.items():
            metrics.TRAINER_LOSS.labels(name).set(mean.value)
            metrics.TRAINER_NDCG.labels(name).set(self._shadow.gains[name].value)
