"""A ranker over a real broker follows what was shown: fatigue and click-through, and no garbage stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client import REGISTRY

from stream_app.observability.health import Health
from stream_app.recommendations.app import create_app
from stream_app.settings import Settings
from tests.ranking import ranking_world as world
from tests.recommendations.test_ranker_app import (
    Subscriber,
    catalogue,
    contents,
    liked,
    run,
    running,
    send,
)


@pytest.fixture
def config(settings: Settings, topics: list[str]) -> Settings:
    """Topics that exist, short vectors, the CPU, and nothing but scores."""
    return replace(
        settings,
        content=replace(settings.content, dimensions=world.D, capacity=500),
        ranking=replace(settings.ranking, device="cpu", diversity=0.0),
    )


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"stream_app_{name}_total", labels) or 0.0


async def until(reached: Callable[[], bool]) -> None:
    for _ in range(600):
        if reached():
            return
        await asyncio.sleep(0.05)
    raise TimeoutError


def test_what_was_shown_in_vain_gives_way_and_what_was_not_counts_as_answered(config: Settings) -> None:
    index, records = catalogue(config)
    arm = config.ranking.arms[0].name
    before = {name: counted(name, arm=arm) for name in ("arm_contents_shown", "arm_contents_answered")} | {
        "rejected": counted("impressions", role="ranker", outcome="malformed_json")
    }

    def taken() -> float:
        return counted("impressions", role="ranker", outcome="taken")

    begun = taken()

    def shown(user: str, items: list[str], at: int, slate_id: str | None) -> tuple[bytes, bytes]:
        tree = {"user_id": user, "items": items, "shown_at": at, "slate_id": slate_id}
        return user.encode(), msgspec.json.encode(tree)

    async def scenario() -> None:
        await send(config, "content-vectors", records)
        await send(config, "interests", [(b"u", liked(config, index, 1)), (b"v", liked(config, index, 1))])
        # what stood there before counts for fatigue, but not a second time for click-through
        old = [shown("u", ["content-1"], world.NOW - 9 * world.HOUR, "earlier")]
        await send(config, "impressions", [(b"u", b"?"), *old])
        async with Subscriber(config) as subscriber, running(create_app(config, Health(config))):
            await subscriber.until(lambda s: {"u", "v"} <= s.keys())
            await until(lambda: taken() - begun == 1)
            slate = subscriber.slates["u"]
            assert slate is not None
            first = contents(slate)
            assert contents(subscriber.slates["v"]) == first
            reports = [shown("u", first[:3], world.NOW - h * world.HOUR, slate.slate_id) for h in range(8)]
            reports += [shown("u", ["content-3"], world.NOW - 1, slate.slate_id), (b"u", b"?")]
            await send(config, "impressions", reports)
            await until(lambda: taken() - begun == 10)
            await send(config, "interests", [(b"u", liked(config, index, 1))])  # nothing new
            await subscriber.until(lambda s: contents(s["u"]) != first)
            now = contents(subscriber.slates["u"])
            assert not set(first[:3]) & set(now[:3])
            assert [c for c in now if c in first[3:]] == first[3:]  # the others go up as they are
            assert contents(subscriber.slates["v"]) == first
            await send(config, "interests", [(b"u", liked(config, index, 3))])
            answered = before["arm_contents_answered"] + 1
            await until(lambda: counted("arm_contents_answered", arm=arm) == answered)
        assert counted("arm_contents_shown", arm=arm) - before["arm_contents_shown"] == 8 * 3 + 1
        rejected = counted("impressions", role="ranker", outcome="malformed_json") - before["rejected"]
        assert rejected == 2

    run(scenario())
