"""What watches a run beside the faults: topics that are away for a moment, and a watch that fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from stream_app.chaos.background import Background
from stream_app.chaos.positions import Positions
from stream_app.chaos.world import World
from stream_app.errors import StreamAppError
from stream_app.kafka.admin import admin_client, create_topics
from stream_app.settings import build
from tests.conftest import RunningBroker
from tests.interests.workers import wait_until


def test_positions_are_seen_while_a_topic_is_deleted_and_created_again(
    broker: RunningBroker, tmp_path: Path
) -> None:
    settings = build({"kafka": {"broker": broker.address, "topic_prefix": "background.", "partitions": 2}})
    create_topics(settings)
    with admin_client(settings) as admin:
        admin.delete_topics(["background.likes"])
    world = World(settings, tmp_path)
    world.direct = settings
    with Positions(world) as positions:
        since = time.monotonic()
        wait_until(lambda: positions.target(since) is not None, "a look at the topics")
        positions.check()
        seen = {place[0].topic for place in positions.target(since) or {}}
    assert seen == {"background.comments", "background.shares"}


def test_a_watch_that_fails_ends_the_run() -> None:
    class Failing(Background):
        def _run(self) -> None:
            raise ValueError("no offset")

    failing = Failing()
    failing.start()
    failing.stop()
    with pytest.raises(StreamAppError, match=r"failing of the run failed: ValueError\('no offset'\)"):
        failing.check()
