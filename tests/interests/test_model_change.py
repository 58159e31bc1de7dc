"""Another model: an interests worker takes no event before that has what its predecessor had."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from stream_app.content.coverage import Mark, mark_key
from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector, encode, vector_key
from stream_app.hashing import model_code
from stream_app.interests.decay import remaining
from stream_app.kafka import clients
from stream_app.kafka.partitions import partition_of
from stream_app.settings import Settings
from tests.interests.closed_form import Sent
from tests.interests.workers import DAY_MS, NOW_MS, produce, states, unit_vectors, wait_until, workers

CONTENTS = 6
D = 384


def publish(settings: Settings, model: str, vectors: dict[int, np.ndarray]) -> None:  # type: ignore[type-arg]
    """Contents as a worker of that model does."""
    topic = settings.topic_name("content-vectors")
    at = time.time_ns() // 1_000_000
    with clients.producer(settings) as producer:
        for number, vector in vectors.items():
            content = b"c%d" % number
            producer.send(
                topic,
                key=vector_key(content, model_code(model)),
                value=encode(ContentVector(model, "", NOW_MS, at, vector)),
                partition=partition_of(content, settings.kafka.shared_partitions),
            )


def with_model(settings: Settings, model: str) -> Settings:
    return msgspec.structs.replace(settings, content=msgspec.structs.replace(settings.content, model=model))


@pytest.mark.usefixtures("topics")
def test_a_worker_waits_for_its_models_catalogue_and_sums_everything_anew(
    settings: Settings, tmp_path: Path
) -> None:
    old, new = with_model(settings, "old/model"), with_model(settings, "new/model")
    first, second = unit_vectors(2 * CONTENTS, D)[:CONTENTS], unit_vectors(2 * CONTENTS, D)[CONTENTS:]
    publish(old, model_id(old), dict(enumerate(first)))
    likes = [Sent(b"ana", number, number, NOW_MS + number * DAY_MS, 1.0) for number in range(CONTENTS)]
    with workers(old, tmp_path, "worker") as (before,):
        produce(old, likes)
        wait_until(lambda: bool(s := states(old)) and s[b"ana"].header["live"] == CONTENTS, "the old state")
        assert before.stop() == 0  # one that is killed is a member of the group until its session ends
    publish(new, model_id(new), {0: second[0], 1: second[1]})  # half-encoded
    with workers(new, tmp_path, "worker") as (worker,):
        produce(new, [Sent(b"ana", 0, 99, NOW_MS + CONTENTS * DAY_MS, 1.0)])
        worker.wait_for(f"{CONTENTS - 2} contents to be encoded by new/model")
        assert states(new)[b"ana"].header["model"] == model_code("old/model")
        publish(new, model_id(new), dict(enumerate(second[:-1])))
        # the last one is not for it: said by the mark of all of `content`
        mark = msgspec.json.encode(Mark("new/model", 1, time.time_ns() // 1_000_000))
        with clients.producer(new) as producer:
            producer.send(new.topic_name("content-vectors"), mark, mark_key(model_code("new/model"), 0))
        wait_until(
            lambda: states(new)[b"ana"].header["model"] == model_code("new/model"),
            "the new state",
            worker.log,
        )
    record = states(new)[b"ana"]
    half_life_ms = new.interests.half_life_days * DAY_MS
    standing = [(number, number) for number in range(CONTENTS - 1)] + [(0, CONTENTS)]
    ages = np.array([(CONTENTS - day) * DAY_MS for _, day in standing])
    wanted = remaining(ages, half_life_ms) @ second[[content for content, _ in standing]].astype(np.float64)
    np.testing.assert_allclose(record.vector, wanted, rtol=1e-4, atol=1e-6)
