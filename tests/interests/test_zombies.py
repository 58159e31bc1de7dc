"""A zombie, stopped or cut off in the middle of its transactions, wakes after its partitions have moved.

In one run it halts at every step of a transaction at once, in each partition at another one (see
``zombie.py``). An heir takes over and applies everything. Then the zombie wakes, goes on where it
halted, is fenced, gets half of its partitions back, later all of them, and goes on as if nothing had been.
"""

from __future__ import annotations

import contextlib
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from rocksdict import AccessType, Options, Rdict

from stream_app.chaos.archive import Archive
from stream_app.chaos.archived import Archived
from stream_app.chaos.oracle import Verdict, verdict
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker, free_port
from stream_app.settings import Settings, build
from tests.interests.gate import Gate
from tests.interests.workers import Worker, history, produce, publish_contents, unit_vectors, wait_until
from tests.interests.zombie import GO_ON, STEPS, UNFENCED

CONTENTS = 20
PARTITIONS = len(STEPS)
SESSION_S = 3.0
CHUNK = 20
RESERVED = b"\x00"


@dataclass
class Cut:
    """A way to take a worker away from the broker, and back."""

    settings: Settings
    """the worker's"""
    away: Callable[[Worker], None]
    back: Callable[[Worker], None]


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
    return Cut(
        world, lambda worker: worker.signal(signal.SIGSTOP), lambda worker: worker.signal(signal.SIGCONT)
    )


def cut_off(world: Settings, gate: Gate) -> Cut:
    kafka = msgspec.structs.replace(world.kafka, broker=f"127.0.0.1:{gate.port}")
    settings = msgspec.structs.replace(world, kafka=kafka)
    return Cut(settings, lambda _: gate.shut(), lambda _: gate.open())


def committed(world: Settings) -> list[tuple[int, int]]:
    """Partition and offset of every committed record of the changelog."""
    topic = world.topic_name("interests")
    return sorted((record.partition, record.offset) for record in clients.read_topic(world, topic))


def on_disk(directory: Path) -> dict[bytes, bytes]:
    """All users in the RocksDB databases of a worker that has ended."""
    users: dict[bytes, bytes] = {}
    for database in directory.iterdir():
        reader = Rdict(str(database), Options(raw_mode=True), access_type=AccessType.read_only())
        users |= {key: value for key, value in reader.items() if not key.startswith(RESERVED)}
        reader.close()
    return users


@dataclass
class Story:
    """What came of it."""

    before: list[tuple[int, int]]
    """changelog before the zombie woke"""
    after: list[tuple[int, int]]
    verdict: Verdict
    zombies_disk: dict[bytes, bytes]
    changelog: dict[bytes, bytes]
    log: str


def tell(world: Settings, tmp_path: Path, cut: Cut, **more: str) -> Story:
    """The whole story."""
    sent = history(1500, 100, CONTENTS, seed=11)
    third = len(sent) // 3
    go_on = tmp_path / "go-on"
    zombie = Worker(
        cut.settings, "zombie", tmp_path, module="tests.interests.zombie", more={GO_ON: str(go_on)} | more
    )
    heir = Worker(
        world, "heir", tmp_path, module="tests.interests.hasty" if UNFENCED in more else "stream_app"
    )
    with Archive(world) as archive, contextlib.ExitStack() as ending:

        def settle(log: Path) -> None:
            def settled() -> bool:
                archive.catch_up()
                return archive.unsettled(slates=False) is None

            wait_until(settled, "everything to be accounted for", log)

        ending.callback(_end, zombie)
        zombie.start()
        zombie.wait_for(f"serving {PARTITIONS} partitions")
        fed = iter(range(0, third, CHUNK))

        def halts_everywhere() -> bool:
            if (start := next(fed, None)) is not None:
                produce(world, sent[start : min(start + CHUNK, third)])
            return all(f"halts {step}" in zombie.log.read_text() for step in STEPS)

        wait_until(halts_everywhere, "the worker to halt at every step", zombie.log)
        produce(world, sent[next(fed, third) : third])
        cut.away(zombie)
        ending.callback(_end, heir)
        heir.start()
        heir.wait_for(f"serving {PARTITIONS} partitions")  # the zombie's session has timed out
        produce(world, sent[third : 2 * third])
        if UNFENCED not in more:  # else the zombie's open transactions hide what the heir has done
            settle(heir.log)
        before = committed(world)
        go_on.touch()
        cut.back(zombie)
        wait_until(lambda: _serves(zombie, 3, 4), "the zombie to get partitions back", zombie.log)
        if UNFENCED not in more:  # else nothing would ever be settled
            settle(heir.log)
        after = committed(world)
        assert heir.stop() == 0
        wait_until(lambda: _serves(zombie, PARTITIONS, times=2), "all partitions to come back", zombie.log)
        if UNFENCED not in more:
            produce(world, sent[2 * third :])
            settle(zombie.log)
        archive.catch_up()
        assert zombie.stop() == 0
    archived: Archived = archive.archived
    return Story(
        before,
        after,
        verdict(archived, slates=False),
        on_disk(tmp_path / "zombie"),
        {user: followed.value for user, followed in archived.users.items() if followed.value is not None},
        zombie.log.read_text(),
    )


def _serves(worker: Worker, *counts: int, times: int = 1) -> bool:
    log = worker.log.read_text()
    return any(log.count(f"serving {count} partitions") >= times for count in counts)


def _end(worker: Worker) -> None:
    with contextlib.suppress(AttributeError, ProcessLookupError):
        worker.signal(signal.SIGCONT)
        worker.kill()


@pytest.mark.parametrize("way", [stopped, cut_off])
def test_a_zombie_harms_nothing_at_any_step(
    world: Settings,
    gated: tuple[LocalBroker, Gate],
    tmp_path: Path,
    way: Callable[[Settings, Gate], Cut],
) -> None:
    story = tell(world, tmp_path, way(world, gated[1]))
    assert story.after == story.before, "what a zombie wrote has been committed"
    assert "another worker owns this partition now" in story.log
    assert story.verdict.sound, story.verdict.differences
    assert story.verdict.users == 100
    assert story.zombies_disk == story.changelog, "its own directory is not what the changelog says"


def test_without_fencing_a_zombie_does_harm(
    world: Settings, gated: tuple[LocalBroker, Gate], tmp_path: Path
) -> None:
    """The proof that the test above can fail: the same story, but nobody fences the zombie."""
    story = tell(world, tmp_path, stopped(world, gated[1]), **{UNFENCED: "1"})
    assert not story.verdict.sound
    assert story.verdict.lost + story.verdict.doubled
