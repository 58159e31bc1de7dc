"""States that were summed under another encoder: when and from what they are made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from stream_app.content.coverage import mark_key
from stream_app.hashing import model_code
from stream_app.interests.record import APPLIED, states
from tests.interests.test_batch import (
    CONTENTS,
    DELAYS_S,
    HOUR_MS,
    NOW_MS,
    VECTORS,
    Record,
    World,
    configured,
)

OTHER_VECTORS = np.roll(VECTORS, 1, axis=1)


def of_another_encoder(tmp_path: Path, likes: int) -> World:
    """A worker of encoder `new`; under `old` a user has liked the first contents, one an hour."""
    old = World(configured(recent=4), tmp_path / "state", model="old")
    old.know(*range(CONTENTS))
    for number in range(likes):
        age = (likes - 1 - number) * HOUR_MS
        old.take("likes", [old.event("u", number, age, event_id=f"e{number}")])
    old.flush()
    old.close()
    new = World(configured(recent=4), tmp_path / "state", model="new")
    new.offset = 100  # the log goes on
    return new


def summed(world: World, *contents_and_ages: tuple[int, int]) -> Any:
    half_life = world.settings.interests.half_life_days * 24 * HOUR_MS
    return sum(
        2.0 ** (-age * HOUR_MS / half_life) * OTHER_VECTORS[content].astype(np.float64)
        for content, age in contents_and_ages
    )


def test_a_record_of_another_encoder_is_summed_anew_once_all_its_contents_are_there(tmp_path: Path) -> None:
    new = of_another_encoder(tmp_path, 4)
    new.know(0, 1, 3, vectors=OTHER_VECTORS)  # content 2 has not been encoded anew
    new.take("likes", [new.event("u", 3, event_id="more"), new.event("v", 3, event_id="v")])
    assert new.table.keys() == {b"v"}, "the state waits as it is"
    assert (new.committed.applied, new.committed.retrying) == (1, 1)
    new.know(2, vectors=OTHER_VECTORS)
    new.take(
        "events-retry",
        [Record(r.key, r.value, 200 + i, headers=r.headers) for i, r in enumerate(new.retries)],
    )
    record = new.record("u")
    assert int(record.header["model"]) == model_code("new")
    np.testing.assert_allclose(
        record.vector, summed(new, (0, 3), (1, 2), (2, 1), (3, 0), (3, 0)), rtol=1e-5, atol=1e-6
    )
    assert int(record.header["live"]) == 5
    assert (new.committed.applied, new.committed.retrying) == (2, 0)
    new.close()


def test_contents_that_the_encoder_will_never_have_count_without_a_vector(tmp_path: Path) -> None:
    new = of_another_encoder(tmp_path, 4)
    new.know(0, 1, 3, vectors=OTHER_VECTORS)
    mark = json.dumps({"model": "new", "partitions": 1, "at": NOW_MS}).encode()
    new.contents.receive([Record(mark_key(model_code("new"), 0), mark, 0)])  # content 2 was deleted
    new.take("likes", [new.event("u", 3, event_id="more")])
    record = new.record("u")
    np.testing.assert_allclose(
        record.vector, summed(new, (0, 3), (1, 2), (3, 0), (3, 0)), rtol=1e-5, atol=1e-6
    )
    assert int(record.header["live"]) == 5
    assert (states(record.interactions) == APPLIED).sum() == 4, "of the five, one left the ring"
    new.take("likes", [new.event("u", 1, event_id="e1", undo=True)])
    np.testing.assert_allclose(
        new.record("u").vector, summed(new, (0, 3), (3, 0), (3, 0)), rtol=1e-5, atol=1e-6
    )
    new.close()


def test_a_record_of_another_encoder_is_never_made_of_what_happens_to_be_there(tmp_path: Path) -> None:
    new = of_another_encoder(tmp_path, 4)
    new.know(3, vectors=OTHER_VECTORS)
    event = new.event("u", 3, event_id="more")
    new.take("likes", [event])
    for attempt in range(len(DELAYS_S)):
        retries, new.retries = new.retries, []
        new.take("events-retry", [Record(r.key, r.value, 200 + attempt, headers=r.headers) for r in retries])
    assert not new.table
    assert len(new.letters) == 1
    new.close()
