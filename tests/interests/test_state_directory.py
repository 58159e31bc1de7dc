"""What a worker makes of its state directory: which one it trusts, and what it does when it is damaged."""

from __future__ import annotations

import asyncio
import itertools
import resource
import shutil
from pathlib import Path

import msgspec
import pytest

from stream_app.interests import standby as standby_module
from stream_app.interests.standby import StandbyPartition, store_directory
from stream_app.interests.store import PartitionStore
from stream_app.kafka.admin import create_topics, delete_topics
from stream_app.kafka.changelog import ChangelogReader
from stream_app.settings import Settings
from tests.interests.test_partition import Owner, small, users_on_disk
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


@pytest.fixture
def world(settings: Settings, topics: list[str]) -> Settings:
    return small(settings)


def take(settings: Settings, directory: Path, start: int, *users: str) -> None:
    """An owner opens the partition, takes events of these users, and closes it."""
    owner = Owner(settings, directory)

    async def life() -> None:
        await owner.open(committed=start)
        if users:
            await owner.partition.handle(owner.batch(start, *users))
        await owner.close()

    asyncio.run(life())


def follow(settings: Settings) -> set[bytes]:
    """A standby of partition 0 follows to the changelog's end; the users it holds then."""

    async def life() -> None:
        before: set[int | None] = {None}
        standby = StandbyPartition(settings, 0, lambda error: pytest.fail(repr(error)))
        before.add(standby.store._stood_ms)
        reader = ChangelogReader(settings, settings.topic_name("interests"), 0)
        await reader.start(0)
        end = await reader.end()
        await reader.stop()
        async with asyncio.timeout(30):
            # what it stood at when it was opened may be beyond the end, too
            while standby.store._stood_ms in before or standby.store.position < end - 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await standby.close()

    asyncio.run(life())
    return users_on_disk(store_directory(settings, 0))


@pytest.mark.parametrize("as_standby", [False, True])
def test_a_changelog_that_was_created_again_and_grew_past_the_old_position(
    world: Settings, tmp_path: Path, as_standby: bool
) -> None:
    mine = store_directory(world, 0)
    take(world, mine, 0, "ana", "ben")
    delete_topics(world)
    create_topics(world)
    take(world, tmp_path / "other", 0, *(f"new{n}" for n in range(20)))  # the position says nothing now
    new = {f"new{n}".encode() for n in range(20)}
    if as_standby:
        assert follow(world) == new
    else:
        take(world, mine, 20)
        assert users_on_disk(mine) == new


@pytest.mark.parametrize("as_standby", [False, True])
def test_a_directory_older_than_the_changelogs_tombstones(
    world: Settings, monkeypatch: pytest.MonkeyPatch, as_standby: bool
) -> None:
    """Who was erased while it lay about may have left the changelog without a trace."""
    mine = store_directory(world, 0)
    take(world, mine, 0, "ana")
    store = PartitionStore(mine)  # "zoe" stood on the changelog, and so did the tombstone, both compacted
    store.resume(store._changelog_found.decode(), 0, 1 << 62)
    store.write([(b"zoe", b"x")], store.position)
    store.close()
    monkeypatch.setattr(standby_module, "TRUSTED_SHARE", 0.0)
    if as_standby:
        assert follow(world) == {b"ana"}
    else:
        take(world, mine, 1)
        assert users_on_disk(mine) == {b"ana"}


def test_a_directory_that_is_recent_and_its_own_is_not_read_again(world: Settings, tmp_path: Path) -> None:
    mine = store_directory(world, 0)
    take(world, mine, 0, "ana")
    store = PartitionStore(mine)
    store.resume(store._changelog_found.decode(), 0, 1 << 62)
    store.write([(b"only-on-disk", b"x")], store.position)
    store.close()
    take(world, mine, 1)
    assert users_on_disk(mine) == {b"ana", b"only-on-disk"}


def test_what_cannot_be_read_is_rebuilt_without_a_stop(world: Settings, tmp_path: Path) -> None:
    """Flipped bytes that only reading finds: the partition is lost, opened anew, and has everything."""
    mine = store_directory(world, 0)
    take(world, mine, 0, *(f"user{n}" for n in range(40)))
    path = max(mine.glob("*.sst"), key=lambda file: file.stat().st_size)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) * 3 // 5] ^= 0xFF  # behind the first block, which has the position
    path.write_bytes(damaged)
    owner = Owner(world, mine)

    async def life() -> None:
        await owner.open(committed=40)
        await owner.partition.handle(owner.batch(40, *(f"user{n}" for n in range(40))))
        assert owner.partition.lost
        assert owner.rejoins == 1
        await owner.close()
        await owner.open(committed=40)
        await owner.partition.handle(owner.batch(40, *(f"user{n}" for n in range(40))))
        assert not owner.partition.lost
        await owner.close()

    asyncio.run(life())
    found = states(world)
    assert found.keys() == {b"user%d" % n for n in range(40)}
    assert {int(record.header["total"]) for record in found.values()} == {2}


@pytest.fixture
def fed(settings: Settings) -> Settings:
    """A small world with events for two workers' lives."""
    replace = msgspec.structs.replace
    settings = replace(
        settings,
        kafka=replace(settings.kafka, session_timeout_s=3.0),
        content=replace(settings.content, dimensions=32, capacity=1000),
        interests=replace(
            settings.interests,
            recent=512,
            seen=512,
            slab_rows=256,
            flush_interval_s=0.3,
            write_buffer_bytes=65_536,
        ),
    )
    create_topics(settings)
    publish_contents(settings, unit_vectors(20, 32))
    return settings


@pytest.mark.parametrize("fault", ["directory gone", "disk full"])
def test_a_directory_that_fails_under_a_running_worker(fed: Settings, tmp_path: Path, fault: str) -> None:
    """It stops and says why and what to do; after the restart everything is there, counted once."""
    sent = history(5000, 400, 20, seed=8)
    rest = iter(range(1000, len(sent), 50))
    with workers(fed, tmp_path, "w") as (worker,):
        worker.wait_for("serving 2 partitions")
        produce(fed, sent[:1000])
        wait_for_outcomes(fed, 1000, worker.log)
        data = tmp_path / "w"
        if fault == "directory gone":
            shutil.rmtree(data)
        else:
            # RocksDB's tables no longer fit, the log still does
            resource.prlimit(worker._process.pid, resource.RLIMIT_FSIZE, (32_768, resource.RLIM_INFINITY))

        def stopped() -> bool:
            """RocksDB writes in the background, and tells with a later write: so there must be more."""
            for start in itertools.islice(rest, 1):
                produce(fed, sent[start : start + 50])
            return not worker.running

        wait_until(stopped, "the worker to stop", worker.log)
        assert worker.stop() == 1
        text = worker.log.read_text()
        assert f"stream-app: [state_directory] cannot write {data}" in text
        assert "set interests.data_dir" in text
        worker.start()
        produce(fed, [event for start in rest for event in sent[start : start + 50]])
        wait_for_outcomes(fed, len(sent), worker.log)
        assert worst_error(fed, sent, unit_vectors(20, 32)) <= 1e-5
