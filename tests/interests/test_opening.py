"""An assignment that is given up while its stores are opened leaves none of them locked."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest

from stream_app.errors import TransactionError
from stream_app.interests import standby as standby_module
from stream_app.interests.app import InterestsWorker, create_app
from stream_app.interests.partition import InterestPartition
from stream_app.interests.standby import StandbyPartition, opened, store_directory
from stream_app.interests.store import PartitionStore
from stream_app.kafka.faust.app import consumer_of
from stream_app.observability.health import Health
from stream_app.settings import Settings, build

PATIENCE_S = 30


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    return build({"interests": {"data_dir": str(tmp_path)}})


def check_unlocked(settings: Settings) -> None:
    """RocksDB opens a directory once in a process."""
    PartitionStore(store_directory(settings, 0)).close()


async def given_up(work: asyncio.Task[Any]) -> None:
    """It was cancelled."""
    with contextlib.suppress(asyncio.CancelledError):
        await work
    assert work.cancelled()


def test_while_the_broker_is_away(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def life() -> None:
        tried = asyncio.Event()

        async def away(*_: object) -> None:
            tried.set()
            raise TransactionError("no broker")

        monkeypatch.setattr(InterestPartition, "open", away)
        app = create_app(config, Health(config))
        worker = app.owner
        assert isinstance(worker, InterestsWorker)
        opening = asyncio.create_task(worker._open(0))
        async with asyncio.timeout(PATIENCE_S):
            await tried.wait()
            await asyncio.sleep(0)  # it waits now until it is to try again
            opening.cancel()
            await given_up(opening)
        consumer_of(app).thread_loop.close()

    asyncio.run(life())
    check_unlocked(config)


def test_while_the_store_is_opened(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(PartitionStore):
        def __init__(self, *args: Any) -> None:
            begun.set()
            assert go_on.wait(PATIENCE_S)
            super().__init__(*args)

    monkeypatch.setattr(standby_module, "PartitionStore", Slow)

    async def life() -> None:
        opening = asyncio.create_task(opened(config, 0))
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        opening.cancel()
        await asyncio.sleep(0)
        go_on.set()
        async with asyncio.timeout(PATIENCE_S):
            await given_up(opening)
        check_unlocked(config)

    asyncio.run(life())


def test_while_a_standby_hands_its_store_over(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = asyncio.Event()

    async def slow_to_end(_: StandbyPartition) -> None:
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            await ending.wait()

    monkeypatch.setattr(StandbyPartition, "_follow", slow_to_end)

    async def life() -> None:
        standby = StandbyPartition(config, 0, lambda error: pytest.fail(repr(error)))
        await asyncio.sleep(0)
        release = asyncio.create_task(standby.release())
        await asyncio.sleep(0)
        release.cancel()
        await asyncio.sleep(0)
        ending.set()
        async with asyncio.timeout(PATIENCE_S):
            await given_up(release)
        check_unlocked(config)

    asyncio.run(life())
