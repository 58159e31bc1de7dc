"""The Python client against real Kafka, and what it imports."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from stream_app import client
from stream_app.client import COLD_START_USER_ID, EventProducer, Subscriber, Update
from stream_app.content.schema import Content, ContentDecoder
from stream_app.errors import BrokerUnavailableError, ConfigurationError, DeliveryError
from stream_app.events.decode import DecodedBatch, EventDecoder
from stream_app.events.impressions import ImpressionDecoder, ShownList
from stream_app.kafka import admin, clients
from stream_app.settings import Settings, build
from tests.commands.records import slate

PATIENCE_S = 60.0
"""Bound on waiting for an update that does not come."""


def test_importing_it_needs_neither_torch_nor_faust() -> None:
    heavy = ("torch", "transformers", "faust", "mode", "rocksdict")
    command = f"import sys, stream_app.client; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", command], timeout=60).returncode == 0


@pytest.fixture
def producer(settings: Settings, topics: list[str]) -> Iterator[EventProducer]:
    with EventProducer(settings) as producer:
        yield producer


def accepted(settings: Settings, topic: str) -> DecodedBatch:
    """What the workers' own decoder makes of everything on an action's topic."""
    records = list(clients.read_topic(settings, settings.topic_name(topic)))
    assert len({record.partition for record in records}) == 1
    batch = EventDecoder(settings).decode(records, settings.topic_name(topic), records[0].partition, None)
    assert not batch.rejected
    return batch


def test_events_are_those_that_workers_accept(settings: Settings, producer: EventProducer) -> None:
    like = producer.like("ana", "post-1")
    producer.undo(like)
    producer.like("ana", "post-2", occurred_at=datetime(2026, 5, 1, 10, tzinfo=UTC), event_id="mine")
    producer.comment("ana", "post-1", text="…")
    producer.share("ana", "post-3", occurred_at=1_777_000_000_000)
    producer.flush()
    likes = accepted(settings, "likes")
    assert [bool(undo) for undo in likes.undo] == [False, True, False]
    assert likes.events[0] == likes.events[1] != likes.events[2]
    assert likes.times.tolist()[:2] == [like.occurred_at] * 2
    assert likes.times.tolist()[2] == 1_777_629_600_000
    assert len(accepted(settings, "comments").users) == 1
    assert accepted(settings, "shares").times.tolist() == [1_777_000_000_000]


def test_a_trace_goes_out_with_an_event_and_comes_with_a_slate(
    settings: Settings, producer: EventProducer
) -> None:
    trace = [("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    producer.send("like", "ana", "post-1", headers=trace)
    producer.like("ana", "post-2")
    producer.flush()
    sent = clients.read_topic(settings, settings.topic_name("likes"))
    assert [list(record.headers) for record in sent] == [trace, []]
    with contextlib.closing(clients.producer(settings)) as other:
        value = slate("ana", "c2", "c3")
        other.send(settings.topic_name("recommendations"), key=b"ana", value=value, headers=trace)
        other.flush()
    with Subscriber(settings, idle_s=PATIENCE_S) as subscriber:
        (update,) = taken(subscriber, 1)
    assert list(update.headers) == trace


def test_ids_are_made_anew_for_each_event(producer: EventProducer) -> None:
    assert producer.like("ana", "post-1").event_id != producer.like("ana", "post-1").event_id


def test_contents_are_those_that_workers_accept(settings: Settings, producer: EventProducer) -> None:
    producer.publish("post-1", Content(title="Salt the pasta water", author="mara"))
    producer.delete("post-1")
    producer.flush()
    records = list(clients.read_topic(settings, settings.topic_name("content")))
    decoded = ContentDecoder(settings).decode(records)
    assert not decoded.rejected
    assert [record.value is None for record in records] == [False, True]


def test_impressions_are_those_that_workers_accept(settings: Settings, producer: EventProducer) -> None:
    producer.shown("ana", ["post-2", "post-1"], slate_id="0123456789abcdef", shown_at=1_777_000_000_000)
    producer.shown("ana", ["post-1"])
    producer.flush()
    decoder = ImpressionDecoder(settings)
    found = [
        decoder.decode(record.key, record.value, record.timestamp)
        for record in clients.read_topic(settings, settings.topic_name("impressions"))
    ]
    assert [len(shown.keys) for shown in found if isinstance(shown, ShownList)] == [2, 1]
    assert isinstance(found[0], ShownList)
    assert (found[0].user, found[0].time, found[0].of_slate) == (b"ana", 1_777_000_000_000, True)


def test_what_workers_would_refuse_is_refused_here(producer: EventProducer) -> None:
    for user, content in (("", "c"), ("u", ""), ("u" * 257, "c"), ("u", "\x00c"), ("a\nb", "c")):
        with pytest.raises(ValueError, match=r"^(user|content)_id (is empty|has )"):
            producer.like(user, content)
    with pytest.raises(ValueError, match="event_id has control"):
        producer.like("u", "c", event_id="\x1b[2J")
    with pytest.raises(ValueError, match="no time zone"):
        producer.like("u", "c", occurred_at=datetime(2026, 5, 1))
    with pytest.raises(ValueError, match=r"at most events\.max_bytes"):
        producer.comment("u", "c", text="x" * 70_000)
    with pytest.raises(ValueError, match=r"at most content\.max_bytes"):
        producer.publish("c", Content(text="x" * 1_100_000))
    for contents in ([], ["c"] * 65):
        with pytest.raises(ValueError, match=r"at most impressions\.max_contents \(64\)"):
            producer.shown("u", contents)
    with pytest.raises(ValueError, match="content_id is empty"):
        producer.shown("u", ["c", ""])
    with pytest.raises(ConfigurationError, match=r"'hug' is no action: events\.actions has like, comment"):
        producer.send("hug", "u", "c")


def test_any_configured_action_can_be_sent(settings: Settings, producer: EventProducer) -> None:
    """Also one that the client has no method for."""
    producer.send("share", "ana", "post-1")
    producer.flush()
    assert len(accepted(settings, "shares").users) == 1


def test_what_is_not_delivered_is_raised_once(settings: Settings, producer: EventProducer) -> None:
    likes = settings.topic_name("likes")
    with contextlib.closing(clients.admin_client(settings)) as connected:
        connected.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, likes, {"max.message.bytes": "300"})]
        )
    sent = producer.like("ana", "post-1", text="".join(chr(33 + n % 90) * (n % 7) for n in range(3000)))
    producer.share("ana", "post-1")
    with pytest.raises(DeliveryError, match=r"^1 records may not stand on Kafka \(.*\): send them again"):
        producer.flush()
    producer.flush()
    producer.like("ana", "post-1", event_id=sent.event_id)
    producer.flush()
    assert len(accepted(settings, "likes").users) == 1


def test_no_broker_is_said() -> None:
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:9"):
        EventProducer(build({"kafka": {"broker": "127.0.0.1:9"}}))


def published(settings: Settings, *slates: tuple[str, bytes | None]) -> None:
    with contextlib.closing(clients.producer(settings)) as producer:
        for user, value in slates:
            producer.send(settings.topic_name("recommendations"), key=user.encode(), value=value)
        producer.flush()


def taken(subscriber: Subscriber, count: int) -> list[Update]:
    """Those and the next one asked for: they are done."""
    updates = iter(subscriber)
    return [next(updates) for _ in range(count)]


def test_slates_withdrawals_and_the_slate_of_everybody_else(settings: Settings, topics: list[str]) -> None:
    published(
        settings,
        ("ana", slate("ana", "c2", "c3")),
        ("ana", b"no slate"),
        ("ana", None),
        (COLD_START_USER_ID, slate(COLD_START_USER_ID, "c9")),
    )
    with Subscriber(settings, idle_s=PATIENCE_S) as subscriber:
        updates = taken(subscriber, 3)
    of_ana = [update.slate for update in updates if update.user_id == "ana"]
    assert of_ana[0] is not None
    assert [item.content_id for item in of_ana[0].items] == ["c2", "c3"]
    assert of_ana[1] is None
    (everybody,) = (update.slate for update in updates if update.user_id == COLD_START_USER_ID)
    assert everybody is not None
    with Subscriber(settings, idle_s=PATIENCE_S) as subscriber:
        assert len(taken(subscriber, 3)) == 3, "without a group each begins at the beginning"
        assert subscriber.rejected <= 1


def test_a_group_goes_on_with_what_was_not_done(settings: Settings, topics: list[str]) -> None:
    """Of the last update in hand nobody knows whether it was dealt with: it comes again."""
    published(settings, *(("ana", slate("ana", f"c{n}")) for n in range(6)))

    def contents(updates: list[Update]) -> list[str]:
        return [update.slate.items[0].content_id for update in updates if update.slate is not None]

    with Subscriber(settings, group=f"{settings.kafka.app_id}-home", idle_s=PATIENCE_S) as subscriber:
        assert contents(taken(subscriber, 4)) == ["c0", "c1", "c2", "c3"]
    with Subscriber(settings, group=f"{settings.kafka.app_id}-home", idle_s=PATIENCE_S) as subscriber:
        assert contents(taken(subscriber, 3)) == ["c3", "c4", "c5"]


CONTENTS = [f"c{n}" for n in range(10)]


def shown(update: Update) -> str:
    """Which of the slates of ``numbered`` it is."""
    assert update.slate is not None
    return update.slate.items[0].content_id


@pytest.fixture
def numbered(settings: Settings, topics: list[str]) -> Settings:
    """With ten slates of one user, told apart by their content."""
    published(settings, *(("ana", slate("ana", content)) for content in CONTENTS))
    return settings


def committed(settings: Settings, group: str) -> int:
    """What the group has committed, over all partitions."""
    topic = settings.topic_name("recommendations")
    return sum(admin.committed_offset(settings, group, topic, partition) for partition in (0, 1))


@pytest.mark.parametrize("group", ["home", None])
@pytest.mark.parametrize("leaves", ["break", "exception", "abandoned"])
def test_a_loop_is_left_and_entered_again(numbered: Settings, group: str | None, leaves: str) -> None:
    """Whatever way it is left: what was fetched and not handed out is neither lost nor committed."""
    name = group and f"{numbered.kafka.app_id}-{group}"
    seen: list[str] = []
    with Subscriber(numbered, group=name, idle_s=PATIENCE_S) as subscriber:
        for _ in range(4):
            kept = iter(subscriber)
            with contextlib.suppress(LookupError):
                for update in kept:
                    seen.append(shown(update))
                    if len(seen) % 3 == 0 or len(seen) == len(CONTENTS):
                        if leaves == "exception":
                            raise LookupError
                        break
            if leaves != "abandoned":
                del kept
            if name is not None:
                subscriber._commit(0.0)
                assert committed(numbered, name) == len(seen) - 1, "all but the one in hand"
    assert seen == CONTENTS


def test_who_comes_after_an_exception_gets_what_was_not_done(numbered: Settings) -> None:
    group = f"{numbered.kafka.app_id}-home"
    seen: list[str] = []

    def fails_at_the_fourth() -> None:
        with Subscriber(numbered, group=group, idle_s=PATIENCE_S) as subscriber:
            for update in subscriber:
                if shown(update) == "c3":
                    raise LookupError
                seen.append(shown(update))

    with pytest.raises(LookupError):
        fails_at_the_fourth()
    assert committed(numbered, group) == len(seen) == 3
    with Subscriber(numbered, group=group, idle_s=PATIENCE_S) as subscriber:
        seen += [shown(update) for update in taken(subscriber, 7)]
    assert seen == CONTENTS


def test_partitions_that_go_to_another_member_take_what_waits_with_them(numbered: Settings) -> None:
    """One has three of ten in its program when another joins; it goes on with what it has fetched."""
    group = f"{numbered.kafka.app_id}-home"
    published(numbered, *((f"u{n}", slate(f"u{n}", f"other{n}")) for n in range(20)))
    everything = {*CONTENTS, *(f"other{n}" for n in range(20))}
    seen: list[str] = []
    both = threading.Barrier(2, timeout=PATIENCE_S)

    def follow(subscriber: Subscriber) -> None:
        for update in subscriber:
            seen.append(shown(update))
            if everything <= set(seen):
                return

    def join() -> None:
        with Subscriber(numbered, group=group, idle_s=5.0) as second:
            both.wait()
            follow(second)

    with Subscriber(numbered, group=group, idle_s=5.0) as first:
        seen += [shown(update) for update in taken(first, 3)]
        other = threading.Thread(target=join)
        other.start()
        both.wait()
        follow(first)
        other.join(PATIENCE_S)
    assert not other.is_alive()
    assert set(seen) == everything


def test_a_closed_one_hands_out_nothing_more(numbered: Settings) -> None:
    subscriber = Subscriber(numbered, idle_s=PATIENCE_S)
    assert [shown(update) for update in taken(subscriber, 3)] == CONTENTS[:3]
    subscriber.close()
    with pytest.raises((KafkaError, AssertionError, RuntimeError)):
        next(iter(subscriber))


def test_iterating_ends_when_nothing_comes(settings: Settings, topics: list[str]) -> None:
    with Subscriber(settings, idle_s=0.1) as subscriber:
        assert list(subscriber) == []


def test_the_cold_start_user_is_the_reserved_key() -> None:
    assert client.COLD_START_USER_ID == "\x00cold-start"
