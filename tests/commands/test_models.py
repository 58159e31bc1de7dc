"""``models``: what stands on ``content-vectors`` by encoder, and the end of one."""

from __future__ import annotations

import argparse
import contextlib
import json

import msgspec
import numpy as np
import pytest

from stream_app.commands import models
from stream_app.content.coverage import Mark, mark_key
from stream_app.content.model import DEFAULT_ID, role_of
from stream_app.content.vectors import ContentVector, encode, vector_key
from stream_app.errors import ConfigurationError
from stream_app.hashing import model_code
from stream_app.kafka import admin, clients
from stream_app.settings import Settings

pytestmark = pytest.mark.usefixtures("topics")

OLD = "old/model"


def record(model: str) -> bytes:
    return encode(ContentVector(model, "", 0, 0, np.ones(4, np.float16)))


def fill(settings: Settings, *, caught_up: bool) -> None:
    """Three contents under the old model, two under the default."""
    mine, old = model_code(DEFAULT_ID), model_code(OLD)
    mark = msgspec.json.encode(Mark(DEFAULT_ID, 1, 5 if caught_up else 0))
    with contextlib.closing(clients.producer(settings)) as producer:
        for key, value in (
            *((vector_key(c, old), record(OLD)) for c in (b"a", b"b", b"c")),
            (b"plain", record(OLD)),
            (vector_key(b"a", old, 9), record(OLD)),
            (mark_key(old, 0), msgspec.json.encode(Mark(OLD, 1, 5))),
            *((vector_key(c, mine), record(DEFAULT_ID)) for c in (b"a", b"b", b"x")),
            (vector_key(b"x", mine), None),
            (mark_key(mine, 0), mark),
            (vector_key(b"broken", mine), b"?"),
        ):
            producer.send(settings.topic_name("content-vectors"), value, key).get(10)


def run(settings: Settings, retire: str | None = None, *, yes: bool = False) -> int:
    return models.run(argparse.Namespace(retire=retire, yes=yes, json=True), settings)


def standing(settings: Settings) -> set[bytes]:
    topic = settings.topic_name("content-vectors")
    newest = {r.key: r.value for r in clients.read_topic(settings, topic)}
    return {key for key, value in newest.items() if value is not None}


@contextlib.contextmanager
def member(settings: Settings, group: str):  # type: ignore[no-untyped-def]
    """Somebody in the group, who has committed an offset."""
    topic = settings.topic_name("content")
    with contextlib.closing(clients.consumer(settings, topic, group_id=group)) as consumer:
        while not consumer.assignment():
            consumer.poll(timeout_ms=100)
        consumer.commit()
        yield


def test_each_model_is_listed_with_its_contents_and_its_group(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(settings, caught_up=False)
    assert run(settings) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {DEFAULT_ID, OLD}
    mine, old = rows[DEFAULT_ID], rows[OLD]
    assert [old[name] for name in ("contents", "former", "encoded", "configured")] == [4, 1, True, False]
    assert [mine[name] for name in ("contents", "former", "encoded", "configured")] == [2, 0, False, True]
    assert mine["group"] == settings.group("content-bd200ed1")


def test_a_model_is_retired_with_all_that_is_its(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(settings, caught_up=True)
    group, before = settings.group(role_of(OLD)), standing(settings)
    with member(settings, group), pytest.raises(ConfigurationError, match="1 of its content workers run"):
        run(settings, OLD, yes=True)
    assert run(settings, OLD) == 1
    assert standing(settings) == before
    assert run(settings, OLD, yes=True) == 0
    mine = model_code(DEFAULT_ID)
    left = {*(vector_key(c, mine) for c in (b"a", b"b")), mark_key(mine, 0)}
    assert standing(settings) - {vector_key(b"broken", mine)} == left
    assert admin.committed_offset(settings, group, settings.topic_name("content"), 0) == 0
    capsys.readouterr()
    assert run(settings) == 0
    assert [row["model"] for row in json.loads(capsys.readouterr().out)] == [DEFAULT_ID]


@pytest.mark.parametrize(
    ("model", "why"),
    [(DEFAULT_ID, "the configured one"), ("none", "no such model"), (OLD, "2 contents have no")],
)
def test_what_is_in_use_or_needed_is_not_retired(settings: Settings, model: str, why: str) -> None:
    fill(settings, caught_up=False)
    before = standing(settings)
    with pytest.raises(ConfigurationError, match=why):
        run(settings, model, yes=True)
    assert standing(settings) == before
