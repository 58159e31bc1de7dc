"""What an agent logs says which batch it was working on, also from tasks that it started."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from typing import Any

import pytest

from stream_app.kafka import clients
from stream_app.kafka.faust.app import create_faust_app
from stream_app.kafka.faust.current import current_batch
from stream_app.observability.logging import configure
from stream_app.settings import Settings

pytestmark = pytest.mark.usefixtures("topics")
TIMEOUT_S = 30.0


def test_an_agents_lines_name_topic_partition_and_offset(settings: Settings) -> None:
    topic, stream = settings.topic_name("likes"), io.StringIO()
    log = logging.getLogger("stream_app.test")
    with clients.producer(settings) as producer:
        for value in (b"1", b"2", b"3"):
            producer.send(topic, key=b"k", value=value, partition=1)

    async def run() -> None:
        app = create_faust_app(settings, "test", batch_topics=[topic])
        done = asyncio.Event()

        async def elsewhere() -> None:
            log.info("in a task")

        @app.agent(app.batches([topic]), name="taker")  # type: ignore[untyped-decorator]
        async def taker(batches: Any) -> None:
            async for batch in batches:
                log.info("taken")
                await asyncio.create_task(elsewhere())
                if batch.records[-1].offset == 2:
                    done.set()

        start = asyncio.create_task(app.start())
        try:
            await asyncio.wait_for(done.wait(), TIMEOUT_S)
            log.info("outside")
        finally:
            await asyncio.wait_for(app.stop(), TIMEOUT_S)
            await asyncio.wait([start])

    root, own = logging.getLogger(), logging.getLogger("stream_app")
    before = root.level, root.handlers[:], own.level
    try:
        configure("test", "info", stream, form="json", place=current_batch)
        asyncio.run(run())
    finally:
        logging.captureWarnings(False)
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        own.setLevel(before[2])
    lines = [line for line in map(json.loads, stream.getvalue().splitlines()) if line["logger"] == log.name]
    last = {"topic": topic, "partition": 1, "offset": 2}
    assert [line["message"] for line in lines][-3:] == ["taken", "in a task", "outside"]
    assert [last.items() <= line.items() for line in lines[-3:]] == [True, True, False]
