"""Publishing on a real broker: keys, acknowledgement, what is left out, tombstones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from prometheus_client import REGISTRY

from stream_app.errors import BrokerUnavailableError
from stream_app.kafka.clients import read_topic
from stream_app.ranking.ranked import Item, Parts
from stream_app.recommendations.publish import SlatePublisher
from stream_app.recommendations.slate import Cause, Slate, decode, rfc3339
from stream_app.settings import Settings

pytestmark = pytest.mark.usefixtures("topics")


def slate(user: str, *contents: str) -> Slate:
    now = rfc3339(time.time_ns() // 1_000_000)
    items = [Item(c, 1.0, Parts(1.0, 0.0, 0.0, 0.0), []) for c in contents]
    return Slate(user, now, "m", Cause("likes", 0, 1, now, now), "personal", items)


def run(settings: Settings, work: Callable[[SlatePublisher], Awaitable[None]]) -> None:
    async def scenario() -> None:
        publisher = SlatePublisher(settings)
        await publisher.start()
        try:
            await asyncio.wait_for(work(publisher), 60)
        finally:
            await publisher.stop()
            await publisher.stop()

    asyncio.run(scenario())


def on_topic(settings: Settings) -> list[tuple[bytes, bytes | None]]:
    return [(r.key, r.value) for r in read_topic(settings, settings.topic_name("recommendations"))]


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"stream_app_{name}", labels) or 0.0


def test_slates_arrive_and_repeats_do_not(settings: Settings) -> None:
    fresh = metric("freshness_seconds_count")
    unchanged = metric("slates_total", result="unchanged")

    async def work(publisher: SlatePublisher) -> None:
        await publisher.publish([slate("a", "x", "y"), slate("b", "x")])
        await publisher.publish([slate("a", "x", "y"), slate("b", "z")])
        publisher.forget()
        await publisher.publish([slate("a", "x", "y")])

    run(settings, work)
    found = on_topic(settings)
    of = {
        u: [[i.content_id for i in decode(v).items] for k, v in found if k == u and v] for u in (b"a", b"b")
    }
    assert of == {b"a": [["x", "y"], ["x", "y"]], b"b": [["x"], ["z"]]}
    assert metric("freshness_seconds_count") - fresh == 4
    assert metric("slates_total", result="unchanged") - unchanged == 1


def test_repeats_are_published_when_the_setting_says_so(settings: Settings) -> None:
    always = msgspec.structs.replace(
        settings, recommendations=msgspec.structs.replace(settings.recommendations, skip_unchanged=False)
    )

    async def work(publisher: SlatePublisher) -> None:
        for _ in range(3):
            await publisher.publish([slate("a", "x")])

    run(always, work)
    assert len(on_topic(settings)) == 3


def test_a_withdrawn_user_gets_a_tombstone_and_may_come_back(settings: Settings) -> None:
    async def work(publisher: SlatePublisher) -> None:
        await publisher.publish([slate("a", "x")])
        await publisher.withdraw([b"a"])
        await publisher.publish([slate("a", "x")])

    run(settings, work)
    values = [v for _, v in on_topic(settings)]
    assert [v is None for v in values] == [False, True, False]


def test_what_is_remembered_is_bounded(settings: Settings) -> None:
    small = msgspec.structs.replace(
        settings, recommendations=msgspec.structs.replace(settings.recommendations, remembered_users=2)
    )

    async def work(publisher: SlatePublisher) -> None:
        await publisher.publish([slate(u, "x") for u in "abc"])
        await publisher.publish([slate(u, "x") for u in "cba"])  # a was forgotten, c and b were not

    run(small, work)
    assert sorted(k for k, _ in on_topic(settings)) == [b"a", b"a", b"b", b"c"]


def test_no_broker_is_named_clearly(settings: Settings) -> None:
    nowhere = msgspec.structs.replace(
        settings, kafka=msgspec.structs.replace(settings.kafka, broker="127.0.0.1:1")
    )
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1"):
        asyncio.run(SlatePublisher(nowhere).start())
