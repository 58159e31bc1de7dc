"""Runs one role: status pages, Faust app, stall watch, clean end on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import signal

from aiokafka.errors import KafkaError

from stream_app.errors import BrokerUnavailableError, StreamAppError
from stream_app.kafka.admin import ensure_topics
from stream_app.kafka.app import RoleApp, consumer_of
from stream_app.observability import metrics
from stream_app.observability.health import Health
from stream_app.observability.lag import LagGauge
from stream_app.observability.web import StatusServer
from stream_app.settings import Settings

log = logging.getLogger(__name__)

ROLES = {
    "interests": "stream_app.interests.app",
    "content": "stream_app.content.app",
    "ranker": "stream_app.recommendations.app",
}
COLLECT_AFTER = 100_000
"""Allocations between two collections of the youngest objects."""

LAG_INTERVAL_S = 2.0
CONNECT_RETRY_S = 2.0
STOP_TIMEOUT_S = 30.0


async def run_worker(settings: Settings, role: str) -> int:
    """Run a role until a signal asks it to end (0) or it fails (the error's exit status)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    health = Health(settings)
    server = StatusServer(settings, health)
    await server.start()
    try:
        await _work(settings, role, health, stop)
    finally:
        await server.stop()
    return 0


async def _work(settings: Settings, role: str, health: Health, stop: asyncio.Event) -> None:
    await _wait_for_broker(settings, health, stop)
    if stop.is_set():
        return
    app: RoleApp = importlib.import_module(ROLES[role]).create_app(settings, health)
    # A fetched batch is tens of thousands of short-lived objects without cycles: at Python's threshold
    # of 700 the collector would go over them again and again.
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)
    app.serving.append(lambda serving: _note_serving(health, role, serving))
    start = asyncio.create_task(app.start(), name=f"{role} starting")
    watch = asyncio.create_task(health.watch(), name="stall watch")
    lag = asyncio.create_task(_show_lag(app), name="lag")
    crash = asyncio.create_task(app._crashed.wait(), name="crash")
    ended = asyncio.create_task(stop.wait(), name="signal")
    tasks = {start, watch, lag, crash, ended}
    try:
        while True:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if ended in done:
                log.info("stopping: the batch in hand is finished and committed first")
                return
            if crash in done:
                raise app.crash_reason or StreamAppError("the worker crashed")
            for task in done:
                await task  # raises what ended it; only the start ends well
            tasks -= done
    finally:
        health.ready = False
        health.waiting_for = "shutdown"
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await _stop(app)


async def _stop(app: RoleApp) -> None:
    try:
        await asyncio.wait_for(app.stop(), STOP_TIMEOUT_S)
    except TimeoutError:
        log.critical("the worker did not come to rest within %.0f s; ending anyway", STOP_TIMEOUT_S)


async def _wait_for_broker(settings: Settings, health: Health, stop: asyncio.Event) -> None:
    """Create and check the topics as soon as the broker answers."""
    health.waiting_for = "the broker"
    loop = asyncio.get_running_loop()
    limit = settings.kafka.connect_timeout_s
    deadline = loop.time() + limit if limit else float("inf")
    while not stop.is_set():
        try:
            await asyncio.to_thread(ensure_topics, settings)
            return
        except (BrokerUnavailableError, KafkaError) as error:
            if loop.time() >= deadline:
                raise
            log.warning("%s; trying again in %.0f s", error, CONNECT_RETRY_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), CONNECT_RETRY_S)


def _note_serving(health: Health, role: str, serving: bool) -> None:
    health.ready = serving
    if serving:
        metrics.REBALANCES.labels(role).inc()
    else:
        health.waiting_for = "an assignment"


async def _show_lag(app: RoleApp) -> None:
    gauge = LagGauge()
    while True:
        await asyncio.sleep(LAG_INTERVAL_S)
        if app.started and not app.rebalancing:
            gauge.show(await consumer_of(app).lag())
