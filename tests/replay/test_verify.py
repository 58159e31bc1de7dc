"""A whole replay on real workers, its states recomputed from the log; and a state that is not the log's."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_app.cli import build_parser
from stream_app.commands import replay
from stream_app.errors import ConfigurationError, StreamAppError
from stream_app.interests.record import HEADER
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.replay.contents_first import contents, deletions, events
from stream_app.replay.formats import DESKDROP_ACTIONS, LogRecord, detect, open_log
from stream_app.replay.verify import Verified
from stream_app.settings import Settings
from tests.interests.workers import NOW_MS, Worker, publish_contents, unit_vectors

DATA = os.environ.get("STREAM_APP_DATA")
"""A folder that contains deskdrop/ with the recorded log."""

TITLES = ("Rain at last", "How bread rises", "A faster index", "The old harbour", "Seeds in spring")
DELETED, SILENT, NOWHERE = "c3", "c-silent", "c-nowhere"
HOUR_MS = 3_600_000


def content(content_id: str, title: str | None) -> dict[str, Any]:
    value = {"content_id": content_id, "title": title, "created_at": NOW_MS - 48 * HOUR_MS}
    return {"topic": "content", "value": value}


def event(user: str, content_id: str, hours: int, name: str | None = None, **more: Any) -> dict[str, Any]:
    value = {"user_id": user, "content_id": content_id, "occurred_at": NOW_MS - hours * HOUR_MS, **more}
    return {"topic": "likes", "value": value | ({"event_id": name} if name else {})}


def engagements(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Named events of 40 users, some of them sent twice, some undone before or after."""
    rng = random.Random(seed)
    for number in range(count):
        user, about = f"user-{rng.randrange(40)}", f"c{rng.randrange(len(TITLES))}"
        one = event(user, about, rng.randrange(40), f"e{number}")
        one["topic"] = rng.choice(["likes", "comments", "shares"])
        undo = {"topic": one["topic"], "value": one["value"] | {"undo": True}}
        yield from rng.choices([[one], [one, one], [one, undo], [undo, one]], [0.85, 0.05, 0.05, 0.05])[0]


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def arguments(log: Path, *more: str) -> argparse.Namespace:
    return build_parser().parse_args(["replay", "--log", str(log), *more])


def give_slates(settings: Settings, log: Path, limit: int | None = None) -> None:
    """What a ranker would do: without one running, nobody is left to be waited for."""
    users = {r.key for r in open_log(log, detect(log), limit).records if r.is_event}
    with contextlib.closing(clients.producer(settings)) as client:
        for user in users:
            client.send(settings.topic_name("recommendations"), b"{}", user)
        client.flush()


@contextlib.contextmanager
def working(settings: Settings, directory: Path, *roles: str) -> Iterator[list[Worker]]:
    made = [Worker(settings, role, directory, role) for role in roles]
    try:
        for worker in made:
            worker.start()
        for worker, sign in zip(made, ("serving", "encoding with"), strict=False):
            worker.wait_for(sign)
        yield made
    finally:
        for worker in made:
            worker.kill()


@pytest.fixture
def world(settings: Settings) -> Settings:
    """A record holds a user's whole history, so that repeats and undos have no horizon; short retries."""
    settings = msgspec.structs.replace(
        settings,
        events=msgspec.structs.replace(settings.events, retry_delays_s=(0.2, 0.2)),
        interests=msgspec.structs.replace(settings.interests, recent=512, seen=512),
    )
    create_topics(settings)
    return settings


def test_a_generated_log_in_all_its_variety(world: Settings, tmp_path: Path) -> None:
    cut_off = {"topic": "likes", "key": "user-1", "value": "not an object"}
    named = list(engagements(600, seed=1))
    lines = [
        *(content(f"c{number}", title) for number, title in enumerate(TITLES)),
        *named[:300],
        {"topic": "content", "key": DELETED, "value": None},
        content(SILENT, None),  # no text: a dead letter, which nobody must wait for
        event("user-1", NOWHERE, 1),  # a dead letter after its last try
        cut_off,
        event("user-2", "c1", 9),
        event("user-2", "c1", 8),
        event("user-2", "c1", 7, undo=True),  # takes back the one of eight hours ago
        *named[300:],
    ]
    log, summary = written(tmp_path / "log.jsonl", lines), tmp_path / "summary.json"
    give_slates(world, log)
    with working(world, tmp_path, "interests", "content"):
        assert (
            replay.run(arguments(log, "--verify", "--timeout", "60", "--summary", str(summary)), world) == 0
        )
    found = json.loads(summary.read_text())
    repeated = len(named) - len({json.dumps(line) for line in named})
    assert found["produced"] == len(named) + 5
    assert (found["dead_lettered"], found["duplicates"], found["retrying"]) == (2, repeated, 0)
    assert found["applied"] == len(named) - repeated + 3
    verified = msgspec.convert(found["verified"], Verified)
    assert verified.equal
    assert verified.users == 40
    assert 0 < verified.max_relative_error <= 1e-5
    sent = [r for r in clients.read_topic(world, world.topic_name("content")) if r.key == DELETED.encode()]
    assert sent[-1].value is None
    assert sum(r.value is None for r in sent) == 1


@pytest.mark.skipif(DATA is None, reason="STREAM_APP_DATA names no folder that contains deskdrop/")
def test_the_beginning_of_deskdrop(world: Settings, tmp_path: Path) -> None:
    world = msgspec.structs.replace(
        world,
        events=msgspec.structs.replace(world.events, actions=DESKDROP_ACTIONS),
        interests=msgspec.structs.replace(world.interests, half_life_days=30.0, min_mass=0.0),
    )
    create_topics(world)
    log, summary = Path(DATA or "") / "deskdrop", tmp_path / "summary.json"
    give_slates(world, log, 1500)
    line = ("--verify", "--limit", "1500", "--timeout", "60", "--summary", str(summary))
    with working(world, tmp_path, "interests", "content"):
        assert replay.run(arguments(log, *line), world) == 0
    found = json.loads(summary.read_text())
    assert (found["produced"], found["applied"]) == (1500, 1500)
    assert found["verified"]["users"] == found["active_users"]


def test_a_lie_is_noticed(world: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = msgspec.structs.replace(world, content=msgspec.structs.replace(world.content, dimensions=32))
    publish_contents(world, unit_vectors(len(TITLES), 32))
    log = written(tmp_path / "log.jsonl", list(engagements(300, seed=2)))
    give_slates(world, log)
    line = arguments(log, "--verify", "--timeout", "60", "--summary", str(tmp_path / "summary.json"))
    with working(world, tmp_path, "interests"):
        assert replay.run(line, world) == 0
        assert "held" not in capsys.readouterr().err
        # once more changes nothing, since all of it is repeats; but a liar has been here meanwhile
        topic = world.topic_name("interests")
        liar, truth = next((r.key, r.value) for r in clients.read_topic(world, topic) if r.key == b"user-7")
        header = HEADER.itemsize
        lie = truth[:header] + b"\x00\x00\x80\x3f" + truth[header + 4 :]  # the first dimension is 1.0
        with contextlib.closing(clients.producer(world)) as client:
            client.send(topic, lie, liar)
            client.send(topic, lie, b"nobody")
            client.flush()
        assert replay.run(line, world) == 1
    said = capsys.readouterr().err
    assert "1 of 40 users differ, 0 are missing, 1 are surplus" in said
    assert "events before this replay" in said
    assert "user-7" not in said
    verified = json.loads((tmp_path / "summary.json").read_text())["verified"]
    assert (verified["differing"], verified["surplus"], verified["missing"]) == (1, 1, 0)
    assert verified["max_relative_error"] > 1e-5


def test_without_a_content_worker_the_wait_says_so(world: Settings, tmp_path: Path) -> None:
    log = written(tmp_path / "log.jsonl", [content("c0", "Rain"), event("u", "c0", 1)])
    with pytest.raises(StreamAppError, match=r"0 of 1: no content worker.*`stream-app worker content`"):
        replay.run(arguments(log, "--timeout", "0.5"), world)
    assert not list(clients.read_topic(world, world.topic_name("likes")))


def test_verifying_needs_the_wait(world: Settings, tmp_path: Path) -> None:
    log = written(tmp_path / "log.jsonl", [event("u", "c0", 1)])
    with pytest.raises(ConfigurationError, match="--no-wait"):
        replay.run(arguments(log, "--verify", "--no-wait"), world)


def test_contents_events_deletions() -> None:
    made, gone = LogRecord("content", b"c", b"1", None), LogRecord("content", b"c", None, None)
    other, like = LogRecord("content", b"d", b"2", None), LogRecord("likes", b"u", b"3", None)
    log = [like, made, gone, made, like, other]
    assert list(contents(log)) == [made, other]
    assert list(events(log)) == [like, like]
    assert list(deletions(log)) == [gone, made]
