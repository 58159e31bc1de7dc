"""From ``interests`` records to published slates. Knows neither Faust nor Kafka's client."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Protocol, TypeVar

from stream_app.errors import RecordFormatError
from stream_app.interests import record as interest_record
from stream_app.interests.record import InterestRecord, by_arrival
from stream_app.kafka.records import KeyedRecord
from stream_app.learning.shown import ShownContents
from stream_app.observability import metrics
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.published import Published
from stream_app.ranking.ranked import Ranked, User
from stream_app.recommendations.active import ActiveUsers
from stream_app.recommendations.slate import COLD_START_USER, Slate, SlateMaker
from stream_app.recommendations.waiting import Round
from stream_app.settings import Settings

T = TypeVar("T")

COLD_START_PARTITION = 0
"""The ranker that owns this partition of ``interests`` publishes the cold-start slate."""


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one user's slate."""

    partition: int
    """Of ``interests``, which the user belongs to"""
    user: bytes
    slate: Slate | None
    """None: withdrawn"""
    timely: bool = True
    """Whether its cause has just come. A slate made anew long after tells nothing about freshness."""


class Publisher(Protocol):
    """Where slates go (:class:`stream_app.recommendations.publish.SlatePublisher`)."""

    async def publish(self, changes: Sequence[Change], ends: Mapping[int, int] = ...) -> int:
        """Return once all stands on the topic, together with the input position of each partition in
        ``ends``; how many changes were news."""


class Traces(Protocol):
    """Of what is ranked (:class:`stream_app.recommendations.traces.SlateTraces`)."""

    def step(self, name: str, users: Iterable[bytes]) -> None:
        """These users have done a step."""


class RankerPipeline:
    """Ranks in a thread, publishes.

    Everything that changes the engine runs on the event loop; only the ranking itself is in the
    thread, so that the loop goes on answering heartbeats. One round is ranked at a time.
    """

    def __init__(
        self,
        settings: Settings,
        engine: RankingEngine,
        publisher: Publisher,
        progress: Callable[[], None] = lambda: None,
        newest: Callable[[], Published | None] = lambda: None,
        shows: Callable[[bytes, int, int], bool | None] = lambda *_: None,
        shown: ShownContents | None = None,
        active: ActiveUsers | None = None,
        traces: Traces | None = None,
    ) -> None:
        """``progress`` is called after each ranking; ``newest`` says at the beginning of each round
        which model its users are ranked with, all of them; ``shows`` is :meth:`SlateLedger.shows`;
        ``shown`` what users were really shown, where that is known; ``active`` is told of everybody who
        acts; ``traces`` of how far the users of a round are."""
        self._engine = engine
        self._publisher = publisher
        self._slates = SlateMaker(settings, engine.index.model)
        self._progress = progress
        self._newest = newest
        self._shows = shows
        self._shown = shown
        self._active = ActiveUsers(settings) if active is None else active
        self._traces = traces
        self._batch_users = settings.ranking.batch_users
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ranking")
        self._work = asyncio.Lock()
        """Held while anything is ranked, and until it has its place among what is published."""
        self._publishing = asyncio.Lock()
        """What is ranked first is published first."""

    async def handle(self, round_: Round, ranked: Callable[[], object] = lambda: None) -> None:
        """Return once every user of this round has a slate on the topic (or has been withdrawn);
        ``ranked`` is called when the next round may be.

        1. withdraw those who have gone; 2. those who are overdue get the cheap list; 3. rank the others;
        4. all that goes out together with the input's positions, while the next round is ranked.
        """
        places = {record.key: record.partition for record in round_.records}
        gone = [record.key for record in round_.gone]
        cheap, users = _users(round_.overdue), _users(round_.users)
        async with self._work:
            self._engine.adopt(self._newest())
            self._engine.observe(cheap + users)
            self._count_engagements(cheap + users, places)
            self._active.ranked(cheap + users, places)
            self._active.gone(gone)
            made = [Change(places[user], user, None) for user in gone]  # 1.
            if self._shown is not None:
                for user in gone:
                    self._shown.forget(user)
            if cheap:  # 2.
                self._engine.refresh()
                if self._traces is not None:
                    self._traces.step("queue", (user for user, _ in cheap))
                made += self._current(self._engine.fallback(cheap, "queue_full"), places, True)
            made += await self._rank(users, places)  # 3.
            publishing = self._publish(made, round_.ends)  # 4.
        ranked()
        await publishing

    async def renew(self, found: Mapping[bytes, tuple[int, bytes | None]], wanted: Container[bytes]) -> None:
        """Make slates anew, of no more users than are ranked at a time, from (partition, interest record)
        that were looked up; users without a record lose theirs, and those whose record cannot be read are as
        good as unknown. Those who are no longer ``wanted`` when their turn comes have a newer one."""
        async with self._work:
            self._engine.adopt(self._newest())
            users: list[User] = []
            made = []
            for user, (partition, value) in found.items():
                if user not in wanted:
                    continue
                if value is None:
                    made.append(Change(partition, user, None))
                else:
                    users.append((user, _decoded(value)))
            self._engine.observe(users)
            places = {user: partition for user, (partition, _) in found.items()}
            await self._publish(made + await self._rank(users, places, timely=False))

    async def refresh(self, count: int, partitions: Collection[int]) -> int:
        """Rank at most ``count`` users of these partitions again, those who are due when their turn comes,
        and publish what is news; how many were ranked. Who would get the cheap list keeps their slate."""
        async with self._work:
            due = self._active.due(min(count, self._batch_users), partitions)
            self._active.refreshed(due)
            self._engine.adopt(self._newest())
            places = {user: one.partition for user, one in due.items()}
            users: list[User] = [(user, one.record) for user, one in due.items()]
            self._engine.observe(users)
            made = await self._rank(users, places, timely=False)
            news = await self._publish([one for one in made if _better(one)])
        metrics.SLATES_REFRESHED.labels("changed").inc(news)
        metrics.SLATES_REFRESHED.labels("unchanged").inc(len(due) - news)
        return len(due)

    async def renew_cold_start(self) -> None:
        """Publish the slate for whoever is not known, if it changed."""
        async with self._work:
            self._engine.adopt(self._newest())
            self._engine.refresh()
            nobody: list[User] = [(COLD_START_USER, None)]
            ranked = await self._in_thread(partial(self._engine.rank_prepared, nobody))
            slates = self._slates_of(ranked)
            await self._publish([Change(COLD_START_PARTITION, COLD_START_USER, slate) for slate in slates])

    async def published(self) -> None:
        """Return once all that was ranked until now stands on the topic."""
        async with self._work, self._publishing:
            pass

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _rank(
        self, users: list[User], places: Mapping[bytes, int], *, timely: bool = True
    ) -> list[Change]:
        """The slates of users who are ranked at a time."""
        if not users:
            return []
        self._engine.refresh()
        traces = self._traces if timely else None
        if traces is not None:
            traces.step("queue", (user for user, _ in users))
        ranked = await self._in_thread(partial(self._engine.rank_prepared, users))
        if traces is not None:
            traces.step("ranking", (user for user, _ in users))
        made = self._current(ranked, places, timely)
        self._progress()
        return made

    def _publish(
        self, made: Sequence[Change], ends: Mapping[int, int] = MappingProxyType({})
    ) -> asyncio.Future[int]:
        """Of everything that is published, in the order of these calls."""

        async def publish() -> int:
            async with self._publishing:
                return await self._publisher.publish(made, ends)

        return asyncio.ensure_future(publish())

    def _count_engagements(self, users: Sequence[User], places: Mapping[bytes, int]) -> None:
        """By arm: did the user engage with what the last slate named, or with what was really shown?"""
        named, answered = Counter[tuple[str, str]](), Counter[str]()
        for user, record in users:
            if record is None or not len(record.interactions):
                continue
            ring, arm = by_arrival(record), self._engine.arm_of(user)
            shows = self._shows(user, places[user], int(ring["content"][-1]))
            if shows is not None:
                named[arm, "shown" if shows else "other"] += 1
            if self._shown is not None:
                answered[arm] += self._shown.answers(user, ring["content"], ring["time"])
        for (arm, content), count in named.items():
            metrics.ARM_ENGAGEMENTS.labels(arm, content).inc(count)
        for arm, count in answered.items():
            metrics.ARM_ANSWERED.labels(arm).inc(count)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _current(self, ranked: Iterable[Ranked], places: Mapping[bytes, int], timely: bool) -> list[Change]:
        """The users' slates; that of somebody for whom nothing is left is empty."""
        rankings = list(ranked)
        slates = self._slates_of(rankings)
        return [
            Change(places[one.user_id], one.user_id, slate, timely)
            for one, slate in zip(rankings, slates, strict=True)
        ]

    def _slates_of(self, ranked: Iterable[Ranked]) -> list[Slate]:
        """Slates without the contents whose deletion was read while the device ranked."""
        return [self._slates.slate(one) for one in self._engine.without_deleted(ranked)]


def _better(change: Change) -> bool:
    """Whether this may take the place of a slate that no event has called in question."""
    return change.slate is not None and change.slate.kind != "fallback"


def _users(records: Iterable[KeyedRecord]) -> list[User]:
    """Those whose record can be read."""
    return [(r.key, record) for r in records if (record := _decoded(r.value or b"")) is not None]


def _decoded(value: bytes) -> InterestRecord | None:
    """None, and counted, when it cannot be read."""
    try:
        return interest_record.decode(value)
    except RecordFormatError:
        metrics.RANKER_REJECTED.labels("interests").inc()
        return None
