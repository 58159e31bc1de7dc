"""The serve role against real Kafka: follows slates, forgets who is withdrawn, goes on after a restart."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientConnectionError, ClientSession
from aiokafka import AIOKafkaProducer
from faust.types import TP

from stream_app.errors import ConfigurationError, StateDirectoryError
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics, delete_topics
from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.ends import Ends
from stream_app.observability import metrics
from stream_app.observability.health import Health
from stream_app.recommendations import slate
from stream_app.recommendations.slate import COLD_START_USER, Slate
from stream_app.serving.app import ServingApp, create_app
from stream_app.serving.store import SlateStore
from stream_app.settings import Settings, build
from tests.interests.workers import Worker

PATIENCE_S = 30.0
USERS = [f"user-{n}" for n in range(12)]


def published(settings: Settings, *slates: tuple[bytes, bytes | None]) -> None:
    with contextlib.closing(clients.producer(settings)) as producer:
        for user, value in slates:
            producer.send(settings.topic_name("recommendations"), key=user, value=value)
        producer.flush()


def slate_of(user: str, model: str = "m") -> tuple[bytes, bytes]:
    return user.encode(), slate.encode(Slate(user, slate.rfc3339(1), model, None, "personal", []))


@contextlib.asynccontextmanager
async def replica(settings: Settings, directory: Path, *, linger_s: float = 0.0) -> AsyncIterator[ServingApp]:
    """A replica that has read everything; its watch fails the test when a part ends."""
    interests = msgspec.structs.replace(settings.interests, data_dir=str(directory))
    serving = msgspec.structs.replace(settings.serving, port=0, linger_s=linger_s)
    settings = msgspec.structs.replace(settings, interests=interests, serving=serving)
    app = create_app(settings, Health(settings))
    watch = asyncio.create_task(app.watch())
    try:
        await asyncio.wait_for(app.start(), PATIENCE_S)
        yield app
        assert not watch.done(), watch
    finally:
        watch.cancel()
        await app.stop()
        await asyncio.wait([watch])


async def asked(app: ServingApp, user: str) -> tuple[str, Slate]:
    url = f"http://127.0.0.1:{app.port}/v1/users/{user}/slate"
    async with ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        return response.headers["X-Slate"], slate.decode(await response.read())


async def until(app: ServingApp, user: str, true: Callable[[str, Slate], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true(*await asked(app, user)):  # noqa: ASYNC110  # a server is asked, there is no event
            await asyncio.sleep(0.02)


def test_each_replica_answers_for_all_and_forgets_who_is_withdrawn(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    nobody = COLD_START_USER.decode()
    before = metrics.SERVING_REJECTED._value.get()
    published(
        settings,
        *map(slate_of, (*USERS, nobody)),
        (b"\x00position", slate_of("x")[1]),  # the store's own key
        (b"broken", b'{"items":'),
        slate_of(USERS[1], "newer"),
    )

    async def scenario() -> None:
        async with replica(settings, tmp_path / "a") as a, replica(settings, tmp_path / "b") as b:
            for app in (a, b):
                for user in USERS:
                    whose, found = await asked(app, user)
                    assert (whose, found.user_id) == ("own", user)
                assert (await asked(app, USERS[1]))[1].model == "newer"
                for unknown in ("stranger", "broken"):
                    whose, found = await asked(app, unknown)
                    assert (whose, found.user_id) == ("cold-start", nobody)
            await asyncio.to_thread(published, settings, (USERS[0].encode(), None), slate_of("late"))
            for app in (a, b):
                await until(app, "late", lambda whose, _: whose == "own")
                await until(app, USERS[0], lambda whose, _: whose == "cold-start")

    asyncio.run(scenario())
    assert metrics.SERVING_REJECTED._value.get() - before == 4, "two records, in two replicas"


async def void_transaction(settings: Settings) -> TP:
    """A record that never counts, and the marker that says so, are the last of a partition."""
    topic = settings.topic_name("recommendations")
    producer = AIOKafkaProducer(**aiokafka_options(settings, "p"), transactional_id=f"{topic}-void")
    async with producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, value=b"", key=b"void", partition=0)
        await producer.abort_transaction()
    return TP(topic, 0)


def test_markers_at_the_end_of_the_topic_leave_nothing_to_read(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    published(settings, *map(slate_of, USERS))

    async def scenario() -> None:
        async with replica(settings, tmp_path) as app:
            tp = await void_transaction(settings)
            ends = Ends(settings)
            try:
                end = (await ends.of({tp}))[tp]
            finally:
                await ends.stop()
            async with asyncio.timeout(PATIENCE_S):
                while app._positions()[tp] < end:  # noqa: ASYNC110  # there is no event for it
                    await asyncio.sleep(0.02)

    asyncio.run(scenario())


def read_in_recovery() -> float:
    return metrics.RECOVERY_RECORDS.labels("recovery")._value.get()


def test_a_restart_goes_on_from_there(settings: Settings, topics: list[str], tmp_path: Path) -> None:
    published(settings, *map(slate_of, USERS))

    async def read(expected: dict[str, str]) -> float:
        before = read_in_recovery()
        async with replica(settings, tmp_path) as app:
            for user, whose in expected.items():
                if whose == "own":
                    assert (await asked(app, user))[0] == "own"
                else:
                    url = f"http://127.0.0.1:{app.port}/v1/users/{user}/slate"
                    async with ClientSession() as session, session.get(url) as response:
                        assert response.status == 404
        return read_in_recovery() - before

    assert asyncio.run(read(dict.fromkeys(USERS, "own"))) == len(USERS)
    published(settings, (USERS[0].encode(), None), slate_of("late"))
    rest = dict.fromkeys(USERS[1:], "own")
    assert asyncio.run(read({**rest, USERS[0]: "none", "late": "own"})) == 2, "what was new, and no more"
    delete_topics(settings)
    create_topics(settings)
    published(settings, slate_of("late"), *(slate_of(f"other-{n}") for n in range(30)))
    gone = dict.fromkeys(USERS, "none")
    assert asyncio.run(read({**gone, "late": "own"})) == 31, "another topic of the same name"


def test_the_command_serves_until_it_is_told_to_end(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    serving = msgspec.structs.replace(settings.serving, port=0)
    worker = Worker(msgspec.structs.replace(settings, serving=serving), "serve", tmp_path, "serve")
    worker.start()
    try:
        worker.wait_for("answering on port")
        assert worker.stop() == 0
        assert "Traceback" not in worker.log.read_text()
    finally:
        worker.kill()


def test_whoever_asks_before_the_replica_is_missed_is_answered(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with replica(settings, tmp_path, linger_s=2.0) as app:
            stopping = asyncio.create_task(app.stop())
            await asyncio.sleep(0)  # it has begun to stop
            assert (await asked(app, USERS[0]))[0] == "own"
            await stopping
            with pytest.raises(ClientConnectionError):
                await asked(app, USERS[0])

    published(settings, slate_of(USERS[0]))
    asyncio.run(scenario())


def test_a_disk_that_cannot_be_written_ends_the_replica(
    settings: Settings, topics: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StateDirectoryError("No space left")

    async def scenario() -> None:
        serving = msgspec.structs.replace(settings.serving, port=0)
        app = create_app(msgspec.structs.replace(settings, serving=serving), Health(settings))
        try:
            await asyncio.wait_for(app.start(), PATIENCE_S)
            monkeypatch.setattr(SlateStore, "write", full)
            await asyncio.to_thread(published, settings, slate_of("late"))
            with pytest.raises(StateDirectoryError, match="No space left"):
                await asyncio.wait_for(app.watch(), PATIENCE_S)
        finally:
            await app.stop()

    asyncio.run(scenario())


def test_other_machines_need_a_token(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "example"):  # noqa: S104  # what is refused
        with pytest.raises(ConfigurationError, match=r"serving\.host = .* needs a token"):
            build({"serving": {"host": host}})
        build({"serving": {"host": host, "token_file": "somewhere"}})
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        build({"serving": {"host": host}})
    missing = build({"serving": {"token_file": str(tmp_path / "none")}})
    with pytest.raises(ConfigurationError, match=r"serving\.token_file = .*No such file"):
        create_app(missing, Health(missing))
