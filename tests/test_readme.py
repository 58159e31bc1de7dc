"""What README and examples show works as it stands: the programs run, the settings and files exist."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_app.content.schema import ContentDecoder
from stream_app.events.decode import EventDecoder
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics, delete_topics
from stream_app.settings import SECTIONS, Settings, build, external_broker
from tests.commands.records import slate

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PRODUCE, CLIENT, SUBSCRIBE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TIMEOUT_S = 30


@pytest.fixture(scope="module")
def plain(broker: Any) -> Iterator[Settings]:
    """Topics under their plain names, as the programs use them."""
    if external_broker():
        pytest.skip("would write to the real topics of the broker that STREAM_APP_BROKER names")
    settings = build({"kafka": {"broker": broker.address, "partitions": 2, "shared_partitions": 2}})
    create_topics(settings)
    yield settings
    delete_topics(settings)


def program(arguments: list[str], settings: Settings) -> subprocess.Popen[str]:
    return subprocess.Popen(  # our own programs
        [sys.executable, *arguments],
        env=os.environ | {"STREAM_APP_BROKER": settings.kafka.broker},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    ("arguments", "contents", "events"),
    [(["-c", PRODUCE], 1, 1), (["-c", CLIENT], 0, 3), (["examples/produce.py", "zoe"], 3, 4)],
    ids=["README", "client", "example"],
)
def test_producers_send_valid_records(
    plain: Settings, arguments: list[str], contents: int, events: int
) -> None:
    before = counts(plain)
    run = program(arguments, plain)
    _, errors = run.communicate(timeout=TIMEOUT_S)
    assert (run.returncode, errors) == (0, "")
    after = counts(plain)
    assert (after[0] - before[0], after[1] - before[1]) == (contents, events)
    assert after[2] == 0


def counts(settings: Settings) -> tuple[int, int, int]:
    """Accepted content records, accepted events, rejected records on all topics."""
    content_decoder, event_decoder = ContentDecoder(settings), EventDecoder(settings)
    contents = list(clients.read_topic(settings, "content"))
    rejected = sum(len(content_decoder.decode([record]).rejected) for record in contents)
    events = 0
    for action in settings.events.actions:
        for record in clients.read_topic(settings, action.topic):
            batch = event_decoder.decode([record], action.topic, record.partition, None)
            rejected += len(batch.rejected)
            events += len(batch.users)
    return len(contents) - rejected, events, rejected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-c", SUBSCRIBE], "ana ['c2', 'c3']"),
        (["examples/subscribe.py", "ana"], "0.900  c2  (75% like of c1)"),
    ],
    ids=["README", "example"],
)
def test_subscribers_print_slates(plain: Settings, arguments: list[str], expected: str) -> None:
    with contextlib.closing(clients.producer(plain)) as producer:
        producer.send("recommendations", slate("ben", "c9"), b"ben").get(10)
        producer.send("recommendations", None, b"ben").get(10)
        producer.send("recommendations", slate("ana", "c2", "c3"), b"ana").get(10)
    run = program(arguments, plain)
    assert run.stdout is not None
    watchdog = threading.Timer(TIMEOUT_S, run.kill)
    watchdog.start()
    try:
        seen = next((line for line in run.stdout if expected in line), None)
    finally:
        watchdog.cancel()
        run.kill()
        _, errors = run.communicate(timeout=TIMEOUT_S)
    assert seen is not None, errors


def test_settings_table_names_real_settings_and_their_defaults() -> None:
    rows = re.findall(r"^\| (`[a-z_]+\.[a-z_]+`.*?) \| (.*?) \|", README, re.MULTILINE)
    assert len(rows) >= 10
    for names, default in rows:
        for section, name in re.findall(r"`([a-z_]+)\.([a-z_]+)`", names):
            fields = {field.name: field for field in msgspec.structs.fields(SECTIONS[section])}
            assert name in fields
            if default.startswith("`"):
                assert default == f"`{fields[name].default}`"


def test_links_point_at_files_of_the_project() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(targets) >= 8
    assert [target for target in targets if not (ROOT / target).exists()] == []
