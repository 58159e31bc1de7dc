"""Directories of partitions that moved away go after a while; those that anybody uses or may use stay."""

from __future__ import annotations

import signal
from pathlib import Path

import msgspec
import pytest

from stream_app.interests.directories import LeftDirectories
from stream_app.interests.store import CONDEMNED, PartitionStore
from stream_app.kafka.admin import create_topics
from stream_app.settings import Settings, build
from tests.interests.workers import (
    Worker,
    history,
    produce,
    publish_contents,
    unit_vectors,
    wait_for_outcomes,
    wait_until,
    workers,
)

DELAY_S = 600.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def left(parent: Path, clock: Clock) -> LeftDirectories:
    settings = build(
        {
            "kafka": {"app_id": "ours"},
            "interests": {"data_dir": str(parent), "cleanup_delay_s": DELAY_S},
        }
    )
    return LeftDirectories(settings, clock)


def written(directory: Path) -> Path:
    store = PartitionStore(directory)
    store.write([(b"erased-user", b"a record")], 1)
    store.close()
    return directory


def test_it_goes_once_its_partition_has_been_away_for_so_long(
    parent: Path, left: LeftDirectories, clock: Clock
) -> None:
    gone, kept = written(parent / "ours-interests-0"), written(parent / "ours-interests-1")
    (gone / CONDEMNED).touch()
    assert left.remove({0, 1}) == []
    assert left.remove({1}) == []
    clock.now += DELAY_S - 1
    assert left.remove({1}) == []
    clock.now += 1
    assert left.remove({1}) == [0]
    assert not gone.exists()
    assert kept.exists()


def test_one_that_came_back_meanwhile_begins_anew(parent: Path, left: LeftDirectories, clock: Clock) -> None:
    directory = written(parent / "ours-interests-0")
    left.remove(())
    clock.now += DELAY_S - 1
    left.remove({0})
    clock.now += 2
    assert left.remove(()) == []
    clock.now += DELAY_S
    assert left.remove(()) == [0]
    assert not directory.exists()


def test_what_is_open_or_not_ours_stays(parent: Path, left: LeftDirectories, clock: Clock) -> None:
    names = ("theirs-interests-0", "ours-serve-0", "ours-interests-01", "ours-interests-x", "photos")
    others = [written(parent / name) for name in names]
    held = PartitionStore(parent / "ours-interests-2")
    held.write([(b"user", b"a record")], 1)
    left.remove(())
    clock.now += DELAY_S
    assert left.remove(()) == []
    assert all(other.exists() for other in others)
    assert held.get([b"user"]) == [b"a record"]
    held.close()
    assert left.remove(()) == [2]  # the next time


def test_without_a_directory_nothing_happens(left: LeftDirectories) -> None:
    assert left.remove(()) == []


@pytest.fixture
def world(settings: Settings) -> Settings:
    settings = msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(settings.kafka, session_timeout_s=6.0),
        content=msgspec.structs.replace(settings.content, dimensions=16, capacity=100),
        interests=msgspec.structs.replace(settings.interests, cleanup_delay_s=2.0, flush_interval_s=0.2),
    )
    create_topics(settings)
    publish_contents(settings, unit_vectors(20, 16))
    return settings


def directories(path: Path) -> set[str]:
    return {one.name.rpartition("-")[2] for one in path.iterdir()} if path.exists() else set()


def test_a_former_owner_keeps_nobody_on_its_disk(world: Settings, tmp_path: Path) -> None:
    sent = history(200, 40, 20)
    with workers(world, tmp_path, "a") as (a,):
        produce(world, sent)
        wait_for_outcomes(world, len(sent), a.log)
        wait_until(lambda: directories(tmp_path / "a") == {"0", "1"}, "both partitions on its disk", a.log)
        b = Worker(world, "b", tmp_path)
        try:
            b.start()
            wait_until(lambda: len(directories(tmp_path / "b")) == 1, "one of them to move", b.log)
            (moved,) = directories(tmp_path / "b")
            a.wait_for(f"-interests-{moved}: its partition moved away")
            assert directories(tmp_path / "a") == {"0", "1"} - {moved}
            assert directories(tmp_path / "b") == {moved}
            b.signal(signal.SIGTERM)
            wait_until(lambda: directories(tmp_path / "a") == {"0", "1"}, "it to come back", a.log)
            more = history(200, 40, 20, seed=2)
            produce(world, more)
            wait_for_outcomes(world, len(sent) + len(more), a.log)
        finally:
            b.kill()
