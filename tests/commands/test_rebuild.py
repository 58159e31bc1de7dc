"""``stream-app rebuild``: the state of the events that are left, what is lost named, nothing half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from stream_app import cli
from stream_app.errors import TransactionError
from stream_app.interests import rebuild as rebuilding
from stream_app.interests.statistics_record import Outcomes
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics, delete_records, group_members
from stream_app.kafka.transactions import Transactions
from stream_app.replay.accounting import read_outcomes
from stream_app.settings import Settings
from tests.interests.closed_form import Sent
from tests.interests.workers import (
    history,
    produce,
    publish_contents,
    states,
    unit_vectors,
    wait_for_outcomes,
    wait_until,
    workers,
    worst_error,
)

CONTENTS = 20
D = 16

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def world(settings: Settings) -> Settings:
    settings = msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(settings.kafka, session_timeout_s=6.0, batch_records=64),
        content=msgspec.structs.replace(settings.content, dimensions=D, capacity=1000),
        interests=msgspec.structs.replace(settings.interests, recent=8, seen=8, sweep_interval_s=0.5),
    )
    create_topics(settings)
    publish_contents(settings, unit_vectors(CONTENTS, D))
    return settings


@pytest.fixture
def command(world: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``stream-app`` on the world; its status, and what it says."""
    monkeypatch.setattr(cli, "_configuration", lambda _: world)

    def run(*arguments: str) -> tuple[int, str]:
        status = cli.run(arguments)
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def likes(first: int, count: int) -> list[Sent]:
    """Distinct likes of twenty users."""
    sent = history(2 * count, 20, CONTENTS, seed=first + 1)
    return [replace(e, event=first + n, weight=1.0, undo=False) for n, e in enumerate(sent[:count])]


def one_off(user: bytes, event: int) -> Sent:
    return replace(likes(0, 1)[0], user=user, event=event)


def test_the_state_is_that_of_the_events_that_are_left(
    world: Settings, tmp_path: Path, command: Command
) -> None:
    expired, left, later = [one_off(b"gone", 1), *likes(1_000, 99)], likes(2_000, 200), likes(9_000, 50)
    topic = world.topic_name("likes")
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, expired)
        wait_for_outcomes(world, 100, worker.log)
        ends: dict[int, int] = {}
        for record in clients.read_topic(world, topic):
            ends[record.partition] = record.offset + 1
        produce(world, left)
        wait_for_outcomes(world, 300, worker.log)
        delete_records(world, {(topic, p): end for p, end in ends.items()})

        status, said = command("rebuild", "--dry-run")
        assert status == 0
        assert "21 users with 300 interactions" in said
        assert "still hold 200 records" in said
        assert "100 have left them" in said
        assert "lost would be 1 users, of whom no event is left, and at least 100 interactions" in said

        status, said = command("rebuild", "--yes")
        assert status == 1
        assert "end all interests workers first" in said
        assert worker.stop() == 0
        wait_until(lambda: group_members(world, world.group("interests")) == 0, "it to have left")
        before = states(world)
        status, said = command("rebuild")
        assert (status, "nothing was done" in said) == (1, True)
        assert states(world).keys() == before.keys()
        assert read_outcomes(world).applied == 300

        assert command("rebuild", "--yes")[0] == 0
        assert states(world) == {}
        assert read_outcomes(world) == Outcomes()
        produce(world, later)
        worker.start()
        assert wait_for_outcomes(world, 250, worker.log) == Outcomes(applied=250)
        assert worst_error(world, left + later, unit_vectors(CONTENTS, D)) <= 1e-5
        assert worker.stop() == 0


def test_who_was_erased_does_not_come_back(world: Settings, tmp_path: Path, command: Command) -> None:
    sent = likes(0, 100)
    victim = sent[0].user
    theirs = sum(event.user == victim for event in sent)
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, sent)
        wait_for_outcomes(world, 100, worker.log)
        assert command("erase", victim.decode())[0] == 0
        assert worker.stop() == 0
        wait_until(lambda: group_members(world, world.group("interests")) == 0, "it to have left")
        assert command("rebuild", "--yes")[0] == 0
        worker.start()
        accounts = wait_for_outcomes(world, 100, worker.log)
        assert accounts == Outcomes(applied=100 - theirs, dead_lettered=theirs)
        assert victim not in states(world)
        assert worker.stop() == 0


@pytest.mark.parametrize("transactions", [0, 1, 2])
def test_half_a_rebuild_is_served_by_nobody(
    world: Settings, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, transactions: int
) -> None:
    """It breaks off after so many transactions; before the first one everything is as it was."""
    sent = likes(0, 100)
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, sent)
        wait_for_outcomes(world, 100, worker.log)
        assert worker.stop() == 0
        wait_until(lambda: group_members(world, world.group("interests")) == 0, "it to have left")
        with monkeypatch.context() as broken:
            commit, left = Transactions.commit, [transactions]

            async def some(self: Transactions, *arguments: object) -> object:
                if not left[0]:
                    raise TransactionError("broken off")
                left[0] -= 1
                return await commit(self, *arguments)  # type: ignore[arg-type]

            broken.setattr(Transactions, "commit", some)
            with pytest.raises(TransactionError):
                asyncio.run(rebuilding.rebuild(world, 0))
        worker.start()
        if transactions:
            assert worker.end() == 1
            assert "run `stream-app rebuild` again" in worker.log.read_text()
            wait_until(lambda: group_members(world, world.group("interests")) == 0, "it to have left")
            assert command("rebuild", "--yes")[0] == 0
            worker.start()
        assert wait_for_outcomes(world, 100, worker.log) == Outcomes(applied=100)
        assert worst_error(world, sent, unit_vectors(CONTENTS, D)) <= 1e-5
        assert worker.stop() == 0
