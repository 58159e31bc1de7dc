"""Serves the inspection page of one ranker, on an address of its own: off unless it is asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from aiohttp import hdrs, web
from kafka.errors import KafkaError
from yarl import URL

from stream_app.content.index import ContentIndex
from stream_app.errors import RecordFormatError, StreamAppError
from stream_app.hashing import action_code
from stream_app.interests import record as interest_record
from stream_app.interests.record import APPLIED, AWAITING, STATE, UNDONE
from stream_app.kafka.records import Record
from stream_app.observability.access import Access
from stream_app.observability.web import listening
from stream_app.recommendations.inspect import page
from stream_app.recommendations.inspect.pace import PaceMeter
from stream_app.recommendations.inspect.page import Interaction, Profile, text
from stream_app.recommendations.inspect.remembered import Remembered, Seen, SlowError, look_up
from stream_app.recommendations.pipeline import Change
from stream_app.recommendations.readable import Titles
from stream_app.secret import secret_of
from stream_app.settings import Settings, is_loopback
from stream_app.topics import DAY_MS

log = logging.getLogger(__name__)

STATES = {APPLIED: "in the sum", UNDONE: "undone", AWAITING: "undo that awaits its original"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
SAMPLE_S = 1.0


class Inspection:
    """Remembers what there is to show, and shows it."""

    def __init__(self, settings: Settings, index: ContentIndex) -> None:
        """Raises ConfigurationError when the token's file cannot be read."""
        inspect = settings.inspect
        self._settings, self._index = settings, index
        self._access = Access(secret_of("inspect.token", inspect.token, inspect.token_file))
        self.remembered = Remembered(inspect.users)
        self._titles = Titles()
        self._meter = PaceMeter()
        self._actions = {action_code(a.name): a.name for a in settings.events.actions}
        self._looking_up = False
        self._runner: web.AppRunner | None = None
        self.port: int | None = None
        """Where it listens, once started."""

    def learn_titles(self, records: Sequence[Record]) -> None:
        """Records of ``content``."""
        for record in records:
            self._titles.learn(record.key, record.value)

    def received(self, records: Iterable[Record]) -> None:
        """Records of ``interests`` that are about to be ranked."""
        self.remembered.received(records)

    def published(self, changes: Sequence[Change]) -> None:
        """Slates that were committed."""
        self.remembered.published(changes)

    async def start(self) -> None:
        """Listen. Raises ConfigurationError when the port is taken."""
        host, port = self._settings.inspect.host, self._settings.inspect.port
        app = web.Application(middlewares=[self._guard])
        app.add_routes([web.get(page.PATH, self._page), web.get(page.STYLE_PATH, self._style)])
        self._runner, self.port = await listening(app, "inspect", host, port)
        log.info("inspect slates on http://%s:%d%s", host, self.port, page.PATH)

    async def run(self) -> None:
        """Measure the pace, for ever."""
        while True:
            self._meter.sample(time.monotonic())
            await asyncio.sleep(SAMPLE_S)

    async def stop(self) -> None:
        """Stop listening; may be called more than once."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if not self._access.allows(request.headers.get(hdrs.AUTHORIZATION)):
            # a browser asks for a name, which is anybody's, and a password, which is the token
            asking = {hdrs.WWW_AUTHENTICATE: 'Basic realm="stream-app inspect", charset="UTF-8"'}
            return web.Response(status=401, text="the token is missing or wrong", headers=HEADERS | asking)
        if self._access.open and not _names_this_machine(request.host):
            # a page of somebody else's whose name leads to this address, opened in a browser here
            return web.Response(status=403, text="this host name is none of ours", headers=HEADERS)
        try:
            return await handler(request)
        except web.HTTPException as error:
            return web.Response(status=error.status, text=error.reason, headers=HEADERS)
        except Exception:
            log.exception("the inspection page failed")
            return web.Response(status=500, text="a fault, which the log shows", headers=HEADERS)

    async def _style(self, _: web.Request) -> web.Response:
        return web.Response(text=page.STYLE, content_type="text/css", headers=HEADERS)

    async def _page(self, request: web.Request) -> web.Response:
        if "random" in request.query:
            anyone = self.remembered.anyone()
            if anyone is not None:
                address = page.link(anyone.decode(errors="replace"))
                return web.Response(status=303, headers=HEADERS | {hdrs.LOCATION: address})
            return self._answer("", notice="This ranker has ranked nobody yet.")
        asked = request.query.get("user", "")
        if not asked:
            return self._answer("")
        if len(user := asked.encode(errors="replace")) > self._settings.events.max_id_bytes:
            return self._answer("", notice="No id is that long.", status=400)
        seen = self.remembered.get(user)
        notice = f"Nothing is known of {text(asked)}: no event of theirs was applied, or they were erased."
        if seen is None:
            if self._looking_up:
                return self._answer(asked, notice="Somebody else is being looked up; try again.", status=503)
            self._looking_up = True
            try:
                seen = await asyncio.to_thread(look_up, self._settings, user)
            except SlowError:
                notice = (
                    "The topics are too long to be searched for one user; `stream-app show` has the time."
                )
            except (StreamAppError, KafkaError) as error:
                notice = f"The topics cannot be searched now ({text(type(error).__name__)})."
            finally:
                self._looking_up = False
        if seen is None:
            return self._answer(asked, notice=notice, status=404)
        return self._answer(asked, profile=self._profile(asked, seen))

    def _answer(
        self, asked: str, *, profile: Profile | None = None, notice: str = "", status: int = 200
    ) -> web.Response:
        body = page.render(
            self._meter.pace(),
            asked=asked,
            longest=self._settings.events.max_id_bytes,
            profile=profile,
            notice=notice,
            title=self._titles.of,
        )
        return web.Response(text=body, status=status, content_type="text/html", headers=HEADERS)

    def _profile(self, user: str, seen: Seen) -> Profile:
        half_life_ms = self._settings.interests.half_life_days * DAY_MS
        mass, now_ms, interactions = 0.0, 0, []
        try:
            record = None if seen.record is None else interest_record.decode(seen.record)
        except RecordFormatError:  # the ranking has counted it
            record = None
        if record is not None:
            mass, now_ms = record.mass, record.t_ref
            newest_first = sorted(record.interactions, key=lambda one: -int(one["time"]))
            interactions = [self._interaction(one, now_ms, half_life_ms) for one in newest_first]
        return Profile(user, mass, now_ms, half_life_ms, interactions, seen.slate, seen.before)

    def _interaction(self, one: Any, now_ms: int, half_life_ms: float) -> Interaction:
        at_ms, weight, code = int(one["time"]), float(one["weight"]), int(one["action"])
        in_sum = int(one["state"]) & STATE == APPLIED
        left = weight * 2.0 ** (-(now_ms - at_ms) / half_life_ms) if in_sum else 0.0
        row = self._index.row_of_key(int(one["content"]))
        known = None if row is None else self._index.ids[row]
        name = f"content key {int(one['content']):016x}" if known is None else known.decode(errors="replace")
        return Interaction(
            name if known is None else self._titles.of(name),
            self._actions.get(code, f"action {code}"),
            at_ms,
            weight,
            left,
            STATES.get(int(one["state"]) & STATE, "unknown"),
        )


def _names_this_machine(host: str) -> bool:
    """Whether a Host header names loopback, with or without a port."""
    try:
        return is_loopback(URL(f"http://{host}").host or "")
    except ValueError:
        return False
