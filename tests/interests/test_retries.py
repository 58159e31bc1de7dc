"""Events that wait for their content hold nobody up: not the events, and not each other."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.replay.accounting import read_outcomes
from stream_app.settings import Settings
from tests.interests.closed_form import Sent
from tests.interests.workers import (
    NOW_MS,
    history,
    produce,
    publish_contents,
    unit_vectors,
    wait_for_outcomes,
    wait_until,
    workers,
    worst_error,
)

CONTENTS = 40
LATE = 10  # contents that are published only later
HOURS_S = 7_200.0


@pytest.fixture
def world(settings: Settings) -> Settings:
    settings = msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(settings.kafka, partitions=4, batch_records=64, buffered_batches=2),
        content=msgspec.structs.replace(settings.content, dimensions=32, capacity=1000),
        interests=msgspec.structs.replace(settings.interests, recent=512, seen=512, slab_rows=256),
    )
    create_topics(settings)
    return settings


def with_delays(settings: Settings, *delays: float) -> Settings:
    return msgspec.structs.replace(
        settings, events=msgspec.structs.replace(settings.events, retry_delays_s=delays)
    )


def on_late_contents(events: int) -> list[Sent]:
    return [
        Sent(b"late-%d" % (n % 50), CONTENTS - 1 - n % LATE, 1_000_000 + n, NOW_MS - n) for n in range(events)
    ]


def test_retries_that_are_not_due_for_hours_hold_no_event_up(world: Settings, tmp_path: Path) -> None:
    publish_contents(world, unit_vectors(CONTENTS, 32)[: CONTENTS - LATE])
    patient = with_delays(world, HOURS_S)
    with workers(patient, tmp_path, "w") as (worker,):
        worker.wait_for("serving 4 partitions")
        late = on_late_contents(400)
        for part in range(0, len(late), 40):  # one after the other: many small batches in each partition
            produce(world, late[part : part + 40])
            wait_until(
                lambda so_far=part + 40: read_outcomes(world).retrying >= so_far,  # type: ignore[misc]
                "they wait to be tried again",
                worker.log,
            )
        sent = history(2000, 300, CONTENTS - LATE, seed=7)
        produce(world, sent)
        wait_until(
            lambda: read_outcomes(world).accounted >= len(sent) + len(late), "the others' turn", worker.log
        )
        accounts = read_outcomes(world)
        assert (accounts.retrying, accounts.dead_lettered) == (len(late), 0)
        assert worst_error(world, sent, unit_vectors(CONTENTS, 32)) <= 1e-5
        assert worker.stop() == 0  # and they keep nobody from ending


def test_waiting_retries_survive_their_worker_and_are_applied_when_due(
    world: Settings, tmp_path: Path
) -> None:
    vectors = unit_vectors(CONTENTS, 32)
    publish_contents(world, vectors[: CONTENTS - LATE])
    impatient = with_delays(world, *[4.0] * 16)
    late, sent = on_late_contents(300), history(1000, 300, CONTENTS - LATE, seed=8)
    with workers(impatient, tmp_path, "first", "second") as (first, second):
        first.wait_for("serving 2 partitions")
        produce(world, late[:150] + sent + late[150:])
        wait_until(lambda: read_outcomes(world).retrying >= len(late), "they wait", first.log)
        first.kill()
        second.wait_for("serving 4 partitions")
        publish_contents(world, vectors)
        accounts = wait_for_outcomes(world, len(late) + len(sent), second.log)
        assert accounts.dead_lettered == 0
        assert worst_error(world, late + sent, vectors) <= 1e-5


def test_an_event_whose_content_comes_waits_for_no_hopeless_one_before_it(
    world: Settings, tmp_path: Path
) -> None:
    """The hopeless ones wait for an hour at their second try; whoever comes after them waits some seconds."""
    vectors = unit_vectors(CONTENTS, 32)
    publish_contents(world, vectors[: CONTENTS - LATE])
    with workers(with_delays(world, 5.0, 3600.0), tmp_path, "w") as (worker,):
        worker.wait_for("serving 4 partitions")
        hopeless = [Sent(b"late-%d" % n, 999, 2_000_000 + n, NOW_MS) for n in range(40)]
        produce(world, hopeless)
        second = world.topic_name("events-retry-2")
        wait_until(
            lambda: len(list(clients.read_topic(world, second))) == len(hopeless),
            "their second try to be an hour away",
            worker.log,
        )
        late = on_late_contents(40)
        produce(world, late)
        wait_until(
            lambda: read_outcomes(world).retrying == len(hopeless) + len(late), "they wait", worker.log
        )
        publish_contents(world, vectors)
        wait_until(lambda: read_outcomes(world).applied == len(late), "they are applied", worker.log)
        assert read_outcomes(world).retrying == len(hopeless)


def test_events_that_wait_for_a_try_that_is_configured_no_more_are_not_forgotten(
    world: Settings, tmp_path: Path
) -> None:
    publish_contents(world, unit_vectors(CONTENTS, 32)[: CONTENTS - LATE])
    late = on_late_contents(40)
    with workers(with_delays(world, 0.1, 3600.0), tmp_path, "before") as (before,):
        produce(world, late)
        second = world.topic_name("events-retry-2")
        wait_until(
            lambda: len(list(clients.read_topic(world, second))) == len(late), "an hour's wait", before.log
        )
        assert before.stop() == 0
    with workers(with_delays(world, 0.1), tmp_path, "after") as (after,):
        accounts = wait_for_outcomes(world, len(late), after.log)
        assert (accounts.dead_lettered, accounts.retrying) == (len(late), 0)
