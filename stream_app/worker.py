"""Runs one role: status pages, Faust app, supervision, an end within bounds."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from stream_app import memory, series
from stream_app.errors import BrokerUnavailableError, ConfigurationError, StalledError, StreamAppError
from stream_app.kafka.admin import ensure_topics, left_over_retries
from stream_app.kafka.deployments import refuse_others
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.faust.app import RoleApp
from stream_app.kafka.faust.supervision import supervise
from stream_app.observability import metrics
from stream_app.observability.health import Health
from stream_app.observability.watchdog import Watchdog
from stream_app.observability.web import StatusServer
from stream_app.processes import end_on_signals
from stream_app.settings import Events, Settings

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from stream_app.observability.tracing import Tracing

log = logging.getLogger(__name__)

ROLES = {
    "interests": "stream_app.interests.app",
    "content": "stream_app.content.app",
    "ranker": "stream_app.recommendations.app",
    "trainer": "stream_app.learning.app",
    "serve": "stream_app.serving.app",
}
PIPELINE = ("interests", "content", "ranker", "trainer")
"""Roles that make slates: what `worker all` runs."""
ONE_THREAD = ("trainer", "serve")
"""Roles whose matrices are so small that a second thread of NumPy's BLAS only spins: it doubled the
processor time of a step of learning and made none faster."""
TRACED = ("interests", "ranker")
"""Roles that an event passes through."""
BLAS_THREADS = "OPENBLAS_NUM_THREADS"
COLLECT_AFTER = 100_000
"""Allocations between two collections of the youngest objects."""

CONNECT_RETRY_S = 2.0
WAITING_S = 10.0
"""How often a worker that does not serve yet says what it waits for."""
STOP_TIMEOUT_S = 30.0
"""For finishing the batch in hand, committing, and leaving the group."""
STALLED_STOP_S = 5.0
"""The same for a worker that has stalled: what hangs will not end, and holds its partitions meanwhile."""
LAST_WORDS_S = 2.0
"""A stalled worker shows its cause on ``/healthz`` for at least this long."""
EXIT_S = 5.0
"""From rest to the end of the process."""


class Role(Protocol):
    """What runs: a Faust app with our transport, or what follows topics without a group."""

    async def start(self) -> None:
        """Return once it runs, or end by an error."""

    async def stop(self) -> None:
        """Come to rest."""


class Follower(Role, Protocol):
    """A role that is no Faust app."""

    async def watch(self) -> None:
        """For ever; raises what ended a part."""


async def run_worker(settings: Settings, role: str) -> int:
    """Run a role until a signal asks it to end (0); raises what else ends it.

    Until there is something to finish, the caller's signal handlers stand.
    """
    health = Health(settings)
    tracing = _tracing(settings, role)
    series.begin(settings, role)
    server = StatusServer(settings, health)
    await server.start()
    log.info("actions: %s", _actions(settings.events))
    try:
        await _once_the_broker_answers(settings, health, partial(ensure_topics, settings, role))
        if role in ONE_THREAD:
            os.environ.setdefault(BLAS_THREADS, "1")  # read when the role's module loads NumPy
        own: dict[str, Any] = {} if tracing is None else {"tracing": tracing}
        if role == "interests":
            own["left_over"] = await asyncio.to_thread(left_over_retries, settings)
        app: RoleApp | Follower = importlib.import_module(ROLES[role]).create_app(settings, health, **own)
        if isinstance(app, RoleApp):
            await _once_the_broker_answers(settings, health, partial(refuse_others, settings, app.conf.id))
        await _work(settings, role, app, health)
    except KafkaError as error:
        raise StreamAppError(f"a Kafka client failed: {error!r}; start this worker anew") from error
    finally:
        await server.stop()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)
    return 0


def _actions(events: Events) -> str:
    """In words, with the default ones that are not among them: a list of one's own replaces those."""
    shown = ", ".join(f"{a.name} ({a.topic}, weight {a.weight:g})" for a in events.actions)
    left_out = {a.name for a in Events().actions} - {a.name for a in events.actions}
    if left_out:
        shown += f"; without the default {', '.join(sorted(left_out))} (events.extra_actions only adds)"
    return shown


def _tracing(settings: Settings, role: str) -> Tracing | None:
    if not settings.observability.tracing or role not in TRACED:
        return None
    try:
        from stream_app.observability.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"observability.tracing is on, but OpenTelemetry is not installed ({error.name} is missing): "
            "pip install '.[tracing]' in a checkout of stream-app, or turn it off"
        ) from None
    return Tracing(settings, role)


async def _work(settings: Settings, role: str, app: RoleApp | Follower, health: Health) -> None:
    # A fetched batch is tens of thousands of short-lived objects without cycles: at Python's threshold
    # of 700 the collector would go over them again and again.
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    end_on_signals(lambda: loop.call_soon_threadsafe(stop.set))
    watchdog = Watchdog(settings)
    watchdog.start()
    health.judge_readiness()
    ended = asyncio.create_task(stop.wait(), name="signal")
    tasks: set[asyncio.Task[Any]] = {
        ended,
        asyncio.create_task(app.start(), name=f"{role} starting"),
        asyncio.create_task(health.watch(watchdog.beat), name="stall watch"),
        asyncio.create_task(_say_what_is_waited_for(health), name="waiting"),
        asyncio.create_task(memory.keep_small(), name="memory"),
        *(
            asyncio.create_task(work, name=name)
            for name, work in _watching(settings, role, app, health).items()
        ),
    }
    failure = await _first_failure(tasks, ended)
    health.ready, health.waiting_for = False, "shutdown"
    stalled = isinstance(failure, StalledError)
    limit = STALLED_STOP_S if stalled else STOP_TIMEOUT_S
    watchdog.end_within(LAST_WORDS_S + limit + EXIT_S)
    if stalled:
        log.critical("%s", failure)
        await asyncio.sleep(LAST_WORDS_S)
    else:
        log.info("stopping: what is in hand is finished first")
    rested = await _rest(app, tasks, limit)
    if failure is not None:
        raise failure
    if not rested:
        raise StalledError(f"the worker did not come to rest within {limit:.0f} s; what was open is void")


def _watching(
    settings: Settings, role: str, app: RoleApp | Follower, health: Health
) -> dict[str, Coroutine[Any, Any, None]]:
    """What looks after a role, by name, for ever."""
    if not isinstance(app, RoleApp):
        return {"supervision": app.watch()}
    app.serving.append(lambda serving: _note_serving(health, role, serving))
    return {
        "supervision": supervise(settings, app, health),
        "crash": _crashed(app),
        "deployments": _look_again(settings, app),
    }


async def _first_failure(tasks: set[asyncio.Task[Any]], ended: asyncio.Task[Any]) -> BaseException | None:
    """Of any task; None once a signal has come."""
    pending = set(tasks)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if ended in done:
            return None
        for task in done:  # only the start ends well
            if (error := task.exception()) is not None:
                return error


async def _rest(app: RoleApp | Follower, tasks: set[asyncio.Task[Any]], limit: float) -> bool:
    """Stop the app; whether it came to rest in time."""
    for task in tasks:
        task.cancel()
    stopping = asyncio.gather(app.stop(), *tasks, return_exceptions=True)
    done, _ = await asyncio.wait([stopping], timeout=limit)
    if done and isinstance(error := stopping.result()[0], BaseException):
        raise error
    return bool(done)


async def _look_again(settings: Settings, app: RoleApp) -> None:
    """Once we are in the group: two deployments that start together see nobody there before."""
    served = asyncio.Event()
    app.serving.append(lambda serving: served.set() if serving else None)
    await served.wait()
    try:
        await asyncio.to_thread(refuse_others, settings, app.conf.id)
    except (BrokerUnavailableError, KafkaError) as error:
        log.warning("whether another deployment is in the group was not to be learned: %s", error)


async def _crashed(app: RoleApp) -> None:
    await app._crashed.wait()
    raise app.crash_reason or StreamAppError("the worker crashed")


async def _once_the_broker_answers(settings: Settings, health: Health, check: Callable[[], None]) -> None:
    """Have ``check`` ask the broker, in a thread, until it has got its answer."""
    health.waiting_for = "the broker"
    loop = asyncio.get_running_loop()
    limit = settings.kafka.connect_timeout_s
    deadline = loop.time() + limit if limit else float("inf")
    while True:
        asking = asyncio.create_task(asyncio.to_thread(check))
        began = loop.time()
        while not (await asyncio.wait([asking], timeout=WAITING_S))[0]:
            log.warning(
                "the broker at %s is slow: it was asked %.0f s ago; see to its load and to the network",
                *(settings.kafka.broker, loop.time() - began),
            )
        try:
            return await asking
        except (BrokerUnavailableError, KafkaError) as error:
            if loop.time() >= deadline:
                raise
            log.warning("%s; trying again in %.0f s", error, CONNECT_RETRY_S)
        await asyncio.sleep(CONNECT_RETRY_S)


async def _say_what_is_waited_for(health: Health) -> None:
    """For ever, at a leisurely pace."""
    while True:
        await asyncio.sleep(WAITING_S)
        if not health.ready:
            log.info("not ready yet: waits for %s", health.waiting_for)


def _note_serving(health: Health, role: str, serving: bool) -> None:
    health.ready = serving
    if serving:
        metrics.REBALANCES.labels(role).inc()
    else:
        health.waiting_for = "an assignment"
