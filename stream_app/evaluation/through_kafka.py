"""The same slates through Kafka as straight from the log? The check that both ways of evaluating agree.

The roles themselves (interests, content, ranker) run against a real broker, in this process. Event by
event, in the log's order: 1. what came out by then goes to ``content``, and what a trainer would have
published by then to ``models`` and ``co-engagement``; 2. once both roles have read it, the event is sent;
3. the slate that names the event as its cause is compared with those of :class:`LiveRanker`, which gets
the same event without Kafka; 4. before the next event, the ranker has read all statistics.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
from msgspec.structs import replace

import stream_app.content.app
import stream_app.interests.app
import stream_app.recommendations.app
from stream_app.content.vectors import split_key
from stream_app.errors import StreamAppError
from stream_app.evaluation.learned import LearnedRanker
from stream_app.evaluation.log import Catalogue, EvaluationLog
from stream_app.evaluation.product import Lessons, LiveRanker, fitted
from stream_app.evaluation.scorer import World, touches
from stream_app.kafka.admin import delete_topics, ensure_topics
from stream_app.kafka.ends import Ends
from stream_app.kafka.faust.app import RoleApp
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.records import KeyedRecord
from stream_app.kafka.sender import Sender
from stream_app.learning import checkpoint
from stream_app.learning.models_record import RANKER_KEY, Description
from stream_app.observability.health import Health
from stream_app.ranking.engine import PRIORS_STREAM_MS, PRIORS_WALL_S
from stream_app.ranking.ranked import BLEND, LEARNED, Ranked
from stream_app.recommendations.slate import Slate, decode
from stream_app.replay.formats import CONTENT_TOPIC, LogRecord
from stream_app.settings import Arm, Settings

ARMS = (Arm(name="blend", ranker=BLEND, share=1.0), Arm(name="learned", ranker=LEARNED, share=1.0))
"""Half of the users each, so that one run compares both rankers."""
TIE = 1e-5
"""Contents whose scores differ by less may change places: float32 sums over several partitions."""
PATIENCE_S = 60.0
POLL_S = 0.002
ROLES = (stream_app.content.app, stream_app.interests.app, stream_app.recommendations.app)


@dataclass(frozen=True)
class Pair:
    """The slates of one event, both ways."""

    place: int
    """Into the log"""
    live: Slate | None
    """None where there was none"""
    direct: list[Ranked]
    """As :meth:`LiveRanker.react` gives them, but for empty ones: any of these would be right"""

    @property
    def same(self) -> bool:
        """Whether both ways agree."""
        if self.live is None:
            return not self.direct
        return any(alike(self.live, one) for one in self.direct)


class Agreement(msgspec.Struct, frozen=True):
    """How far a run agrees, in events."""

    events: int
    differing: int
    silent: int
    """Changed nothing, and have no slate either way"""
    early: int
    """Their slates were made before the ranker had the event's own statistics"""
    ties: int
    """Contents of equal scores have changed places"""
    rankers: tuple[str, ...]
    """Those that made the slates"""

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Agreement:
        """What these pairs come to."""
        shown = [(pair.live, pair.direct) for pair in pairs if pair.live is not None and pair.same]
        return cls(
            events=len(pairs),
            differing=sum(not pair.same for pair in pairs),
            silent=sum(pair.live is None and pair.same for pair in pairs),
            early=sum(not alike(live, direct[-1]) for live, direct in shown),
            ties=sum(all(_names(live) != _names(one) for one in direct) for live, direct in shown),
            rankers=tuple(sorted({live.ranker.partition("-")[0] for live, _ in shown})),
        )


def alike(live: Slate, direct: Ranked) -> bool:
    """Whether two slates show the same contents in the same order, but for ties."""
    if (live.kind, live.ranker, live.arm) != (direct.kind, direct.ranker, direct.arm):
        return False
    mine, theirs = _names(live), _names(direct)
    if mine == theirs:
        return True
    scores = {item.content_id: item.score for item in (*live.items, *direct.items)}
    return len(mine) == len(theirs) and all(
        abs(scores[a] - scores[b]) < TIE for a, b in zip(mine, theirs, strict=True)
    )


def _names(slate: Slate | Ranked) -> list[str]:
    return [item.content_id for item in slate.items]


def straight(settings: Settings, log: EvaluationLog, world: World, seed: int = 0) -> LiveRanker:
    """The way without Kafka."""
    learner = partial(
        LearnedRanker, recent=settings.interests.recent, neighbours=settings.learning.neighbours, seed=seed
    )
    return LiveRanker(world, settings, log, learner, ARMS)


def run(
    settings: Settings,
    log: EvaluationLog,
    world: World,
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> list[Pair]:
    """The whole log both ways, on the broker of ``settings``, in topics of its own that are gone in the end.

    Raises StreamAppError when a role keeps us waiting, and whatever stopped one.
    """
    name = f"evaluate-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as directory:
        live = fitted(settings, world, ARMS)
        live = replace(
            live,
            kafka=replace(live.kafka, app_id=name, topic_prefix=f"{name}."),
            interests=replace(live.interests, data_dir=directory),
            ranking=replace(live.ranking, refresh_per_s=0.0),  # and nothing else does
            recommendations=replace(live.recommendations, skip_unchanged=False),  # each event gets an answer
        )
        ensure_topics(live)
        try:
            return asyncio.run(_pairs(live, log, straight(settings, log, world, seed), progress))
        finally:
            delete_topics(live)


async def _pairs(
    settings: Settings, log: EvaluationLog, ranker: LiveRanker, progress: Callable[[float], None]
) -> list[Pair]:
    live, pairs = _Live(settings, log.catalogue), []
    async with live.running():
        for touch in touches(log):
            lessons = ranker.learn()
            await live.prepare(int(log.published[touch.place]), touch.now, lessons)
            direct = ranker.react(touch)
            slate = await live.slate(log.records[touch.place], wanted=bool(direct))
            pairs.append(Pair(touch.place, slate, direct))
            progress(len(pairs) / len(log))
    return pairs


class _Live:
    """The roles on a broker, fed by hand."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        """Nothing is started yet."""
        self._settings, self._catalogue = settings, catalogue
        self._apps: list[RoleApp] = [role.create_app(settings, Health(settings)) for role in ROLES]
        self._followers = [
            TopicReader(
                settings, settings.topic_name("content-vectors"), self._note_contents, label="contents"
            ),
            TopicReader(settings, settings.topic_name("recommendations"), self._note_slates, label="slates"),
        ]
        self._indexed: set[bytes | None] = set()
        self._slates: dict[tuple[str, int, int], Slate] = {}  # by topic, partition and offset of the cause
        self._published, self._gone = 0, set[int]()
        self._now, self._sent_at = 0, 0.0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Started, and stopped in the end."""
        async with contextlib.AsyncExitStack() as stack:
            self._sender = await stack.enter_async_context(Sender(self._settings))
            # what is not committed yet will have to be read
            self._ends = Ends(self._settings, read_committed=False)
            stack.push_async_callback(self._ends.stop)
            for app in self._apps:
                stack.push_async_callback(app.stop)
            await asyncio.gather(*(app.start() for app in self._apps))
            for follower in self._followers:
                await follower.start()
                stack.push_async_callback(follower.stop)
            yield

    async def prepare(self, count: int, now: int, lessons: Lessons | None) -> None:
        """Let the roles know the first ``count`` contents, less those that are deleted by ``now``, and the
        lessons; return when they have read it, and all statistics."""
        ids, withdrawn = self._catalogue.ids, self._catalogue.withdrawn
        new = range(self._published, count)
        self._published = max(self._published, count)
        gone = set(np.flatnonzero(withdrawn[: self._published] <= now).tolist()) - self._gone
        self._gone |= gone
        await asyncio.gather(
            *(self._send(CONTENT_TOPIC, ids[n], self._content(n)) for n in new),
            *(self._send(CONTENT_TOPIC, ids[n], None) for n in gone),
        )
        if lessons is not None:
            await self._teach(lessons)
        wanted, unwanted = {ids[n] for n in new} - {ids[n] for n in gone}, {ids[n] for n in gone}
        await self._until(
            lambda: wanted <= self._indexed and not unwanted & self._indexed, "the contents' vectors"
        )
        await self._read()
        # a ranking so soon after another would go by the same priors
        if now - self._now < PRIORS_STREAM_MS:
            await asyncio.sleep(max(0.0, self._sent_at + PRIORS_WALL_S - time.monotonic()))
        self._now = now

    async def slate(self, record: LogRecord, *, wanted: bool) -> Slate | None:
        """Send the event; the slate that it causes, if one is ``wanted``."""
        cause = await self._send(record.topic, record.key, record.value)
        if wanted:
            await self._until(lambda: cause in self._slates, "a slate")
        self._sent_at = time.monotonic()
        return self._slates.pop(cause, None)

    def _content(self, number: int) -> bytes:
        text = self._catalogue.texts[number]
        return msgspec.json.encode(
            {"text": text.text, "author": text.author or None, "created_at": text.created_at}
        )

    async def _teach(self, lessons: Lessons) -> None:
        one = lessons.published
        headers = Description(one.version, one.model.steps, 0.0, 0).headers()
        await asyncio.gather(
            *(self._send("co-engagement", content, value) for content, value in lessons.neighbours),
            self._send("models", RANKER_KEY, checkpoint.encode(one.model, one.habits), headers),
        )

    async def _send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> tuple[str, int, int]:
        return await self._sender.send(self._settings.topic_name(topic), key, value, headers)

    async def _read(self) -> None:
        """Return once the roles have read the topics that they follow to their ends."""
        readers = [reader for app in self._apps for reader in app.readers]
        places = {place for reader in readers for place in reader.positions()}
        ends = await self._ends.of(places)
        await self._until(
            lambda: all(at >= ends[place] for reader in readers for place, at in reader.positions().items()),
            "the roles' readers",
        )

    async def _until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for it; raise what stopped a role."""
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            for app in self._apps:
                if app.crash_reason is not None:
                    raise app.crash_reason
            if time.monotonic() > deadline:
                raise StreamAppError(f"waited {PATIENCE_S:.0f} s for {what} in vain")
            await asyncio.sleep(POLL_S)

    def _note_contents(self, records: Sequence[KeyedRecord]) -> None:
        for record in records:
            place = split_key(record.key)
            if place is not None and place.former is None:
                (self._indexed.discard if record.value is None else self._indexed.add)(place.content_id)

    def _note_slates(self, records: Sequence[KeyedRecord]) -> None:
        for record in records:
            if record.value is not None and (cause := decode(record.value).caused_by) is not None:
                self._slates.setdefault((cause.topic, cause.partition, cause.offset), decode(record.value))
