"""``/metrics``, ``/healthz`` and ``/readyz`` of one worker, on a small server of our own."""

from __future__ import annotations

import logging

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from stream_app.errors import ConfigurationError
from stream_app.observability.health import Health
from stream_app.settings import Settings

log = logging.getLogger(__name__)


class StatusServer:
    """Serves the pages from the worker's own event loop: when that stands still, so do they."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._host = settings.observability.host
        self._port = settings.observability.port
        self._health = health
        self._runner: web.AppRunner | None = None
        self.port: int | None = None
        """Where it listens, once started."""

    async def start(self) -> int:
        """Listen, and return the port. Raises ConfigurationError when it is taken or not allowed."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigurationError(
                f"observability.host = {self._host!r}, observability.port = {self._port}: cannot listen "
                f"there ({error.strerror or error}); 0 takes a free port"
            ) from None
        self._runner = runner
        self.port = int(runner.addresses[0][1])
        log.info("metrics and health on http://%s:%d/metrics, /healthz, /readyz", self._host, self.port)
        return self.port

    async def stop(self) -> None:
        """Stop listening; may be called more than once."""
        if self._runner is not None:
            runner, self._runner, self.port = self._runner, None, None
            await runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _: web.Request) -> web.Response:
        cause = self._health.stalled()
        return web.json_response(
            {"healthy": cause is None, "cause": cause}, status=200 if cause is None else 503
        )

    async def _readyz(self, _: web.Request) -> web.Response:
        cause = self._health.stalled() or (None if self._health.ready else self._health.waiting_for)
        return web.json_response(
            {"ready": cause is None, "waiting_for": cause}, status=200 if cause is None else 503
        )
