"""The HTTP interface: admits, answers, refuses with a code, counts. Knows neither Kafka nor RocksDB."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from stream_app.errors import StateDirectoryError
from stream_app.observability import metrics
from stream_app.observability.access import Access
from stream_app.recommendations.slate import COLD_START_USER
from stream_app.serving import routes
from stream_app.serving.catalogue import BusyError, Similar, Trending
from stream_app.serving.openapi import COLD_START, OWN, SLATE_HEADER, document
from stream_app.serving.rate import Rate
from stream_app.serving.routes import Fault, Problem, Refusal

log = logging.getLogger(__name__)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

FIXED_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
JSON = "application/json"
NO_ROUTE = "none"


class RefusedError(Exception):
    """The request is not answered."""

    def __init__(self, refusal: Refusal, retry_after_s: float | None = None) -> None:
        super().__init__(refusal.code)
        self.refusal, self.retry_after_s = refusal, retry_after_s


class Api:
    """Answers requests from what it is given."""

    def __init__(
        self,
        access: Access,
        rate_per_s: float,
        longest_id: int,
        slate: Callable[[bytes], Awaitable[bytes | None]],
        similar: Callable[[str, int], Awaitable[Similar | None]],
        trending: Callable[[int], Trending],
        ready: Callable[[], bool],
        broken: Callable[[str], None],
    ) -> None:
        """``longest_id`` in bytes; ``slate`` gives a user's slate as JSON, ``similar`` and ``trending`` are
        :class:`Catalogue`'s; ``broken`` is told when the database cannot be read."""
        self._access, self._rate, self._longest_id = access, Rate(rate_per_s), longest_id
        self._slate_of, self._similar_to, self._trending_now = slate, similar, trending
        self._ready, self._broken = ready, broken
        self._document = document().encode()

    def application(self) -> web.Application:
        """The routes, for a server."""
        app = web.Application(middlewares=[self._answer])
        for route, answer in (
            (routes.SLATE, self._slate),
            (routes.SIMILAR, self._similar),
            (routes.TRENDING, self._trending),
            (routes.DOCUMENT, self._openapi),
        ):
            app.router.add_get(route.path, answer, name=route.name)
        return app

    @web.middleware
    async def _answer(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        begun = time.perf_counter()
        name = request.match_info.route.name or NO_ROUTE
        try:
            self._admit(request)
            response = await handler(request)
        except RefusedError as refused:
            response = _refused(refused.refusal, refused.retry_after_s)
        except web.HTTPNotFound:
            response = _refused(Refusal.NO_SUCH_PATH)
        except web.HTTPMethodNotAllowed:
            response = _refused(Refusal.BAD_METHOD)
        except web.HTTPException:
            response = _refused(Refusal.BAD_REQUEST)
        except StateDirectoryError as error:
            self._broken(str(error))
            response = _refused(Refusal.NOT_READY)
        except Exception:
            log.exception("a request for %s failed", name)
            response = _refused(Refusal.INTERNAL)
        response.headers.update(FIXED_HEADERS)
        metrics.SERVING_REQUESTS.labels(name, str(response.status)).inc()
        metrics.SERVING_SECONDS.labels(name).observe(time.perf_counter() - begun)
        return response

    def _admit(self, request: web.Request) -> None:
        """Strangers cost a comparison, and nothing of the rate."""
        if not self._access.allows(request.headers.get("Authorization")):
            raise RefusedError(Refusal.UNAUTHORIZED)
        if wait_s := self._rate.wait_s(time.monotonic()):
            raise RefusedError(Refusal.TOO_MANY, wait_s)

    async def _slate(self, request: web.Request) -> web.Response:
        user = self._id(request, "user").encode()
        self._check_ready()
        slate, whose = await self._slate_of(user), OWN
        if slate is None:
            slate, whose = await self._slate_of(COLD_START_USER), COLD_START
        if slate is None:
            raise RefusedError(Refusal.NO_SLATE)
        return web.Response(body=slate, content_type=JSON, headers={SLATE_HEADER: whose})

    async def _similar(self, request: web.Request) -> web.Response:
        content, limit = self._id(request, "content"), _limit(request)
        self._check_ready()
        try:
            found = await self._similar_to(content, limit)
        except BusyError:
            raise RefusedError(Refusal.BUSY, 1.0) from None
        if found is None:
            raise RefusedError(Refusal.UNKNOWN_CONTENT)
        return web.Response(body=msgspec.json.encode(found), content_type=JSON)

    async def _trending(self, request: web.Request) -> web.Response:
        limit = _limit(request)
        self._check_ready()
        return web.Response(body=msgspec.json.encode(self._trending_now(limit)), content_type=JSON)

    async def _openapi(self, _: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type=JSON)

    def _id(self, request: web.Request, name: str) -> str:
        text = request.match_info[name]
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise RefusedError(Refusal.BAD_ID) from None
        if not 0 < size <= self._longest_id or text.startswith("\x00"):
            raise RefusedError(Refusal.BAD_ID)
        return text

    def _check_ready(self) -> None:
        if not self._ready():
            raise RefusedError(Refusal.NOT_READY, 1.0)


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(routes.DEFAULT_LIMIT))
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= routes.LARGEST_LIMIT):
        raise RefusedError(Refusal.BAD_LIMIT)
    return int(text)


def _refused(refusal: Refusal, retry_after_s: float | None = None) -> web.Response:
    problem = Problem(Fault(refusal.code, refusal.meaning))
    headers = {"Retry-After": str(math.ceil(retry_after_s or 1.0))} if refusal.status in (429, 503) else {}
    if refusal is Refusal.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="stream-app"'
    return web.Response(
        body=msgspec.json.encode(problem), status=refusal.status, content_type=JSON, headers=headers
    )
