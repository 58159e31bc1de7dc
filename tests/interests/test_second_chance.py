"""Redriven dead letters on a real worker: applied once, recognised when they come twice, never in a loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_app.commands.dlq_letters import Selection, read_letters
from stream_app.commands.dlq_redrive import Summary, redrive
from stream_app.events.dead_letters import our_headers, written_ms
from stream_app.events.redrive import SecondChances
from stream_app.hashing import action_code, action_mask, key64
from stream_app.interests.statistics_record import Outcomes
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.settings import Settings
from tests.interests.workers import publish_contents, states, unit_vectors, wait_for_outcomes, workers

D = 16
VECTORS = unit_vectors(4, D)


@pytest.fixture
def world(settings: Settings) -> Settings:
    settings = msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(settings.kafka, session_timeout_s=3.0),
        events=msgspec.structs.replace(settings.events, retry_delays_s=(0.05, 0.1), max_redrives=2),
        content=msgspec.structs.replace(settings.content, dimensions=D, capacity=100),
    )
    create_topics(settings)
    return settings


def again(settings: Settings) -> Summary:
    """Redrive whatever there is."""
    return redrive(
        settings, Selection(), limit=None, dry_run=False, refused=lambda *_: None, progress=lambda _: None
    )


def send_bare(settings: Settings, user: str, content: str) -> Any:
    """An event without id and time of its own; where it stands."""
    value = json.dumps({"user_id": user, "content_id": content}).encode()
    with clients.producer(settings) as producer:
        return producer.send(settings.topic_name("shares"), key=user.encode(), value=value).get(10)


def test_a_letter_is_applied_once_the_content_is_there_as_if_it_came_in_time(
    world: Settings, tmp_path: Path
) -> None:
    publish_contents(world, VECTORS[:1])
    with workers(world, tmp_path, "w") as (worker,):
        first = send_bare(world, "u", "c3")
        assert wait_for_outcomes(world, 1, worker.log) == Outcomes(dead_lettered=1)
        (letter,) = read_letters(world, Selection())
        assert our_headers(letter)["reason"] == b"unknown_content"
        publish_contents(world, VECTORS)
        assert again(world) == Summary(redriven=1)
        assert wait_for_outcomes(world, 2, worker.log) == Outcomes(applied=1, dead_lettered=1)
        record = states(world)[b"u"]
        (interaction,) = record.interactions
        place = f"{world.topic_name('shares')}-{first.partition}-{first.offset}-{first.timestamp}"
        assert interaction["event"] == key64(place) ^ action_mask(action_code("share"))
        assert interaction["time"] == record.header["received_at"] == record.t_ref == first.timestamp
        assert (record.header["partition"], record.header["offset"]) == (first.partition, first.offset)

        assert again(world) == Summary(redriven_before=1)
        # past the marks: whoever copies a letter by hand, twice, finds it recognised
        copy, _ = SecondChances(world, {world.topic_name("events-retry"): 2}).outputs(letter, 0)
        with clients.producer(world) as producer:
            for _ in range(2):
                producer.send(copy.topic, copy.value, copy.key, list(copy.headers), partition=copy.partition)
        accounts = wait_for_outcomes(world, 4, worker.log)
        assert accounts == Outcomes(applied=1, duplicates=2, dead_lettered=1)
        assert states(world)[b"u"].interactions.tobytes() == record.interactions.tobytes()
        assert worker.stop() == 0


def test_a_hopeless_letter_comes_back_with_its_history_and_no_more_often_than_is_set(
    world: Settings, tmp_path: Path
) -> None:
    publish_contents(world, VECTORS[:1])
    with workers(world, tmp_path, "w") as (worker,):
        first = send_bare(world, "u", "never")
        wait_for_outcomes(world, 1, worker.log)
        for chance in range(2):
            assert again(world) == Summary(redriven=1, redriven_before=chance)
            accounts = wait_for_outcomes(world, 2 + chance, worker.log)
            assert accounts == Outcomes(dead_lettered=2 + chance)
        for _ in range(2):
            assert again(world) == Summary(redriven_before=2, refused={"too_often": 1})
        letters = sorted(read_letters(world, Selection()), key=written_ms)
        assert [our_headers(letter).get("redrives") for letter in letters] == [None, b"1", b"2"]
        history = ",".join(f"unknown_content@{written_ms(letter)}" for letter in letters[:2])
        assert our_headers(letters[2])["history"] == history.encode()
        for letter in letters:
            ours = our_headers(letter)
            assert (int(ours["offset"]), int(ours["timestamp"])) == (first.offset, first.timestamp)
            assert ours["attempts"] == b"2", "each chance has all its tries"
        assert wait_for_outcomes(world, 3, worker.log).accounted == 3
        assert states(world) == {}
