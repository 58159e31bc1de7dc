"""The pipeline alone: coalescing, withdrawing, falling back when the queue is overfull."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from prometheus_client import REGISTRY

from stream_app.content.index import ContentIndex
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.popularity import ContentStatistics
from stream_app.recommendations.pipeline import RankerPipeline
from stream_app.recommendations.slate import COLD_START_USER, Slate
from stream_app.settings import Settings
from tests.ranking import ranking_world as world
from tests.ranking.ranking_world import Engagement


@dataclass(frozen=True)
class Arrived:
    """A Kafka record as far as the pipeline reads it."""

    key: bytes | None
    value: bytes | None


@dataclass
class Shelf:
    """A publisher that keeps what it is given, as the topic would."""

    slates: dict[str, Slate] = field(default_factory=dict)
    published: int = 0
    withdrawn: list[bytes] = field(default_factory=list)
    refuses: bool = False

    async def publish(self, slates: Iterable[Slate]) -> None:
        if self.refuses:
            raise ConnectionError("the broker is gone")
        for slate in slates:
            self.slates[slate.user_id] = slate
            self.published += 1

    async def withdraw(self, users: Iterable[bytes]) -> None:
        for user in users:
            self.withdrawn.append(user)
            self.slates.pop(user.decode(), None)


def built(**ranking: object) -> tuple[Settings, ContentIndex, RankerPipeline, Shelf]:
    config = world.settings(ranking=ranking)
    index = world.filled_index(config, 120)
    shelf = Shelf()
    engine = RankingEngine(config, index, ContentStatistics(config, index))
    return config, index, RankerPipeline(config, engine, shelf), shelf


def liked(config: Settings, index: ContentIndex, i: int, ago: int = 0) -> bytes:
    engagement = Engagement(world.content_id(i), world.NOW - ago)
    return world.interest_record(config, index, [engagement], seen=[engagement.content_id])


def rejected() -> float:
    return REGISTRY.get_sample_value("stream_app_ranker_rejected_total", {"topic": "interests"}) or 0.0


def test_coalesce_keeps_the_newest_record_of_each_user() -> None:
    config, index, pipeline, _ = built()
    old, new = liked(config, index, 1), liked(config, index, 2)
    before = rejected()
    users, gone = pipeline.coalesce(
        [
            Arrived(b"a", old),
            Arrived(b"b", old),
            Arrived(b"c", old),
            Arrived(b"a", new),
            Arrived(b"b", None),
            Arrived(b"d", None),
            Arrived(b"d", new),
            Arrived(b"e", b"no record"),
            Arrived(None, new),
            Arrived(COLD_START_USER, new),
        ]
    )
    assert [u for u, _ in users] == [b"c", b"a", b"d"]
    assert users[1][1] is not None
    assert users[1][1].interactions["content"] == [index.keys[2]]
    assert gone == [b"b"]
    assert rejected() - before == 3


def test_every_user_of_a_batch_gets_a_slate_and_who_has_gone_loses_it() -> None:
    config, index, pipeline, shelf = built(batch_users=4)
    records = [Arrived(b"user-%d" % i, liked(config, index, i)) for i in range(11)]
    asyncio.run(pipeline.handle(records))
    assert sorted(shelf.slates) == sorted(f"user-{i}" for i in range(11))
    assert all(s.kind == "personal" and len(s.items) == 10 for s in shelf.slates.values())
    for i in range(11):
        assert f"content-{i}" not in [item.content_id for item in shelf.slates[f"user-{i}"].items]
    asyncio.run(pipeline.handle([Arrived(b"user-3", None)]))
    assert shelf.withdrawn == [b"user-3"]
    assert "user-3" not in shelf.slates


def test_a_backlog_costs_one_ranking_a_user() -> None:
    config, index, pipeline, shelf = built()
    asyncio.run(pipeline.handle([Arrived(b"u", liked(config, index, i)) for i in range(50)]))
    assert shelf.published == 1
    assert shelf.slates["u"].items[0].reasons[0].content_id == "content-49"


def test_beyond_the_queue_the_longest_waiting_get_the_cheap_list() -> None:
    config, index, pipeline, shelf = built(queue_users=3)
    asyncio.run(pipeline.handle([Arrived(b"user-%d" % i, liked(config, index, i)) for i in range(8)]))
    kinds = [shelf.slates[f"user-{i}"].kind for i in range(8)]
    assert kinds == ["fallback"] * 5 + ["personal"] * 3


def test_slates_stand_at_the_stream_time_of_their_batch() -> None:
    config, index, pipeline, shelf = built(weight_interest=0.0, weight_match=0.0)
    ago = 5 * world.DAY
    record = Arrived(b"u", liked(config, index, 1, ago=ago))

    def newest() -> int:
        shown = shelf.slates["u"].items[0].content_id.encode()
        return int(index.created_at[index.rows[shown]])

    asyncio.run(pipeline.handle([record]))
    assert world.NOW - 2 * ago < newest() <= world.NOW - ago + 300_000  # not what was yet to come
    asyncio.run(pipeline.handle([Arrived(b"v", liked(config, index, 2)), record]))
    assert newest() > world.NOW - ago


def test_contents_deleted_between_batches_are_gone() -> None:
    config, index, pipeline, shelf = built()
    record = Arrived(b"u", liked(config, index, 1))
    asyncio.run(pipeline.handle([record]))
    shown = {item.content_id.encode() for item in shelf.slates["u"].items}
    for id_ in shown:
        index.delete(id_)
    asyncio.run(pipeline.handle([record]))
    assert not shown & {item.content_id.encode() for item in shelf.slates["u"].items}


def test_the_cold_start_slate_is_published_under_its_key() -> None:
    _, _, pipeline, shelf = built()
    asyncio.run(pipeline.renew_cold_start())
    slate = shelf.slates[COLD_START_USER.decode()]
    assert slate.kind == "cold_start"
    assert slate.caused_by is None
    assert len(slate.items) == 10


def test_what_cannot_be_published_is_not_finished() -> None:
    config, index, pipeline, shelf = built(batch_users=2)
    shelf.refuses = True
    with pytest.raises(ConnectionError):
        asyncio.run(pipeline.handle([Arrived(b"u%d" % i, liked(config, index, i)) for i in range(5)]))
    shelf.refuses = False
    asyncio.run(pipeline.handle([Arrived(b"u%d" % i, liked(config, index, i)) for i in range(5)]))
    assert len(shelf.slates) == 5
