"""Events and contents on real Kafka: what no slate may say, and what null means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession
from aiokafka import AIOKafkaProducer

from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector, encode
from stream_app.interests.app import create_app as interests_app
from stream_app.kafka.reader import TopicReader
from stream_app.observability.health import Health
from stream_app.recommendations.app import create_app as ranker_app
from stream_app.recommendations.slate import COLD_START_USER, Slate, decode
from stream_app.serving.app import create_app as serving_app
from stream_app.settings import Settings, build
from tests.ranking import ranking_world as world

COLD_START = COLD_START_USER.decode()
HOUR = world.HOUR


@pytest.fixture
def small(settings: Settings, topics: list[str], tmp_path: Path) -> Settings:
    """Topics that exist, short vectors, the CPU."""
    names = ("broker", "app_id", "topic_prefix", "partitions", "shared_partitions")
    return build(
        {
            "kafka": {name: getattr(settings.kafka, name) for name in names},
            "interests": {"data_dir": str(tmp_path / "state")},
            "content": {"dimensions": world.D, "capacity": 500},
            "ranking": {"device": "cpu"},
            "recommendations": {"cold_start_interval_s": 0.2},
            "serving": {"port": 0},
        }
    )


def unit(vector: np.ndarray) -> np.ndarray:
    return (vector / np.linalg.norm(vector)).astype(np.float16)


def about(subject: int, rng: np.random.Generator, spread: float = 0.1) -> np.ndarray:
    return unit(np.eye(world.D)[subject] + spread * rng.normal(size=world.D))


class Flow:
    """The roles on one broker; what they are sent, and every slate that was published, in order."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.slates: dict[str, list[Slate | None]] = {}
        self._stack = AsyncExitStack()
        self._grown = asyncio.Event()

    async def __aenter__(self) -> Flow:
        self._producer = AIOKafkaProducer(bootstrap_servers=self.settings.kafka.broker, linger_ms=2)
        await self._producer.start()
        self._stack.push_async_callback(self._producer.stop)
        reader = TopicReader(
            self.settings, self.settings.topic_name("recommendations"), self._take, label="test"
        )
        await reader.start()
        self._stack.push_async_callback(reader.stop)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run(self, *roles: Callable[[Settings, Health], Any]) -> list[Any]:
        apps = [role(self.settings, Health(self.settings)) for role in roles]
        for app in apps:
            await app.start()
            self._stack.push_async_callback(app.stop)
        return apps

    async def put(self, contents: dict[str, tuple[np.ndarray | None, str]], age_h: float = 24) -> None:
        """Vectors (None: no text) and authors, as the content role publishes them."""
        at, model = world.NOW - int(age_h * HOUR), model_id(self.settings)
        nothing = np.zeros(0, np.float16)
        for name, (vector, author) in contents.items():
            value = encode(ContentVector(model, author, at, at, nothing if vector is None else vector))
            await self._send("content-vectors", name, value)
        await self._producer.flush()

    async def like(self, user: str, *contents: str) -> None:
        for content in contents:
            event = {"event_id": f"{user}-{content}", "user_id": user, "content_id": content}
            await self._send("likes", user, json.dumps(event | {"occurred_at": world.NOW}).encode())
        await self._producer.flush()

    async def erase(self, user: str) -> None:
        await self._send("erasures", user, json.dumps({"user_id": user}).encode())
        await self._producer.flush()

    async def until(self, user: str, true: Callable[[Slate | None], bool]) -> Slate | None:
        """The user's newest slate, once it is so."""
        while not self.slates.get(user) or not true(self.slates[user][-1]):
            self._grown.clear()
            await asyncio.wait_for(self._grown.wait(), 30)
        return self.slates[user][-1]

    async def after(self, user: str, content: str) -> list[str]:
        """What the user is shown once the like of ``content`` counts."""

        def counts(slate: Slate | None) -> bool:
            return slate is not None and slate.caused_by is not None and content not in names(slate)

        before = len(self.slates.get(user, ()))
        await self.like(user, content)
        while len(self.slates.get(user, ())) == before:
            self._grown.clear()
            await asyncio.wait_for(self._grown.wait(), 30)
        return names(await self.until(user, counts))

    async def _send(self, topic: str, key: str, value: bytes) -> None:
        name = self.settings.topic_name(topic)
        await self._producer.send(name, value, key=key.encode(), timestamp_ms=world.NOW)

    def _take(self, records: list[Any]) -> None:
        for r in records:
            slate = None if r.value is None else decode(r.value)
            self.slates.setdefault(r.key.decode(), []).append(slate)
        self._grown.set()


def names(slate: Slate | None) -> list[str]:
    return [] if slate is None else [item.content_id for item in slate.items]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 90))


def test_neither_own_posts_nor_the_same_text_again(small: Settings) -> None:
    rng = np.random.default_rng(1)
    mine = {f"mine-{i}": (about(0, rng), "ana") for i in range(5)}
    others = {f"other-{i}": (about(i % 4, rng), f"author-{i}") for i in range(30)}
    twin = about(0, rng).astype(np.float32)
    twins = {
        f"twin-{i}": (unit(twin + rng.uniform(-1e-5, 1e-5, world.D)), author)
        for i, author in enumerate(("mara", "copycat", "spam"))
    }

    async def scenario() -> None:
        async with Flow(small) as flow:
            await flow.put(mine | others | twins)
            await flow.run(interests_app, ranker_app)
            ana = await flow.after("ana", "other-0")
            assert len(ana) == 10
            assert not [name for name in ana if name.startswith("mine")]
            assert sum(name.startswith("twin") for name in ana) == 1, "one text once"
            bea = await flow.after("bea", "twin-1")
            assert len(bea) == 10
            assert not [name for name in bea if name.startswith("twin")], "whatever id it stands under"
            assert [name for name in bea if name.startswith("mine")], "others' posts are others'"
            # the copy is written anew: that is another text
            await flow.put({"twin-2": (about(0, rng), "spam")}, age_h=1)
            await flow.until(COLD_START, lambda s: "twin-2" in names(s))
            assert "twin-2" in await flow.after("bea", "other-1")

    run(scenario())


def test_an_empty_slate_is_for_who_has_seen_everything_and_null_for_who_is_gone(small: Settings) -> None:
    rng = np.random.default_rng(2)
    contents = {f"post-{i}": (about(i, rng), f"author-{i}") for i in range(5)}

    async def scenario() -> None:

        async with Flow(small) as flow:
            await flow.put(contents)
            (*_, serving) = await flow.run(interests_app, ranker_app, serving_app)
            for n in range(5):
                assert len(await flow.after("ana", f"post-{n}")) == 4 - n
            assert None not in flow.slates["ana"]
            last = flow.slates["ana"][-1]
            assert last is not None
            assert (last.kind, last.items) == ("personal", [])

            # it is the answer: everybody else's would show what was seen
            url = f"http://127.0.0.1:{serving.port}/v1/users/ana/slate"
            async with ClientSession() as session:
                for _ in range(300):
                    async with session.get(url) as response:
                        answer = await response.json()
                    if response.status == 200 and answer.get("items") == []:
                        break
                    await asyncio.sleep(0.1)
                assert response.headers["X-Slate"] == "own"
                assert answer["slate_id"] == last.slate_id

            await flow.put({f"new-{i}": (about(7 + i, rng), "author-7") for i in range(2)}, age_h=1)
            await flow.until(COLD_START, lambda s: {"new-0", "new-1"} <= set(names(s)))
            assert await flow.after("ana", "new-0") == ["new-1"]
            await flow.erase("ana")
            assert await flow.until("ana", lambda s: s is None) is None

    run(scenario())


def test_the_only_author_there_is_fills_slates(small: Settings) -> None:
    rng = np.random.default_rng(3)

    async def scenario() -> None:
        async with Flow(small) as flow:
            await flow.put({f"post-{i}": (about(i % 20, rng), "solo") for i in range(30)})
            await flow.run(interests_app, ranker_app)
            assert len(await flow.after("ana", "post-0")) == 10
            await flow.until(COLD_START, lambda s: len(names(s)) == 10)
            await flow.put({f"other-{i}": (about(i % 20, rng), f"author-{i}") for i in range(20)})
            shown = await flow.after("ana", "post-1")
            while sum(name.startswith("post") for name in shown) > 3:  # bounded by ``run``
                await asyncio.sleep(0.2)
                shown = await flow.after("ana", f"post-{len(flow.slates['ana']) % 20}")
            assert len(shown) == 10

    run(scenario())


def test_a_catalogue_without_any_text(small: Settings) -> None:
    contents = {f"video-{i}": (None, f"channel-{i % 20}") for i in range(40)}

    async def scenario() -> None:
        async with Flow(small) as flow:
            await flow.put(contents)
            await flow.put({"fresh": (None, "channel-99")}, age_h=0.1)
            await flow.run(interests_app, ranker_app)
            await asyncio.gather(*(flow.like(f"user-{u}", "video-7") for u in range(8)))
            await flow.until(COLD_START, lambda s: {"video-7", "fresh"} <= set(names(s)[:2]))
            ana = await flow.after("ana", "video-3")
            assert len(ana) == 10
            assert "video-3" not in ana
            assert set(ana[:2]) == {"video-7", "fresh"}
            slate = flow.slates["ana"][-1]
            assert slate is not None
            assert all(np.isfinite(item.score) and not item.reasons for item in slate.items)

    run(scenario())
