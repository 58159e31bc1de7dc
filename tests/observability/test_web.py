"""The pages over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import ClientSession

from stream_app.errors import ConfigurationError
from stream_app.observability import metrics
from stream_app.observability.health import Health
from stream_app.observability.web import StatusServer
from stream_app.settings import build

SETTINGS = build({"observability": {"port": 0, "stall_timeout_s": 10}})

Get = Callable[[str], Awaitable[tuple[int, str]]]


def serving(scenario: Callable[[Get, Health, list[float]], Awaitable[None]]) -> None:
    """Run a scenario against a started server; the list's only element is its clock."""

    async def run() -> None:
        clock = [0.0]
        health = Health(SETTINGS, lambda: clock[0])
        server = StatusServer(SETTINGS, health)
        port = await server.start()
        assert port == server.port != 0
        try:
            async with ClientSession() as session:

                async def get(path: str) -> tuple[int, str]:
                    async with session.get(f"http://127.0.0.1:{port}{path}") as response:
                        return response.status, await response.text()

                await scenario(get, health, clock)
        finally:
            await server.stop()
            await server.stop()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_metrics_are_served() -> None:
    async def scenario(get: Get, _: Health, __: list[float]) -> None:
        metrics.SLATES.labels("published").inc()
        status, text = await get("/metrics")
        assert status == 200
        assert 'stream_app_slates_total{result="published"}' in text
        assert (await get("/tables"))[0] == 404

    serving(scenario)


def test_ready_and_healthy_are_told_apart() -> None:
    async def scenario(get: Get, health: Health, clock: list[float]) -> None:
        assert await get("/healthz") == (200, '{"healthy": true, "cause": null}')
        health.waiting_for = "content-vectors"
        assert await get("/readyz") == (503, '{"ready": false, "waiting_for": "content-vectors"}')
        health.ready = True
        assert await get("/readyz") == (200, '{"ready": true, "waiting_for": null}')
        health.expect("encode")
        clock[0] += 11
        status, text = await get("/healthz")
        assert status == 503
        assert "encode has had work for 11 s" in text
        assert (await get("/readyz"))[0] == 503
        health.progress("encode")
        assert (await get("/healthz"))[0] == (await get("/readyz"))[0] == 200

    serving(scenario)


def test_a_taken_port_is_named() -> None:
    async def run() -> None:
        first = StatusServer(SETTINGS, Health(SETTINGS))
        port = await first.start()
        taken = build({"observability": {"port": port}})
        try:
            with pytest.raises(ConfigurationError, match=rf"observability\.port = {port}"):
                await StatusServer(taken, Health(taken)).start()
        finally:
            await first.stop()

    asyncio.run(run())
