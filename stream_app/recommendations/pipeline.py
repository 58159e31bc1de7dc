"""From ``interests`` records to published slates. Knows neither Faust nor Kafka's client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from stream_app.errors import RecordFormatError
from stream_app.interests import record as interest_record
from stream_app.observability import metrics
from stream_app.ranking.engine import RankingEngine, User
from stream_app.ranking.ranked import Ranked
from stream_app.recommendations.slate import COLD_START_USER, Slate, SlateMaker
from stream_app.settings import Settings

T = TypeVar("T")


class Record(Protocol):
    """What is read of a Kafka record."""

    @property
    def key(self) -> bytes | None:
        """user_id"""

    @property
    def value(self) -> bytes | None:
        """Interest record; None for a user who has faded or was erased."""


class Publisher(Protocol):
    """Where slates go (:class:`stream_app.recommendations.publish.SlatePublisher`)."""

    async def publish(self, slates: Iterable[Slate]) -> None:
        """Return once all are acknowledged."""

    async def withdraw(self, users: Iterable[bytes]) -> None:
        """Return once all are acknowledged."""


class RankerPipeline:
    """Coalesces records to one a user, ranks in a thread, publishes.

    Everything that changes the engine runs on the event loop; only the ranking itself is in the
    thread, so that the loop goes on answering heartbeats. One batch is in work at a time.
    """

    def __init__(
        self,
        settings: Settings,
        engine: RankingEngine,
        publisher: Publisher,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """``progress`` is called after each micro-batch."""
        self._engine = engine
        self._publisher = publisher
        self._slates = SlateMaker(settings, engine.index.model)
        self._progress = progress
        self._batch_users = settings.ranking.batch_users
        self._queue_users = settings.ranking.queue_users
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ranking")
        self._work = asyncio.Lock()

    def coalesce(self, records: Iterable[Record]) -> tuple[list[User], list[bytes]]:
        """The newest record of each user, oldest first, and the users who have gone.

        Records that cannot be read, and keys that can be no user's (empty, or beginning with the zero
        byte of reserved keys), are counted and skipped.
        """
        newest: dict[bytes, bytes | None] = {}
        for record in records:
            user = record.key
            if not user or user.startswith(b"\x00"):
                metrics.RANKER_REJECTED.labels("interests").inc()
                continue
            newest.pop(user, None)  # so that the order is that of the newest records
            newest[user] = record.value
        users: list[User] = []
        gone = []
        for user, value in newest.items():
            if value is None:
                gone.append(user)
                continue
            try:
                users.append((user, interest_record.decode(value)))
            except RecordFormatError:
                metrics.RANKER_REJECTED.labels("interests").inc()
        return users, gone

    async def handle(self, records: Sequence[Record]) -> None:
        """Return once every user of these records has a slate, acknowledged (or has been withdrawn).

        1. coalesce; 2. withdraw those who have gone; 3. where more users wait than
        ``ranking.queue_users``, the ones that waited longest get the cheap list; 4. rank the others,
        each micro-batch published while the next one is ranked.
        """
        metrics.BATCH_RECORDS.labels("ranker").observe(len(records))
        users, gone = self.coalesce(records)  # 1.
        async with self._work:
            self._engine.observe(users)
            await self._publisher.withdraw(gone)  # 2.
            overfull = max(len(users) - self._queue_users, 0)
            cheap, users = users[:overfull], users[overfull:]
            if cheap:  # 3.
                self._engine.refresh()
                await self._publisher.publish(self._current(self._engine.fallback(cheap, "queue_full")))
            await self._rank(users)  # 4.

    async def renew_cold_start(self) -> None:
        """Publish the slate for whoever is not known, if it changed."""
        async with self._work:
            self._engine.refresh()
            nobody: list[User] = [(COLD_START_USER, None)]
            ranked = await self._in_thread(partial(self._engine.rank_prepared, nobody))
            await self._publisher.publish(self._current(ranked))

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _rank(self, users: list[User]) -> None:
        depth = metrics.QUEUE_DEPTH.labels("ranking")
        publishing: asyncio.Task[None] | None = None
        try:
            for start in range(0, len(users), self._batch_users):
                depth.set(len(users) - start)
                batch = users[start : start + self._batch_users]
                self._engine.refresh()
                ranked = await self._in_thread(partial(self._engine.rank_prepared, batch))
                if publishing is not None:
                    await publishing
                    self._progress()
                publishing = asyncio.ensure_future(self._publisher.publish(self._current(ranked)))
        finally:
            depth.set(0)
            if publishing is not None:
                await publishing

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _current(self, ranked: Iterable[Ranked]) -> list[Slate]:
        """Slates without the contents whose deletion was read while the device ranked."""
        return [self._slates.slate(self._engine.without_deleted(one)) for one in ranked]
