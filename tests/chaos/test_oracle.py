"""The oracle is told lies: a real run is archived, then damaged in one place, and each is noticed."""

from __future__ import annotations

import contextlib
import copy
import json
import struct
import uuid
from collections.abc import Callable

import msgspec
import pytest

from stream_app.chaos.archive import Archive
from stream_app.chaos.archived import Archived, Kept, Sample, Spot
from stream_app.chaos.oracle import TOLERANCE, verdict
from stream_app.errors import ConfigurationError
from stream_app.kafka import clients
from stream_app.kafka.admin import admin_client, create_topics
from stream_app.settings import Settings, build
from tests.conftest import RunningBroker
from tests.interests.closed_form import Sent
from tests.interests.workers import (
    NOW_MS,
    history,
    produce,
    produce_one,
    publish_contents,
    unit_vectors,
    wait_until,
    workers,
)

CONTENTS = 20
UNKNOWN = CONTENTS + 5
HEADER_BYTES, ENTRY_BYTES, VECTOR_BYTES = 96, 32, 4 * 16
LIVE_AT, TOTAL_AT, STORED_AT, T_REF_AT, OFFSET_AT = 56, 64, 84, 40, 16


@pytest.fixture(scope="module")
def world(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    name = f"t{uuid.uuid4().hex[:10]}"
    made = build(
        {
            "kafka": {
                "broker": broker.address,
                "app_id": name,
                "topic_prefix": f"{name}.",
                "partitions": 2,
                "shared_partitions": 2,
                "batch_records": 64,
            },
            "events": {"retry_delays_s": [0.2, 0.3]},
            "interests": {
                "data_dir": str(tmp_path_factory.mktemp("state")),
                "recent": 256,
                "seen": 256,
                "min_mass": 0.0,
            },
            "content": {"dimensions": 16, "capacity": 1000},
            "recommendations": {"skip_unchanged": False},
            "observability": {"port": 0},
        }
    )
    with contextlib.closing(admin_client(made)) as admin:  # its topic is not like the table: it is routed
        wanted = {made.topic_name("shares"): {"num_partitions": 3, "replication_factor": 1}}
        admin.create_topics(wanted, wait_for_metadata=True)
    create_topics(made)
    return made


@pytest.fixture(scope="module")
def whole(world: Settings, tmp_path_factory: pytest.TempPathFactory) -> Archived:
    """A real run, with repeats, undos, malformed events, events on contents nobody knows, events in other
    partitions than their users', and a kill."""
    publish_contents(world, unit_vectors(CONTENTS, 16))
    sent = history(1500, 60, CONTENTS, seed=9)
    sent.insert(300, Sent(b"user-3", UNKNOWN, 5000, NOW_MS - 1000))
    with Archive(world) as archive, workers(world, tmp_path_factory.mktemp("logs"), "w") as (worker,):
        worker.wait_for("serving 2 partitions")
        produce(world, sent[:700])
        worker.kill()
        worker.start()
        with clients.producer(world) as producer:
            for number, value in enumerate((b"", b"{", b"[1]", b'{"user_id":"u"}')):
                producer.send(world.topic_name("likes"), key=b"user-%d" % number, value=value)
            producer.send(world.topic_name("shares"), value=b"nobody's")
            nameless = {"user_id": "user-1", "content_id": "c1", "occurred_at": NOW_MS}
            producer.send(world.topic_name("likes"), key=b"user-1", value=json.dumps(nameless).encode())
        with clients.producer(world) as producer:
            for number, event in enumerate(sent[700:]):
                produce_one(producer, world, event, keyed=number % 3 > 0)

        def settled() -> bool:
            archive.catch_up()
            return archive.unsettled(slates=False) is None

        wait_until(settled, "everything to come to rest", worker.log)
        archive.catch_up()
    archived = archive.archived
    _add_slates(archived)
    return archived


def _add_slates(archived: Archived) -> None:
    """What a ranker would have published."""
    for user, followed in archived.users.items():
        assert followed.value is not None
        topic, partition, offset = archived.last_of(followed.value)
        cause = {"topic": topic, "partition": partition, "offset": offset}
        slate = {"caused_by": cause, "items": [{"content_id": "c1"}]}
        archived.slates[user] = Kept(1, NOW_MS, user, json.dumps(slate).encode())


@pytest.fixture
def archived(whole: Archived) -> Archived:
    """A copy to damage."""
    return copy.deepcopy(whole, {id(whole.settings): whole.settings})


def test_what_is_sound_is_found_sound(archived: Archived) -> None:
    found = verdict(archived)
    assert found.differences == []
    assert found.sound
    assert found.users == 60
    assert found.accounts["dead_lettered"] == 6
    assert found.accounts["duplicates"] > 10
    assert sum(found.accounts.values()) == found.inputs
    assert 0 < found.max_relative_error < TOLERANCE
    assert any(sample.committed for sample in archived.samples), "the offsets were looked at"


# -- lies


def a_user(archived: Archived) -> bytes:
    """One with several interactions that count."""
    return max(archived.users, key=lambda user: len(archived.users[user].events))


def change(archived: Archived, user: bytes, edit: Callable[[bytearray], None]) -> None:
    """Damage a user's newest record."""
    value = bytearray(archived.users[user].value or b"")
    edit(value)
    archived.users[user].value = bytes(value)


def add(at: int, form: str, by: float) -> Callable[[bytearray], None]:
    def edit(value: bytearray) -> None:
        (number,) = struct.unpack_from(form, value, at)
        struct.pack_into(form, value, at, number + by)

    return edit


def ring_at(slot: int) -> int:
    return HEADER_BYTES + VECTOR_BYTES + ENTRY_BYTES * slot


def vector_shifted(archived: Archived) -> None:
    def edit(value: bytearray) -> None:
        vector = struct.unpack_from("<16f", value, HEADER_BYTES)
        length = sum(x * x for x in vector) ** 0.5
        struct.pack_into("<f", value, HEADER_BYTES, vector[0] + 2e-5 * length)

    change(archived, a_user(archived), edit)


def mass_shifted(archived: Archived) -> None:
    def edit(value: bytearray) -> None:
        (mass,) = struct.unpack_from("<d", value, 48)
        struct.pack_into("<d", value, 48, mass * (1 + 2e-5))

    change(archived, a_user(archived), edit)


def record_dropped(archived: Archived) -> None:
    archived.users[a_user(archived)].value = None


def event_dropped(archived: Archived) -> None:
    """The newest interaction of a user, neatly: as if its batch had never been."""

    def edit(value: bytearray) -> None:
        (stored,) = struct.unpack_from("<H", value, STORED_AT)
        del value[ring_at(stored - 1) : ring_at(stored)]
        struct.pack_into("<H", value, STORED_AT, stored - 1)
        add(LIVE_AT, "<q", -1)(value)
        add(TOTAL_AT, "<q", -1)(value)

    change(archived, a_user(archived), edit)


def event_doubled(archived: Archived) -> None:
    """An interaction stands twice, neatly: as if it had not been recognised."""

    def edit(value: bytearray) -> None:
        (stored,) = struct.unpack_from("<H", value, STORED_AT)
        value[ring_at(stored) : ring_at(stored)] = value[ring_at(0) : ring_at(1)]
        struct.pack_into("<H", value, STORED_AT, stored + 1)
        add(LIVE_AT, "<q", 1)(value)
        add(TOTAL_AT, "<q", 1)(value)

    change(archived, a_user(archived), edit)


def summed_twice(archived: Archived) -> None:
    """The ring is right, the sum is not."""
    change(archived, a_user(archived), add(LIVE_AT, "<q", 1))


def undo_forgotten(archived: Archived) -> None:
    user = next(u for u, f in archived.users.items() if 2 in f.states)
    slot = archived.users[user].states.tolist().index(2)

    def edit(value: bytearray) -> None:
        value[ring_at(slot) + 30] = 1

    change(archived, user, edit)


def t_ref_moved(archived: Archived) -> None:
    change(archived, a_user(archived), add(T_REF_AT, "<q", 1))


def t_ref_of_long_ago(archived: Archived) -> None:
    change(archived, a_user(archived), add(T_REF_AT, "<q", -(10**14)))


def content_counted_long_ago(archived: Archived) -> None:
    """The record of before all that counts."""
    key, value = next((k, v) for k, v in archived.statistics.items() if v)
    archived.statistics[key] = value[:8] + struct.pack("<q", NOW_MS - 10**11) + value[16:]


def letter_dropped(archived: Archived) -> None:
    archived.letters.pop()


def letter_doubled(archived: Archived) -> None:
    partition, letter = archived.letters[0]
    archived.letters.append((partition, letter._replace(offset=letter.offset + 1000)))


def letter_of_an_applied_event(archived: Archived) -> None:
    spot, records = next(iter(archived.inputs.items()))
    kept = next(iter(records.values()))
    _, letter = archived.letters[0]
    here = {
        "topic": spot.topic,
        "partition": spot.partition,
        "offset": kept.offset,
        "timestamp": kept.timestamp,
    }
    ours = {**dict(letter.headers), **{f"stream-app-{k}": str(v).encode() for k, v in here.items()}}
    archived.letters.append((0, letter._replace(headers=tuple(ours.items()))))


def letter_with_a_wrong_reason(archived: Archived) -> None:
    at = next(
        i
        for i, (_, one) in enumerate(archived.letters)
        if ("stream-app-reason", b"unknown_content") not in one.headers
    )
    partition, letter = archived.letters[at]
    headers = tuple((k, b"oversized" if k == "stream-app-reason" else v) for k, v in letter.headers)
    archived.letters[at] = (partition, letter._replace(headers=headers))


def given_up_too_early(archived: Archived) -> None:
    """A dead letter for a content that had been there for an hour."""
    vector = next(iter(archived.contents.values()))[0]
    content = b"c%d" % UNKNOWN
    archived.contents[content] = [vector._replace(key=content, timestamp=vector.timestamp - 3_600_000)]


def retried_twice(archived: Archived) -> None:
    spot, copies = next((spot, copies) for spot, copies in archived.copies.items() if copies)
    one = next(iter(copies.values()))
    copies[one.offset + 1000] = one._replace(offset=one.offset + 1000)
    latest = archived.samples[-1]  # it has been read, too
    archived.samples.append(latest._replace(committed={**latest.committed, spot: 9_999}))


def routed_twice(archived: Archived) -> None:
    copies = next(copies for copies in archived.routed.values() if copies)
    one = next(iter(copies.values()))
    copies[one.offset + 100_000] = one._replace(offset=one.offset + 100_000)


def routed_and_not_said(archived: Archived) -> None:
    told = next(iter(archived.routers.values()))
    told[-1] = (told[-1][0], told[-1][1] | {"routed": told[-1][1]["routed"] - 1})


def account_wrong(archived: Archived) -> None:
    offset, account = archived.accounts[0][-1]
    archived.accounts[0][-1] = (offset, account | {"duplicates": account["duplicates"] + 1})


def accounts_swapped_between_partitions(archived: Archived) -> None:
    one, two = archived.accounts[0], archived.accounts[1]
    one[-1], two[-1] = (one[-1][0], two[-1][1]), (two[-1][0], one[-1][1])


def offset_ahead_of_the_changelog(archived: Archived) -> None:
    """The offsets of the end, committed before anything else stood on the topics."""
    first, last = archived.samples[0], archived.samples[-1]
    archived.samples.insert(0, Sample(last.committed, first.ends))


def offset_ahead_by_one(archived: Archived) -> None:
    """The last record of one user came when its offset was committed already."""
    user = archived.users[a_user(archived)]
    last = int(user.events[-1])
    interests = archived.settings.topic_name("interests")
    end = archived.samples[-1].ends[interests, user.partition]
    user.first[last] = end


def content_counted_wrong(archived: Archived) -> None:
    key, value = next((k, v) for k, v in archived.statistics.items() if v)
    form = "<f"
    at = len(value) - struct.calcsize(form)
    (count,) = struct.unpack_from(form, value, at)
    archived.statistics[key] = value[:at] + struct.pack(form, count + 0.5)


def content_not_counted(archived: Archived) -> None:
    del archived.statistics[next(iter(archived.statistics))]


def slate_missing(archived: Archived) -> None:
    del archived.slates[a_user(archived)]


def edit_slate(archived: Archived, **fields: object) -> None:
    user = a_user(archived)
    slate = json.loads(archived.slates[user].value or b"")
    archived.slates[user] = Kept(2, NOW_MS, user, json.dumps(slate | fields).encode())


def slate_for_an_earlier_event(archived: Archived) -> None:
    topic = archived.settings.topic_name("likes")
    edit_slate(archived, caused_by={"topic": topic, "partition": 0, "offset": 0})


def slate_with_a_deleted_content(archived: Archived) -> None:
    history = archived.contents[b"c1"]
    history.append(history[-1]._replace(value=None))


def slate_of_a_user_who_is_gone(archived: Archived) -> None:
    archived.slates[b"nobody"] = archived.slates[a_user(archived)]


def last_event_not_the_users(archived: Archived) -> None:
    user = a_user(archived)
    change(archived, user, add(OFFSET_AT, "<q", 100_000))
    topic, partition, offset = archived.last_of(archived.users[user].value or b"")
    edit_slate(archived, caused_by={"topic": topic, "partition": partition, "offset": offset})


@pytest.mark.parametrize(
    ("lie", "noticed"),
    [
        (vector_shifted, "users_wrong"),
        (mass_shifted, "users_wrong"),
        (t_ref_moved, "users_wrong"),
        (t_ref_of_long_ago, "users_wrong"),
        (last_event_not_the_users, "users_wrong"),
        (record_dropped, "lost"),
        (event_dropped, "lost"),
        (letter_dropped, "lost"),
        (undo_forgotten, "lost"),
        (event_doubled, "doubled"),
        (summed_twice, "doubled"),
        (letter_doubled, "doubled"),
        (letter_of_an_applied_event, "doubled"),
        (retried_twice, "doubled"),
        (routed_twice, "doubled"),
        (routed_and_not_said, "counters"),
        (letter_with_a_wrong_reason, "misjudged"),
        (given_up_too_early, "misjudged"),
        (account_wrong, "counters"),
        (accounts_swapped_between_partitions, "counters"),
        (offset_ahead_of_the_changelog, "committed_ahead"),
        (offset_ahead_by_one, "committed_ahead"),
        (content_counted_wrong, "statistics_wrong"),
        (content_not_counted, "statistics_wrong"),
        (content_counted_long_ago, "statistics_wrong"),
        (slate_missing, "slates_wrong"),
        (slate_for_an_earlier_event, "slates_wrong"),
        (slate_with_a_deleted_content, "slates_wrong"),
        (slate_of_a_user_who_is_gone, "slates_wrong"),
    ],
)
def test_a_lie_is_noticed(archived: Archived, lie: Callable[[Archived], None], noticed: str) -> None:
    lie(archived)
    found = verdict(archived)
    assert not found.sound
    assert noticed in (found.wrongs if found.counters_equal else [*found.wrongs, "counters"]), (
        found.differences
    )
    assert any(difference.startswith(f"{noticed}: ") for difference in found.differences)


def test_a_shift_of_two_parts_in_a_hundred_thousand_is_measured(archived: Archived) -> None:
    vector_shifted(archived)
    assert 1.8e-5 < verdict(archived).max_relative_error < 2.2e-5


def test_what_a_record_once_held_may_not_go(archived: Archived) -> None:
    """A stale record in between: the newest one is right again, yet what was read from it was not."""
    user = archived.users[a_user(archived)]
    whole = user.value
    event_dropped(archived)
    stale = user.value
    user.take(user.offset + 1, stale)
    user.take(user.offset + 1, whole)
    assert verdict(archived).lost == 1


def test_settings_under_which_it_cannot_judge_are_refused(archived: Archived) -> None:
    settings = archived.settings
    interests = msgspec.structs.replace(settings.interests, min_mass=0.001)
    archived.settings = msgspec.structs.replace(settings, interests=interests)
    with pytest.raises(ConfigurationError, match="min_mass"):
        verdict(archived)


def test_a_range_that_nobody_can_read_is_accounted_for_by_its_letter(archived: Archived) -> None:
    at, (partition, letter) = next(
        (n, (p, kept)) for n, (p, kept) in enumerate(archived.letters) if kept.value == b"{"
    )
    named = dict(letter.headers)
    first = int(named["stream-app-offset"] or b"")
    more = (("stream-app-last-offset", b"%d" % first), ("stream-app-records", b"1"))
    ranged = letter._replace(value=None, key=None, headers=(*letter.headers, *more))
    archived.letters[at] = partition, ranged
    assert "there are records that can be read" in str(verdict(archived).differences)
    spot = Spot((named["stream-app-topic"] or b"").decode(), 0, int(named["stream-app-partition"] or b""))
    del archived.inputs[spot][first]
    assert verdict(archived).differences == []
    assert archived.unsettled(slates=False) is None
