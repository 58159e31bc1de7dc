"""Zombies, stopped or cut off in the middle of their transactions, wake after their partitions have moved.

In one run there is one for every step of a transaction, and each halts at its own (see ``zombie.py``), with
several partitions in its transaction. An heir takes over all they had and applies everything. Then they wake,
go on where they halted, are refused, get partitions back, and go on as if nothing had been.
"""

from __future__ import annotations

import contextlib
import re
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from kafka.consumer.fetcher import ConsumerRecord
from rocksdict import AccessType, Options, Rdict

from stream_app.chaos.archive import Archive
from stream_app.chaos.archived import Archived
from stream_app.chaos.oracle import Verdict, verdict
from stream_app.interests.store import STANDING, STANDING_KEY
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker, free_port
from stream_app.settings import Settings, build
from tests.interests.gate import Gate
from tests.interests.workers import Worker, history, produce, publish_contents, unit_vectors, wait_until
from tests.interests.zombie import ANSWER, FLUSH, GO_ON, HALT, STEP, STEPS, WITHOUT

CONTENTS = 20
PARTITIONS = 2 * len(STEPS)
NOTHING_WRITTEN = STEPS[:2]
SESSION_S = 3.0
CHUNK = 40
RESERVED = b"\x00"
REFUSED = "another worker owns this partition now"


@dataclass
class Cut:
    """A way to take workers away from the broker, and back."""

    settings: Settings
    """the workers'"""
    away: Callable[[Sequence[Worker]], None]
    back: Callable[[Sequence[Worker]], None]


@pytest.fixture(scope="module")
def gated() -> Iterator[tuple[LocalBroker, Gate]]:
    """A broker with a second way in, through a gate that can be shut."""
    gate, port = Gate(), free_port()
    ways = f"PLAINTEXT://127.0.0.1:{port},GATED://127.0.0.1:{gate.port}"
    broker = LocalBroker(
        port=port, listeners={"GATED": "PLAINTEXT"}, properties={"advertised.listeners": ways}
    )
    with contextlib.closing(gate), broker:
        gate.target = broker.listener("GATED")
        yield broker, gate


@pytest.fixture
def world(gated: tuple[LocalBroker, Gate], tmp_path: Path) -> Settings:
    """Small batches, short sessions, and what the oracle needs."""
    broker, _ = gated
    name = f"t{uuid.uuid4().hex[:10]}"
    settings = build(
        {
            "kafka": {
                "broker": broker.address,
                "app_id": name,
                "topic_prefix": f"{name}.",
                "partitions": PARTITIONS,
                "shared_partitions": 1,
                "batch_records": 4,
                "session_timeout_s": SESSION_S,
                "transaction_timeout_s": 120.0,  # what halts is not given up meanwhile
            },
            "interests": {
                "recent": 256,
                "seen": 256,
                "min_mass": 0.0,
                "slab_rows": 64,
                "flush_interval_s": 0.2,
            },
            "content": {"dimensions": 16, "capacity": 1000},
            "recommendations": {"skip_unchanged": False},
            "observability": {"port": 0},
        }
    )
    create_topics(settings)
    publish_contents(settings, unit_vectors(CONTENTS, 16))
    return settings


def stopped(world: Settings, _: Gate) -> Cut:
    def send(number: signal.Signals, zombies: Sequence[Worker]) -> None:
        for zombie in zombies:
            zombie.signal(number)

    return Cut(
        world, lambda zombies: send(signal.SIGSTOP, zombies), lambda zombies: send(signal.SIGCONT, zombies)
    )


def cut_off(world: Settings, gate: Gate) -> Cut:
    kafka = msgspec.structs.replace(world.kafka, broker=f"127.0.0.1:{gate.port}")
    settings = msgspec.structs.replace(world, kafka=kafka)
    return Cut(settings, lambda _: gate.shut(), lambda _: gate.open())


def committed(world: Settings) -> list[ConsumerRecord]:
    """Every committed record of the changelog."""
    return list(clients.read_topic(world, world.topic_name("interests")))


def unlike_the_changelog(directory: Path, changelog: Sequence[ConsumerRecord]) -> list[Path]:
    """A worker's RocksDB databases that are not what the changelog says at their position, all of its users,
    byte for byte. The worker has ended; partitions that it has given up are among them."""
    different = []
    for database in directory.iterdir():
        reader = Rdict(str(database), Options(raw_mode=True), access_type=AccessType.read_only())
        held = dict(reader.items())
        reader.close()
        position = STANDING.unpack(held[STANDING_KEY])[0] if STANDING_KEY in held else 0
        number = int(database.name.rpartition("-")[2])
        before = [r for r in changelog if r.partition == number and r.offset < position]
        expected = {r.key: r.value for r in sorted(before, key=lambda r: r.offset)}
        if {key: value for key, value in held.items() if not key.startswith(RESERVED)} != expected:
            different.append(database)
    return different


@dataclass
class Story:
    """What came of it."""

    before: list[tuple[int, int]]
    """partition and offset of what the changelog had before the zombies woke"""
    after: list[tuple[int, int]]
    verdict: Verdict
    spoiled: list[Path]
    """zombies' databases that are not what the changelog says"""
    logs: dict[str, str]
    """by the step at which the zombie halted"""
    heirs_log: str


def tell(
    world: Settings,
    tmp_path: Path,
    cut: Cut,
    steps: Sequence[str] = STEPS,
    *,
    claims_lost: bool = False,
    without: str = "",
) -> Story:
    """The whole story. ``without``: layers that all workers lack."""
    sent = history(1500, 100, CONTENTS, seed=11)
    third = len(sent) // 3
    halt, go_on = tmp_path / "halt", tmp_path / "go-on"
    told = {HALT: str(halt), GO_ON: str(go_on), WITHOUT: without}
    zombies = [
        Worker(
            cut.settings, f"zombie-{n}", tmp_path, module="tests.interests.zombie", more=told | {STEP: step}
        )
        for n, step in enumerate(steps)
    ]
    heir = Worker(
        world,
        "heir",
        tmp_path,
        module="tests.interests.unfenced" if without else "stream_app",
        more={WITHOUT: without},
    )
    with Archive(world) as archive, contextlib.ExitStack() as ending:

        def settle(log: Path) -> None:
            def settled() -> bool:
                archive.catch_up()
                return archive.unsettled(slates=False) is None

            wait_until(settled, "everything to be accounted for", log)

        for zombie in zombies:
            ending.callback(_end, zombie)
            zombie.start()
        wait_until(lambda: _shared(zombies), "the workers to share the partitions", zombies[0].log)
        halt.touch()
        fed = iter(range(0, third, CHUNK))

        def halt_everywhere() -> bool:
            if (start := next(fed, None)) is not None:
                produce(world, sent[start : min(start + CHUNK, third)])
            return all(f"halts {s}" in z.log.read_text() for s, z in zip(steps, zombies, strict=True))

        wait_until(halt_everywhere, "each worker to halt at its step", zombies[0].log)
        produce(world, sent[next(fed, third) : third])
        cut.away(zombies)
        if claims_lost:
            wait_until(lambda: _forgotten(world), "the group to be empty, and forgotten")
        ending.callback(_end, heir)
        heir.start()
        heir.wait_for(f"serving {PARTITIONS} partitions")  # the zombies' sessions have timed out
        produce(world, sent[third : 2 * third])
        settle(heir.log)
        before = committed(world)
        served = [len(_served(zombie)) for zombie in zombies]
        go_on.touch()
        cut.back(zombies)
        wait_until(
            lambda: all(len(_served(z)) > n for z, n in zip(zombies, served, strict=True)),
            "the zombies to be in the group again",
            zombies[0].log,
        )
        if not without:  # else nothing would ever be settled
            settle(heir.log)
        after = committed(world)
        assert heir.stop() == 0
        wait_until(lambda: _shared(zombies), "all partitions to come back", zombies[0].log)
        if not without:
            produce(world, sent[2 * third :])
            settle(zombies[0].log)
        archive.catch_up()
        assert [zombie.stop() for zombie in zombies] == [0] * len(zombies)
    archived: Archived = archive.archived
    changelog = committed(world)
    return Story(
        [(record.partition, record.offset) for record in before],
        [(record.partition, record.offset) for record in after],
        verdict(archived, slates=False),
        [
            path
            for n in range(len(zombies))
            for path in unlike_the_changelog(tmp_path / f"zombie-{n}", changelog)
        ],
        {step: zombie.log.read_text() for step, zombie in zip(steps, zombies, strict=True)},
        heir.log.read_text(),
    )


def _served(worker: Worker) -> list[int]:
    """How many partitions it has had in each of its assignments."""
    return [int(count) for count in re.findall(r"serving (\d+) partitions", worker.log.read_text())]


def _shared(workers: Sequence[Worker]) -> bool:
    """Whether each has its part of all partitions."""
    return all(_served(worker)[-1:] == [PARTITIONS // len(workers)] for worker in workers)


def _forgotten(world: Settings) -> bool:
    group = world.group("interests")
    with contextlib.closing(clients.admin_client(world)) as admin:
        return bool(admin.delete_groups([group])[group] == "OK")


def _end(worker: Worker) -> None:
    with contextlib.suppress(AttributeError, ProcessLookupError):
        worker.signal(signal.SIGCONT)
        worker.kill()


def harmless(story: Story) -> None:
    """Nothing of what the zombies went on with counts."""
    assert story.after == story.before, "what a zombie wrote has been committed"
    for step in story.logs.keys() - {ANSWER, FLUSH}:  # these had nothing on its way
        assert " is lost: " in story.logs[step], f"the one that halted {step} has committed"
    assert any(REFUSED in log for log in story.logs.values())
    assert "ProducerFenced" not in story.heirs_log, "a zombie has thrown the rightful owner out"
    assert story.verdict.sound, story.verdict.differences
    assert story.verdict.users == 100
    assert not story.spoiled, "a zombie's directory is not what the changelog says"


@pytest.mark.parametrize("way", [stopped, cut_off])
def test_a_zombie_harms_nothing_at_any_step(
    world: Settings,
    gated: tuple[LocalBroker, Gate],
    tmp_path: Path,
    way: Callable[[Settings, Gate], Cut],
) -> None:
    story = tell(world, tmp_path, way(world, gated[1]))
    harmless(story)
    for log in (*story.logs.values(), story.heirs_log):
        assert "the group stands at" not in log, "the group's offsets have gone back"


def test_without_claims_and_generation_a_zombie_does_harm(
    world: Settings, gated: tuple[LocalBroker, Gate], tmp_path: Path
) -> None:
    """The proof that the test above can fail: the same story, but no claim is read and no generation is sent.
    Only with zombies that have written nothing yet: others would hold the heir up until they wake."""
    story = tell(world, tmp_path, stopped(world, gated[1]), NOTHING_WRITTEN, without="claims generation")
    assert not story.verdict.sound
    assert story.verdict.lost + story.verdict.doubled


@pytest.mark.long
def test_the_group_refuses_a_zombie_whose_claims_are_lost(
    world: Settings, gated: tuple[LocalBroker, Gate], tmp_path: Path
) -> None:
    """Nobody knows whom to fence out. Zombies that have something open hold the heir up, whatever they
    claim; here are those that have not written anything yet."""
    harmless(tell(world, tmp_path, stopped(world, gated[1]), NOTHING_WRITTEN, claims_lost=True))


@pytest.mark.long
def test_without_a_generation_a_zombie_whose_claims_are_lost_does_harm(
    world: Settings, gated: tuple[LocalBroker, Gate], tmp_path: Path
) -> None:
    """The proof that the test above can fail."""
    cut = stopped(world, gated[1])
    story = tell(world, tmp_path, cut, NOTHING_WRITTEN, claims_lost=True, without="generation")
    assert story.after != story.before
    assert not story.verdict.sound
