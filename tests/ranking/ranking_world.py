"""Small synthetic worlds: contents, interest records and statistics records, all from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app import settings as configuration
from stream_app.content.index import ContentIndex
from stream_app.content.vectors import ContentVector
from stream_app.hashing import action_code, key64, model_code
from stream_app.interests import record
from stream_app.interests.record import APPLIED, HEADER, INTERACTION
from stream_app.settings import Settings

MODEL = "test-encoder"
D = 32
HOUR = 3_600_000
DAY = 24 * HOUR
NOW = 1_700_000_000_000


def settings(**sections: dict[str, object]) -> Settings:
    """Settings for small vectors; sections override, as in ``settings(ranking={"slate_size": 5})``."""
    tree = {
        "interests": {"stats_half_lives_h": [0.5, 6.0, 24.0, 168.0, 720.0]},
        "content": {"dimensions": D, "capacity": 5000},
        "ranking": {"device": "cpu"},
    }
    for name, values in sections.items():
        tree.setdefault(name, {}).update(values)
    return configuration.build(tree)


@dataclass(frozen=True)
class Engagement:
    """One interaction of a made-up user."""

    content_id: bytes
    time: int
    weight: float = 1.0
    action: str = "like"
    state: int = APPLIED


def content_id(i: int) -> bytes:
    return b"content-%d" % i


def put(
    index: ContentIndex, id_: bytes, vector: NDArray[np.floating], created_at: int, author: str = ""
) -> None:
    unit = (vector / np.linalg.norm(vector)).astype(np.float16)
    assert (
        index.put(id_, ContentVector(index.model, author, created_at, created_at, unit, known=True))
        is not None
    )


def put_silent(index: ContentIndex, id_: bytes, created_at: int, author: str = "") -> None:
    """A content without text."""
    nothing = np.zeros(0, np.float16)
    assert index.put(id_, ContentVector(index.model, author, created_at, created_at, nothing)) is not None


def filled_index(
    config: Settings, count: int, seed: int = 0, authors: int = 40, model: str = MODEL
) -> ContentIndex:
    """``count`` contents around a dozen subjects, created over the last 20 days."""
    rng = np.random.default_rng(seed)
    index = ContentIndex(config, model)
    d = config.content.dimensions
    subjects = rng.normal(size=(12, d))
    vectors = subjects[rng.integers(12, size=count)] + 0.8 * rng.normal(size=(count, d))
    ages = rng.integers(0, 20 * DAY, size=count)
    for i in range(count):
        author = f"author-{rng.integers(authors)}" if authors else ""
        put(index, content_id(i), vectors[i], NOW - int(ages[i]), author)
    return index


def interest_record(
    config: Settings,
    index: ContentIndex,
    engagements: Sequence[Engagement],
    *,
    model: str = MODEL,
    seen: Sequence[bytes] | None = None,
) -> bytes:
    """The bytes of the record that these engagements lead to, by the closed form."""
    half_life = config.interests.half_life_days * DAY
    t_ref = max(e.time for e in engagements)
    vector = np.zeros(index.vectors.shape[1])
    mass = 0.0
    for e in engagements:
        if e.state == APPLIED:
            left = e.weight * 2.0 ** ((e.time - t_ref) / half_life)
            vector += left * index.vectors[index.rows[e.content_id]]
            mass += abs(left)
    kept = list(engagements)[-config.interests.recent :]
    ring = np.zeros(len(kept), INTERACTION)
    for slot, e in zip(ring, kept, strict=True):
        slot["content"], slot["time"], slot["weight"] = key64(e.content_id), e.time, e.weight
        slot["action"], slot["state"] = action_code(e.action), e.state
    keys = np.array([key64(c) for c in (seen if seen is not None else [])], np.uint64)
    header = np.zeros((), HEADER)
    header["version"] = record.VERSION
    header["action"] = action_code(engagements[-1].action)
    header["dimensions"], header["recent"] = len(vector), config.interests.recent
    header["model"] = model_code(model)
    header["partition"], header["offset"] = 1, 42
    header["occurred_at"], header["received_at"] = engagements[-1].time, engagements[-1].time + 5
    header["t_ref"], header["mass"], header["live"] = t_ref, mass, len(engagements)
    header["total"] = len(kept)
    header["seen"], header["seen_total"], header["seen_stored"] = config.interests.seen, len(keys), len(keys)
    header["interactions"] = len(kept)
    return b"".join((header.tobytes(), vector.astype("<f4").tobytes(), ring.tobytes(), keys.tobytes()))


def some_users(
    config: Settings, index: ContentIndex, count: int, seed: int = 1
) -> list[tuple[bytes, record.InterestRecord]]:
    """Users with 1 to R interactions over the last 10 days, all of them seen."""
    rng = np.random.default_rng(seed)
    ids = list(index.rows)
    actions = config.events.actions
    users = []
    for u in range(count):
        n = int(rng.integers(1, config.interests.recent + 1))
        engagements = []
        for i in rng.choice(len(ids), size=n):
            action = actions[rng.integers(len(actions))]
            at = NOW - int(rng.integers(0, 10 * DAY))
            engagements.append(Engagement(ids[i], at, action.weight, action.name))
        seen = [e.content_id for e in engagements]
        value = interest_record(config, index, engagements, seen=seen)
        users.append((b"user-%d" % u, record.decode(value)))
    return users


def statistics_value(
    config: Settings, partition: int, t_ref: int, counts: dict[str, Sequence[float]]
) -> bytes:
    """A content-stats record; ``counts`` by action name, one number for each configured half-life."""
    from stream_app.interests import statistics_record

    codes = np.array([action_code(a) for a in counts], np.uint16)
    hours = np.array(config.interests.stats_half_lives_h, np.float32)
    start, layout = statistics_record.prefix(partition, codes, hours)
    body = np.array(list(counts.values()), "<f4")
    return start + t_ref.to_bytes(8, "little") + layout + body.tobytes()
