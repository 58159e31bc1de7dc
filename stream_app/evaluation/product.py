"""The product itself: state path, content index, statistics and ranking engine, without Kafka between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import msgspec
import numpy as np

from stream_app.content.index import ContentIndex
from stream_app.content.model import model_id
from stream_app.content.vectors import NOTHING, ContentVector
from stream_app.evaluation.learned import LearnedRanker
from stream_app.evaluation.log import EvaluationLog
from stream_app.evaluation.scorer import Scores, Touch, World
from stream_app.hashing import action_code, key64, model_code
from stream_app.interests.batch import BatchPreparation, PartitionState
from stream_app.interests.contents import IndexedContents
from stream_app.interests.record import InterestRecord, decode
from stream_app.interests.slab import Slab
from stream_app.interests.statistics import PartitionStatistics
from stream_app.interests.store import PartitionStore
from stream_app.kafka.records import arrived
from stream_app.learning import neighbours_record
from stream_app.learning.neighbours_record import Neighbours
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.popularity import ContentStatistics
from stream_app.ranking.published import Published
from stream_app.ranking.ranked import BLEND, LEARNED, Ranked
from stream_app.settings import Arm, Settings

PARTITION = 0

Records = list[tuple[bytes | None, bytes | None]]
"""Keys and values"""


@dataclass(frozen=True)
class Lessons:
    """What a trainer would publish of what it has learned since."""

    published: Published
    """For ``models``"""
    neighbours: Records
    """For ``co-engagement``"""


class LiveRanker:
    """What a user would be shown if they asked at that moment: a slate, or nothing.

    One partition holds everything; events are applied one by one, and priors are renewed for each ranking.
    With a ``learner``, who learns from each event as well, slates are by the learned ranker: before each
    ranking the engine is told what a trainer would publish. Without, they are by the fixed blend.
    """

    def __init__(
        self,
        world: World,
        settings: Settings,
        log: EvaluationLog,
        learner: Callable[[World], LearnedRanker] | None = None,
        arms: Sequence[Arm] = (),
    ) -> None:
        """``world`` has vectors. ``settings`` as for live roles; sizes are made to fit the log. One ranker is
        for all users, unless ``arms`` are given."""
        arms = arms or (Arm(name="live", ranker=BLEND if learner is None else LEARNED, share=1.0),)
        settings = fitted(settings, world, arms)
        settings = msgspec.structs.replace(
            settings, kafka=msgspec.structs.replace(settings.kafka, partitions=1)
        )
        self._learner = None if learner is None else learner(world)
        self._keys = np.array([key64(name) for name in log.catalogue.ids], np.uint64)
        self._settings, self._log, self._world = settings, log, world
        self._index = ContentIndex(settings, model_id(settings))
        self._published = 0
        never = np.iinfo(np.int64).max
        withdrawn = log.catalogue.withdrawn
        self._withdrawals = sorted((int(withdrawn[n]), int(n)) for n in np.flatnonzero(withdrawn < never))
        self._numbers = {name: number for number, name in enumerate(log.catalogue.ids)}
        self._preparation = BatchPreparation(settings, IndexedContents(self._index), lambda: self._now)
        interests = settings.interests
        codes = [action_code(action.name) for action in settings.events.actions]
        self._state = PartitionState(
            PARTITION,
            Slab.configured(settings, model_code(self._index.model)),
            cast(PartitionStore, _NothingStored()),  # the slab holds every user: nothing else is asked of it
            PartitionStatistics(PARTITION, codes, interests.stats_half_lives_h),
        )
        self._statistics = ContentStatistics(settings, self._index)
        seconds = itertools.count()
        self._engine = RankingEngine(settings, self._index, self._statistics, lambda: float(next(seconds)))
        self._records: dict[bytes, InterestRecord] = {}
        self._now = 0

    def score(self, now: int, user: int, count: int) -> Scores:
        """The slate's places from 10 down to 1; -inf for what is not in it."""
        self._publish(count, now)
        self._statistics.stream_time = max(self._statistics.stream_time, now)
        self.learn(now)
        ranked = self._rank(self._log.user_ids[user])
        scores = np.full(count, -np.inf)
        for place, item in enumerate(ranked.items):
            scores[self._numbers[item.content_id.encode()]] = len(ranked.items) - place
        return scores

    def update(self, touch: Touch) -> None:
        """Apply the record to state and statistics, as an interests worker does."""
        self._statistics.apply(self._apply(touch)[1])
        if self._learner is not None:
            self._learner.update(touch)

    def react(self, touch: Touch) -> list[Ranked]:
        """Update, and the slates that the event may cause live: as ranked before its statistics have come in,
        and after. Both are right, since the user's record and they come on two topics, which have no common
        order. None where the record stays as it is: a repeat, or an undo that finds nothing."""
        changed, counts = self._apply(touch)
        user = self._log.user_ids[touch.user]
        slates = []
        if changed:
            self._engine.observe([(user, self._records[user])])
            slates.append(self._rank(user))
        self._statistics.apply(counts)
        if changed:
            slates.append(self._rank(user))
        if self._learner is not None:
            self._learner.update(touch)
        return slates

    def learn(self, now: int | None = None) -> Lessons | None:
        """Let the engine know what has been learned since, but for a batch that may go on at ``now`` (ms);
        None where nothing learns, or nothing can be used of it."""
        table = self._engine.neighbours
        if self._learner is None or table is None:  # as it would be live, with half-lives of one's own
            return None
        self._learner.settle(now)
        learning = self._learner.learning
        together, ids = learning.together, self._log.catalogue.ids
        changed: Records = []
        for row in together.take_changed(len(ids)).tolist():
            rows, counts = together.row(row)
            users, strong = float(together.users[row]), float(together.strong_users[row])
            value = neighbours_record.encode(Neighbours(users, strong, self._keys[rows], counts))
            changed.append((ids[row], value))
        table.apply(changed)
        model = learning.trainer.model
        lessons = Lessons(Published(model.steps, model, learning.habits), changed)
        self._engine.adopt(lessons.published)
        return lessons

    def _rank(self, user: bytes) -> Ranked:
        (ranked,) = self._engine.rank([(user, self._records.get(user))])
        return ranked

    def _apply(self, touch: Touch) -> tuple[bool, Records]:
        """Take the event into the state; whether the user's record is a new one, and the new statistics."""
        self._publish(int(self._log.published[touch.place]), touch.now)
        self._now = touch.now
        record = self._log.records[touch.place]
        topic = self._settings.topic_name(record.topic)
        arrival = arrived(topic, PARTITION, touch.place, touch.time, record.key, record.value)
        table = self._settings.topic_name("interests")
        statistics = self._settings.topic_name("content-stats")
        changed = False
        counts: Records = []
        for output in self._preparation.prepare(self._state, topic, [arrival]):
            if output.topic == table and output.key is not None and output.value is not None:
                self._records[output.key] = decode(output.value)
                changed = True
            elif output.topic == statistics:
                counts.append((output.key, output.value))
        return changed, counts

    def _publish(self, count: int, now: int) -> None:
        """Index the contents that have come out since, and forget those that were deleted."""
        catalogue = self._log.catalogue
        for number in range(self._published, count):
            text = catalogue.texts[number]
            vector = self._world.vectors[number].astype(np.float16)
            self._index.put(
                catalogue.ids[number],
                ContentVector(
                    self._index.model,
                    text.author,
                    text.created_at,
                    text.created_at,
                    vector if vector.any() else NOTHING,
                    known=True,
                ),
            )
        self._published = max(self._published, count)
        while self._withdrawals and self._withdrawals[0][0] <= now:
            self._index.delete(catalogue.ids[self._withdrawals.pop(0)[1]])


class _NothingStored:
    """A store of users that has none."""

    def get(self, users: Sequence[bytes]) -> list[bytes | None]:
        """None for each."""
        return [None] * len(users)


def fitted(settings: Settings, world: World, arms: Sequence[Arm]) -> Settings:
    """These arms, room for everyone, and no eviction that the harness would not know of."""
    replace = msgspec.structs.replace
    return replace(
        settings,
        interests=replace(settings.interests, slab_rows=max(64, world.users + 1)),
        content=replace(
            settings.content,
            capacity=max(world.contents, 1),
            dimensions=world.vectors.shape[1],
            max_age_days=36_500.0,
        ),
        ranking=replace(settings.ranking, device="cpu", arms=tuple(arms)),
    )
