"""Slates through the roles and a real Kafka are those straight from the log, and a difference is found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import stream_app.content.app
from stream_app import cli
from stream_app.content.model import model_id
from stream_app.evaluation import through_kafka
from stream_app.evaluation.log import EvaluationLog
from stream_app.evaluation.product import LiveRanker
from stream_app.evaluation.scorer import World, touches
from stream_app.evaluation.through_kafka import ARMS, Agreement, Pair
from stream_app.hashing import key64
from stream_app.ranking.ranked import Item, Parts, Ranked
from stream_app.recommendations.slate import Slate
from stream_app.replay.formats import LogRecord
from stream_app.settings import Settings
from tests.conftest import RunningBroker
from tests.evaluation.small_logs import content, deletion, event

DIMENSIONS = 16
RECORDED = os.environ.get("STREAM_APP_DATA")


def drawn(texts: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """A vector for each text, rounded as on the topic."""
    vectors = np.stack([np.random.default_rng(key64(text)).normal(size=DIMENSIONS) for text in texts])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16).astype(np.float32)


class DrawnVectors:
    """In the encoder's place."""

    def __init__(self, settings: Settings) -> None:
        self.model = model_id(settings)

    def encode(self, texts: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return drawn(texts)


def small_log() -> list[LogRecord]:
    """A first event when there is nothing else to show; contents that come out later and that are deleted;
    likes and views, repeats, undos, two events at a time, one that comes late."""
    rng = np.random.default_rng(3)
    records = [
        content(f"c{i}", (2 if i else 0) if i < 14 else 2 * i, title=f"report {i}", author=f"a{i % 4}")
        for i in range(20)
    ]
    for i in range(22):
        minute, topic = 2 * i + 1, ("views", "likes", "comments")[i % 3]
        user, about = f"u{rng.integers(5)}", f"c{rng.integers(12) if i else 0}"
        late = 30 if i == 15 else 0
        one = event(user, about, minute - late, topic, event_id=f"e{i}")
        records.append(replace(one, time_ms=(one.time_ms or 0) + 60_000 * late))
        if i == 9:
            records.append(event(user, about, minute, topic, event_id=f"e{i}", undo=True))
        if i == 12:
            records.append(event("u9", "c13", minute, event_id="at once"))
        if i == 17:
            records.append(event(user, about, minute + 1, topic, event_id=f"e{i}"))
    records.append(deletion("c11", 31))
    return sorted(records, key=lambda record: record.time_ms or 0)


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    with path.open("wb") as file:
        for record in small_log():
            line = {"topic": record.topic, "value": msgspec.Raw(record.value or b"null")}
            line |= {"key": (record.key or b"").decode()} if record.value is None else {}
            file.write(msgspec.json.encode(line) + b"\n")
    return path


def instead(pairs: list[Pair], log: EvaluationLog, ranker: LiveRanker, *, learns: bool = True) -> list[Pair]:
    """The same live slates against those of another ranker."""
    others = []
    for touch, pair in zip(touches(log), pairs, strict=True):
        if learns:
            ranker.learn()
        others.append(replace(pair, direct=ranker.react(touch)))
    return others


def test_slates_through_kafka_are_those_straight_from_the_log(
    broker: RunningBroker,
    log_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran: list[tuple[Settings, EvaluationLog, World, list[Pair]]] = []

    def run(settings: Settings, log: EvaluationLog, world: World, *rest: Any) -> list[Pair]:
        ran.append((settings, log, world, both_ways(settings, log, world, *rest)))
        return ran[0][3]

    both_ways = through_kafka.run
    monkeypatch.setattr(through_kafka, "run", run)
    monkeypatch.setattr(stream_app.content.app, "TextEncoder", DrawnVectors)
    monkeypatch.setattr(
        "stream_app.evaluation.vectors.encoded",
        lambda _, catalogue, progress: drawn([text.text for text in catalogue.texts]),
    )
    for name, value in {
        "BROKER": broker.address,
        "KAFKA_PARTITIONS": "2",
        "KAFKA_SHARED_PARTITIONS": "2",
        "EVENTS_ACTIONS": "view:views:0.3,like:likes:1,comment:comments:2",
    }.items():
        monkeypatch.setenv(f"STREAM_APP_{name}", value)
    assert cli.run(["evaluate", "--log", str(log_file), "--through-kafka", "1000"]) == 0
    ((settings, log, world, pairs),) = ran
    said = capsys.readouterr().out
    assert f"{len(log)} events, ranked by blend and learned: 0 slates differ" in said
    assert len(log) == len(pairs) == 24
    # a repeat with a later time moves its engagement; who has nothing left to see has an empty slate
    assert Agreement.of(pairs).silent == 0
    assert any(pair.live is not None and not pair.live.items for pair in pairs)
    assert len({item.content_id for pair in pairs if pair.live for item in pair.live.items}) > 12

    # what would be wrong shows
    def differing(ranker: LiveRanker, *, learns: bool = True) -> int:
        return Agreement.of(instead(pairs, log, ranker, learns=learns)).differing

    def with_other(**ranking: float) -> LiveRanker:
        changed = msgspec.structs.replace(settings.ranking, **ranking)
        return through_kafka.straight(msgspec.structs.replace(settings, ranking=changed), log, world, seed=1)

    assert differing(with_other()) == 0
    assert differing(with_other(weight_popularity=0.1)) > 2
    assert differing(with_other(max_age_days=0.01)) > 2
    assert differing(with_other(), learns=False) > 2

    # and the command says so
    monkeypatch.setattr(through_kafka, "run", lambda *_: instead(pairs, log, with_other(author_cap=1)))
    assert cli.run(["evaluate", "--log", str(log_file), "--through-kafka", "1000"]) == 1
    said = capsys.readouterr().out
    assert ": 0 slates differ" not in said
    assert "\nevent " in said


def slate(ids: str, scores: Sequence[float], ranker: str = "blend") -> Slate:
    items = [Item(i, score, Parts(score, 0, 0, 0), []) for i, score in zip(ids, scores, strict=True)]
    return Slate("u", "", "m", None, "personal", items, "blend", ranker)


def ranked(ids: str, scores: Sequence[float]) -> Ranked:
    return Ranked(b"u", None, "personal", slate(ids, scores).items, "blend")


FIRST, LAST = ranked("abc", (3.0, 2.0, 1.0)), ranked("acb", (3.0, 2.5, 2.0))


@pytest.mark.parametrize(
    ("live", "direct", "found"),
    [
        (None, [], Agreement(1, 0, 1, 0, 0, ())),
        (slate("acb", (3.0, 2.5, 2.0)), [FIRST, LAST], Agreement(1, 0, 0, 0, 0, ("blend",))),
        (slate("abc", (3.0, 2.0, 1.0)), [FIRST, LAST], Agreement(1, 0, 0, 1, 0, ("blend",))),
        (slate("bac", (3.0, 2.999996, 1.0)), [ranked("abc", (3.0, 2.999999, 1.0))] * 2,
         Agreement(1, 0, 0, 0, 1, ("blend",))),
        (slate("bac", (3.0, 2.0, 1.0)), [FIRST, LAST], Agreement(1, 1, 0, 0, 0, ())),
        (slate("ab", (3.0, 2.0)), [FIRST, LAST], Agreement(1, 1, 0, 0, 0, ())),
        (slate("abd", (3.0, 2.0, 0.5)), [FIRST, LAST], Agreement(1, 1, 0, 0, 0, ())),
        (slate("acb", (3.0, 2.5, 2.0), "learned-1"), [FIRST, LAST], Agreement(1, 1, 0, 0, 0, ())),
        (None, [FIRST, LAST], Agreement(1, 1, 0, 0, 0, ())),
        (slate("abc", (3.0, 2.0, 1.0)), [], Agreement(1, 1, 0, 0, 0, ())),
    ],
    ids=["silent", "same", "early", "tie", "order", "short", "other", "ranker", "missing", "surplus"],
)  # fmt: skip
def test_what_counts_as_the_same(live: Slate | None, direct: list[Ranked], found: Agreement) -> None:
    assert Agreement.of([Pair(0, live, direct)]) == found


def test_half_of_the_users_are_ranked_by_each_ranker() -> None:
    assert {(arm.ranker, arm.share) for arm in ARMS} == {("blend", 1.0), ("learned", 1.0)}


@pytest.mark.skipif(RECORDED is None, reason="STREAM_APP_DATA names no directory with the Deskdrop log")
def test_the_command_on_a_slice_of_deskdrop(capsys: pytest.CaptureFixture[str]) -> None:
    assert RECORDED is not None
    log = str(Path(RECORDED) / "deskdrop")
    assert cli.run(["evaluate", "--log", log, "--through-kafka", "150"]) == 0
    assert "150 events, ranked by blend and learned: 0 slates differ" in capsys.readouterr().out
