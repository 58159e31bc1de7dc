"""The serve role: reads slates, contents and statistics whole, and answers over HTTP.

No Faust app: it is in no consumer group and writes nothing. While the broker is away it goes on
answering what it knows; a worker that cannot read although there is something to read ends.
"""

from __future__ import annotations

import asyncio
import logging
import time

from aiohttp import web

from stream_app.errors import StreamAppError, TopicMismatchError
from stream_app.kafka.admin import topic_states
from stream_app.kafka.ends import ASK_S, Ends, Idle
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.records import Partition
from stream_app.observability import metrics
from stream_app.observability.access import Access
from stream_app.observability.health import Health
from stream_app.observability.lag import LagGauge
from stream_app.observability.web import listening
from stream_app.secret import secret_of
from stream_app.serving.api import Api
from stream_app.serving.catalogue import Catalogue
from stream_app.serving.followed import TOPIC, FollowedSlates
from stream_app.settings import Settings

log = logging.getLogger(__name__)

ROLE = "serve"
DRAIN_S = 5.0
"""For answers under way when the worker is told to end."""


def create_app(settings: Settings, health: Health) -> ServingApp:
    """The role, not started. Raises ConfigurationError when the token's file cannot be read."""
    serving = settings.serving
    return ServingApp(settings, health, Access(secret_of("serving.token", serving.token, serving.token_file)))


class ServingApp:
    """Listens from the start; answers once everything has been read."""

    def __init__(self, settings: Settings, health: Health, access: Access) -> None:
        self._settings, self._health = settings, health
        self._access = access
        self._catalogue = Catalogue(settings)
        self._readers = [
            TopicReader(
                settings, settings.topic_name("content-vectors"), self._catalogue.learn, label="contents"
            ),
            TopicReader(
                settings, settings.topic_name("content-stats"), self._catalogue.count, label="statistics"
            ),
        ]
        self._slates: FollowedSlates | None = None
        self._following: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        self._failed = asyncio.Event()
        self._failures: list[BaseException] = []
        self.port: int | None = None
        """Where it listens, once started."""

    async def start(self) -> None:
        """Return once everything is read and requests are answered. Raises ConfigurationError when the
        port is taken, StateDirectoryError, TopicMismatchError, BrokerUnavailableError."""
        await self._listen()
        self._health.waiting_for = "the content index and the statistics"
        for reader in self._readers:
            reader.moved = self._health.nearer
            await reader.start()
            reader.failed.add_done_callback(self._ended)
        self._health.waiting_for = "the slates"
        partitions = await asyncio.to_thread(self._partitions)
        self._slates = await asyncio.to_thread(
            FollowedSlates, self._settings, partitions, self._health.nearer
        )
        for number, following in enumerate(self._slates.following()):
            task = asyncio.create_task(following, name=f"slates {number}")
            task.add_done_callback(self._ended)
            self._following.append(task)
        await self._slates.reached()
        self._health.ready = True
        log.info("answering on port %d", self.port or 0)

    async def watch(self) -> None:
        """For ever: shows how far behind it is, notices what does not move. Raises what ended a part."""
        looking = asyncio.create_task(self._look(), name="lag")
        looking.add_done_callback(self._ended)
        try:
            await self._failed.wait()
            raise self._failures[0]
        finally:
            looking.cancel()
            await asyncio.wait([looking])

    async def stop(self) -> None:
        """Go on answering until nobody asks any more, then close everything; may be called more than once.

        Whoever spreads the requests looks at ``/readyz``, which says 503 by now, only every so often.
        """
        if self._runner is not None:
            runner, self._runner = self._runner, None
            if self._answers() and not self._failures:
                await asyncio.sleep(self._settings.serving.linger_s)
            await runner.cleanup()
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        for reader in self._readers:
            await reader.stop()
        self._catalogue.close()
        if self._slates is not None:
            slates, self._slates = self._slates, None
            await slates.close()

    async def _listen(self) -> None:
        host, port = self._settings.serving.host, self._settings.serving.port
        api = Api(
            self._access,
            self._settings.serving.rate_per_s,
            self._settings.events.max_id_bytes,
            self._slate,
            self._catalogue.similar,
            self._catalogue.trending,
            self._answers,
            self._health.fail,
        )
        self._runner, self.port = await listening(api.application(), "serving", host, port, DRAIN_S)
        log.info("slates on http://%s:%d/v1/openapi.json", host, self.port)

    async def _slate(self, user: bytes) -> bytes | None:
        return None if self._slates is None else await self._slates.get(user)

    def _answers(self) -> bool:
        return self._slates is not None and self._slates.current

    def _partitions(self) -> int:
        name = self._settings.topic_name(TOPIC)
        states = topic_states(self._settings, ROLE)
        number = next(state.partitions for state in states if state.topic.name == name)
        if not number:
            raise TopicMismatchError(
                f"topic {name} does not exist: create it with `stream-app topics --create`"
            )
        return number

    def _ended(self, part: asyncio.Future[None]) -> None:
        if part.cancelled():
            return
        self._failures.append(part.exception() or StreamAppError("a topic is not followed any more"))
        self._failed.set()

    def _positions(self) -> dict[Partition, int]:
        found = {tp: at for reader in self._readers for tp, at in reader.positions().items()}
        return found | (self._slates.positions() if self._slates is not None else {})

    async def _look(self) -> None:
        """Ask the broker where topics end, and compare. That it does not answer is told by a metric, and is
        no reason to stop answering."""
        ends, lag = Ends(self._settings), LagGauge(metrics.CONSUMER_LAG)
        timeout_s = self._settings.observability.stall_timeout_s
        idle: dict[Partition, Idle] = {}
        answered = looked = time.monotonic()
        try:
            while True:
                await asyncio.sleep(ASK_S)
                positions = self._positions()
                if self._following:
                    self._health.ready = self._answers()
                metrics.SERVING_BROKER_SECONDS.set(time.monotonic() - answered)
                try:
                    found = await ends.of(set(positions))
                except (KafkaError, TimeoutError) as error:
                    log.warning("the broker does not say where topics end: %r", error)
                    continue
                answered = now = time.monotonic()
                # never more than a few seconds: the whole process may have stood still, or the broker
                seconds, looked = min(now - looked, 2 * ASK_S), now
                metrics.SERVING_BROKER_SECONDS.set(0)
                lag.show({(tp.topic, tp.partition): max(0, found[tp] - at) for tp, at in positions.items()})
                idle = {tp: idle.get(tp) or Idle() for tp in positions}
                for tp, one in idle.items():
                    one.look(found[tp] > positions[tp], positions[tp], 0, found[tp], seconds)
                    if one.seconds > timeout_s:
                        self._health.fail(
                            f"{tp.topic}[{tp.partition}] has records to read and has not moved for "
                            f"{one.seconds:.0f} s"
                        )
        finally:
            await ends.stop()
