"""The pipeline alone: ranking, withdrawing, falling back when the queue is overfull."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from prometheus_client import REGISTRY

from stream_app.content.index import ContentIndex
from stream_app.kafka.records import RecordBatch, arrived
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.popularity import ContentStatistics
from stream_app.ranking.published import Published
from stream_app.recommendations.ledger import SlateLedger
from stream_app.recommendations.pipeline import COLD_START_PARTITION, Change, RankerPipeline
from stream_app.recommendations.publish import NO_OFFSETS
from stream_app.recommendations.slate import COLD_START_USER, Slate
from stream_app.recommendations.waiting import Round, Waiting
from stream_app.settings import Settings
from tests.ranking import learned_world
from tests.ranking import ranking_world as world
from tests.ranking.ranking_world import Engagement


class Arrived(NamedTuple):
    """Key and value of a record."""

    key: bytes | None
    value: bytes | None


def batch(records: Sequence[Arrived], partition: int = 0) -> RecordBatch:
    """Of ``interests``, from the beginning."""
    return RecordBatch(
        "interests",
        partition,
        0,
        [arrived("interests", partition, at, at, *record) for at, record in enumerate(records)],
    )


async def nothing() -> None:
    """A batch is done."""


def round_of(records: Sequence[Arrived], partition: int = 0, queue_users: int = 1_000) -> Round:
    """Everybody's of one batch."""
    waiting = Waiting(queue_users, 1_000)
    waiting.add(batch(records, partition), nothing)
    return waiting.take()


@dataclass
class Shelf:
    """A publisher that keeps what it is given, as the topic would."""

    slates: dict[str, Slate] = field(default_factory=dict)
    places: dict[bytes, int] = field(default_factory=dict)
    calls: list[tuple[int, dict[int, int]]] = field(default_factory=list)  # changes, positions
    withdrawn: list[bytes] = field(default_factory=list)
    timely: dict[bytes, bool] = field(default_factory=dict)
    refuses: bool = False

    @property
    def published(self) -> int:
        return sum(changes for changes, _ in self.calls)

    async def publish(self, changes: Sequence[Change], ends: Mapping[int, int] = NO_OFFSETS) -> int:
        if self.refuses and changes:
            raise ConnectionError("the broker is gone")
        self.calls.append((len(changes), dict(ends)))
        for change in changes:
            self.places[change.user] = change.partition
            self.timely[change.user] = change.timely
            if change.slate is None:
                self.withdrawn.append(change.user)
                self.slates.pop(change.user.decode(), None)
            else:
                self.slates[change.slate.user_id] = change.slate
        return len(changes)


def built(**ranking: object) -> tuple[Settings, ContentIndex, RankerPipeline, Shelf]:
    config = world.settings(ranking=ranking)
    index = world.filled_index(config, 120)
    shelf = Shelf()
    engine = RankingEngine(config, index, ContentStatistics(config, index))
    return config, index, RankerPipeline(config, engine, shelf), shelf


def test_all_users_of_a_round_are_ranked_with_the_model_that_was_newest_when_it_began() -> None:
    config = learned_world.settings(ranking={"batch_users": 4})
    index = world.filled_index(config, 120)
    shelf, asked = Shelf(), 0
    models = [learned_world.published(seed, version=seed) for seed in (1, 2, 3)]

    def newest() -> Published:
        nonlocal asked
        asked += 1
        return models[asked - 1]

    pipeline = RankerPipeline(config, learned_world.engine_over(config, index, None), shelf, newest=newest)
    records = [Arrived(b"user-%d" % i, liked(config, index, i)) for i in range(11)]
    for version in (1, 2):
        asyncio.run(pipeline.handle(round_of(records)))
        assert {slate.ranker for slate in shelf.slates.values()} == {f"learned-{version}"}
    asyncio.run(pipeline.renew_cold_start())
    assert shelf.slates[COLD_START_USER.decode()].ranker == "learned-3"
    assert asked == 3


def test_engagements_with_what_the_last_slate_named_are_counted_by_arm() -> None:
    config = world.settings(ranking={"arms": [{"name": "a-b", "ranker": "blend", "share": 1.0}]})
    index, shelf, ledger = world.filled_index(config, 120), Shelf(), SlateLedger(config)
    engine = RankingEngine(config, index, ContentStatistics(config, index))
    pipeline = RankerPipeline(config, engine, shelf, shows=ledger.shows)

    def counted() -> tuple[float, float]:
        name = "stream_app_arm_engagements_total"
        return tuple(
            REGISTRY.get_sample_value(name, {"arm": "a-b", "content": content}) or 0.0
            for content in ("shown", "other")
        )

    def arrives(i: int) -> None:
        asyncio.run(pipeline.handle(round_of([Arrived(b"u", liked(config, index, i))], 3)))

    begin = counted()
    arrives(1)
    assert counted() == begin  # nothing was shown yet
    ledger.note(b"u", 3, 7, [int(index.keys[row]) for row in (2, 3)])
    arrives(3)
    arrives(5)
    arrives(2)
    assert counted() == (begin[0] + 2, begin[1] + 1)
    ledger.withdraw(b"u", 3)
    arrives(3)
    ledger.note(b"u", 1, 7, [int(index.keys[3])])  # of another partition
    arrives(3)
    assert counted() == (begin[0] + 2, begin[1] + 1)


def liked(config: Settings, index: ContentIndex, i: int, ago: int = 0) -> bytes:
    engagement = Engagement(world.content_id(i), world.NOW - ago)
    return world.interest_record(config, index, [engagement], seen=[engagement.content_id])


def rejected() -> float:
    return REGISTRY.get_sample_value("stream_app_ranker_rejected_total", {"topic": "interests"}) or 0.0


def test_a_record_that_cannot_be_read_is_counted_and_skipped() -> None:
    config, index, pipeline, shelf = built()
    before = rejected()
    broken = [Arrived(b"a", b"no record"), Arrived(b"b", b""), Arrived(b"c", liked(config, index, 1))]
    asyncio.run(pipeline.handle(round_of(broken)))
    assert shelf.slates.keys() == {"c"}
    assert shelf.calls == [(1, {0: 3})]
    assert rejected() - before == 2


def test_every_user_of_a_batch_gets_a_slate_and_who_has_gone_loses_it() -> None:
    config, index, pipeline, shelf = built()
    records = [Arrived(b"user-%d" % i, liked(config, index, i)) for i in range(11)]
    asyncio.run(pipeline.handle(round_of(records, 2)))
    assert sorted(shelf.slates) == sorted(f"user-{i}" for i in range(11))
    assert all(s.kind == "personal" and len(s.items) == 10 for s in shelf.slates.values())
    assert set(shelf.places.values()) == {2}
    assert shelf.calls == [(11, {2: 11})]  # together with the position
    for i in range(11):
        assert f"content-{i}" not in [item.content_id for item in shelf.slates[f"user-{i}"].items]
    asyncio.run(pipeline.handle(round_of([Arrived(b"user-3", None)])))
    assert shelf.withdrawn == [b"user-3"]
    assert "user-3" not in shelf.slates


def test_a_backlog_costs_one_ranking_a_user() -> None:
    config, index, pipeline, shelf = built()
    asyncio.run(pipeline.handle(round_of([Arrived(b"u", liked(config, index, i)) for i in range(50)])))
    assert shelf.published == 1
    assert shelf.slates["u"].items[0].reasons[0].content_id == "content-49"


def test_beyond_the_queue_the_longest_waiting_get_the_cheap_list() -> None:
    config, index, pipeline, shelf = built()
    records = [Arrived(b"user-%d" % i, liked(config, index, i)) for i in range(8)]
    asyncio.run(pipeline.handle(round_of(records, queue_users=3)))
    kinds = [shelf.slates[f"user-{i}"].kind for i in range(8)]
    assert kinds == ["fallback"] * 5 + ["personal"] * 3


def test_slates_stand_at_the_stream_time_of_their_batch() -> None:
    config, index, pipeline, shelf = built(weight_interest=0.0, weight_match=0.0)
    ago = 5 * world.DAY
    record = Arrived(b"u", liked(config, index, 1, ago=ago))

    def newest() -> int:
        shown = shelf.slates["u"].items[0].content_id.encode()
        return int(index.created_at[index.rows[shown]])

    asyncio.run(pipeline.handle(round_of([record])))
    assert world.NOW - 2 * ago < newest() <= world.NOW - ago + 300_000  # not what was yet to come
    asyncio.run(pipeline.handle(round_of([Arrived(b"v", liked(config, index, 2)), record])))
    assert newest() > world.NOW - ago


def test_contents_deleted_between_batches_are_gone() -> None:
    config, index, pipeline, shelf = built()
    record = Arrived(b"u", liked(config, index, 1))
    asyncio.run(pipeline.handle(round_of([record])))
    shown = {item.content_id.encode() for item in shelf.slates["u"].items}
    for id_ in shown:
        index.delete(id_)
    asyncio.run(pipeline.handle(round_of([record])))
    assert not shown & {item.content_id.encode() for item in shelf.slates["u"].items}


@pytest.mark.parametrize("queue_users", [1, 0])
def test_who_would_be_shown_nothing_has_an_empty_slate_and_is_not_withdrawn(queue_users: int) -> None:
    config, index, pipeline, shelf = built()
    record = Arrived(b"u", liked(config, index, 1))
    asyncio.run(pipeline.handle(round_of([record], queue_users=queue_users)))
    for id_ in list(index.rows):
        index.delete(id_)
    asyncio.run(pipeline.handle(round_of([record], queue_users=queue_users)))
    slate = shelf.slates["u"]
    assert slate.items == []
    assert slate.caused_by is not None
    asyncio.run(pipeline.renew({b"u": (0, record.value)}, wanted={b"u"}))
    assert shelf.slates["u"].items == []
    assert shelf.withdrawn == []
    asyncio.run(pipeline.handle(round_of([Arrived(b"u", None)])))
    assert shelf.withdrawn == [b"u"]


def test_slates_are_made_anew_from_records_that_were_looked_up() -> None:
    config, index, pipeline, shelf = built()
    record = liked(config, index, 1)
    asyncio.run(pipeline.handle(round_of([Arrived(b"ranked since", record)])))
    made = shelf.slates["ranked since"]
    found = {
        b"there": (3, record),
        b"gone": (2, None),
        b"unreadable": (1, b"no record"),
        b"ranked since": (0, record),
    }
    before = rejected()
    asyncio.run(pipeline.renew(found, wanted=found.keys() - {b"ranked since"}))
    assert shelf.slates.keys() == {"ranked since", "there", "unreadable"}
    assert shelf.slates["ranked since"] is made
    assert shelf.withdrawn == [b"gone"]
    assert shelf.slates["unreadable"].kind == "cold_start"
    assert shelf.places == {b"there": 3, b"gone": 2, b"unreadable": 1, b"ranked since": 0}
    assert (shelf.timely[b"ranked since"], shelf.timely[b"there"]) == (True, False)
    assert rejected() - before == 1
    assert [ends for _, ends in shelf.calls if ends] == [{0: 1}]  # of the batch, and no other


def test_the_cold_start_slate_is_published_under_its_key() -> None:
    _, _, pipeline, shelf = built()
    asyncio.run(pipeline.renew_cold_start())
    slate = shelf.slates[COLD_START_USER.decode()]
    assert slate.kind == "cold_start"
    assert slate.caused_by is None
    assert shelf.places == {COLD_START_USER: COLD_START_PARTITION}
    assert len(slate.items) == 10


def test_what_cannot_be_published_is_not_finished() -> None:
    config, index, pipeline, shelf = built(batch_users=2)
    shelf.refuses = True
    with pytest.raises(ConnectionError):
        asyncio.run(
            pipeline.handle(round_of([Arrived(b"u%d" % i, liked(config, index, i)) for i in range(5)]))
        )
    shelf.refuses = False
    asyncio.run(pipeline.handle(round_of([Arrived(b"u%d" % i, liked(config, index, i)) for i in range(5)])))
    assert len(shelf.slates) == 5
