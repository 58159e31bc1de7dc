"""``/metrics``, ``/healthz`` and ``/readyz`` of one worker, on a small server of our own."""

from __future__ import annotations

import errno
import logging
import os

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from stream_app.errors import ConfigurationError
from stream_app.observability.health import Health
from stream_app.settings import Settings

log = logging.getLogger(__name__)

REMEDIES = {
    errno.EADDRINUSE: "port to one that is free (0 takes any)",
    errno.EACCES: "port to one above 1023",
}
"""What to set where a listener cannot be opened, by the system's reason."""
ANOTHER_HOST = "host to an address of this machine"


async def listening(
    app: web.Application, section: str, host: str, port: int, drain_s: float = 1.0
) -> tuple[web.AppRunner, int]:
    """Serve ``app`` there, until its runner is cleaned up; that and the port. Answers under way get
    ``drain_s`` then. Raises ConfigurationError, naming the settings' ``section``, when it cannot listen."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=drain_s)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        # asyncio puts the reason into a sentence of its own; resolving a name has its own, negative numbers
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise ConfigurationError(
            f"{section}.host = {host!r}, {section}.port = {port}: cannot listen there ({reason}); "
            f"set {section}.{REMEDIES.get(number, ANOTHER_HOST)}"
        ) from None
    return runner, int(runner.addresses[0][1])


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
        self._runner, self.port = await listening(app, "observability", self._host, self._port)
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
