"""Workers whose settings would shape state differently do not share it, and a change is told."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from stream_app.interests.shaping import differences, shaping
from stream_app.kafka.admin import create_topics
from stream_app.settings import Settings
from tests.interests.closed_form import Sent
from tests.interests.workers import NOW_MS, Worker, produce, publish_contents, unit_vectors, wait_for_outcomes

VECTORS = unit_vectors(4, 16)


def test_a_worker_with_another_half_life_is_refused_by_name_until_the_others_are_gone(
    settings: Settings, tmp_path: Path
) -> None:
    content = msgspec.structs.replace(settings.content, dimensions=16)
    world = msgspec.structs.replace(settings, content=content)
    changed = msgspec.structs.replace(world.interests, half_life_days=30.0)
    create_topics(world)
    publish_contents(world, VECTORS)
    first = Worker(world, "first", tmp_path)
    other = Worker(msgspec.structs.replace(world, interests=changed), "other", tmp_path)
    blind = Worker(
        msgspec.structs.replace(world, interests=changed),
        "blind",
        tmp_path,
        module="tests.interests.unasking",
    )
    try:
        first.start()
        first.wait_for("serving")
        produce(world, [Sent(b"ana", 1, 1, NOW_MS, 1.0)])
        wait_for_outcomes(world, 1, first.log)
        other.start()
        assert other.end() != 0
        said = other.log.read_text()
        assert "half_life_days: there 7.0, here 30.0" in said, said[-2000:]
        assert "Traceback" not in said
        blind.start()
        assert blind.end() != 0
        said = blind.log.read_text()
        assert "other settings" in said, said[-3000:]
        assert first.running
        assert first.stop() == 0
        other.start()
        other.wait_for("was written with half_life_days 7.0, now it is 30.0")
        produce(world, [Sent(b"ana", 2, 2, NOW_MS, 1.0)])
        wait_for_outcomes(world, 2, other.log)
        assert other.stop() == 0
    finally:
        for worker in (first, other, blind):
            with contextlib.suppress(AttributeError):  # not started
                worker.kill()


def test_every_setting_that_shapes_the_state_is_told_apart() -> None:
    plain = Settings()
    own = shaping(plain, "m")
    for other in (
        msgspec.structs.replace(plain, interests=msgspec.structs.replace(plain.interests, seen_long=7)),
        msgspec.structs.replace(
            plain, events=msgspec.structs.replace(plain.events, actions=plain.events.actions[:2])
        ),
        msgspec.structs.replace(plain, content=msgspec.structs.replace(plain.content, dimensions=8)),
    ):
        assert len(differences(own, shaping(other, "m"))) == 1
    assert differences(own, shaping(plain, "n")) == [("model", "m", "n")]
    assert not differences(own, shaping(plain, "m"))
