"""The inspection page over real HTTP: who is let in, and what is remembered of whom."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession

from stream_app.content.index import ContentIndex
from stream_app.errors import ConfigurationError
from stream_app.recommendations import slate as slates
from stream_app.recommendations.inspect import server
from stream_app.recommendations.inspect.remembered import Remembered, Seen
from stream_app.recommendations.inspect.server import Inspection
from stream_app.recommendations.pipeline import Change
from stream_app.secret import Secret
from stream_app.settings import Settings, build
from tests.commands.records import interest_record, slate

PRESENTED = "correct horse"
Get = Callable[..., Awaitable[tuple[ClientResponse, str]]]


@dataclass
class Read:
    key: bytes | None
    value: bytes | None


def made(**inspect: Any) -> Settings:
    return build({"content": {"capacity": 10, "dimensions": 8}, "inspect": {"port": 0, **inspect}})


def change(user: str, *contents: str) -> Change:
    return Change(0, user.encode(), slates.decode(slate(user, *contents)) if contents else None)


def serving(settings: Settings, scenario: Callable[[Get, Inspection], Awaitable[None]]) -> None:
    """Run a scenario against a started page."""

    async def run() -> None:
        inspection = Inspection(settings, ContentIndex(settings, "test"))
        await inspection.start()
        try:
            async with ClientSession() as session:

                async def get(path: str, **options: Any) -> tuple[ClientResponse, str]:
                    url = f"http://127.0.0.1:{inspection.port}{path}"
                    async with session.get(url, **options) as response:
                        return response, await response.text()

                await scenario(get, inspection)
        finally:
            await inspection.stop()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_user_is_shown_as_ranked_last() -> None:
    async def scenario(get: Get, inspection: Inspection) -> None:
        inspection.learn_titles([Read(b"c2", b'{"title":"Salt & water <b>"}')])  # type: ignore[list-item]
        inspection.received([Read(b"ana", interest_record())])  # type: ignore[list-item]
        inspection.published([change("ana", "c1", "c2")])
        inspection.published([change("ana", "c2", "c3")])
        response, html = await get("/inspect?user=ana")
        assert response.status == 200
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
        assert response.headers["Cache-Control"] == "no-store"
        assert "“Salt &amp; water &lt;b&gt;”" in html
        assert html.count("<mark>") == 2
        assert "undone" in html
        assert "polyline" in html
        response, _ = await get("/inspect/style.css")
        assert (response.status, response.content_type) == (200, "text/css")
        response, html = await get("/inspect?random=1", allow_redirects=True)
        assert response.url.query["user"] == "ana"
        assert (await get("/metrics"))[0].status == 404

    serving(made(), scenario)


def test_who_is_not_remembered_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def look_up(_: Settings, user: bytes) -> Seen | None:
        asked.append(user)
        return Seen(interest_record(), slates.decode(slate("ben", "c5"))) if user == b"ben" else None

    monkeypatch.setattr(server, "look_up", look_up)

    async def scenario(get: Get, inspection: Inspection) -> None:
        inspection.received([Read(b"ana", interest_record()), Read(b"ben", b"short")])  # type: ignore[list-item]
        response, html = await get("/inspect?user=ben")
        assert (response.status, "c5" in html) == (200, True)
        response, html = await get("/inspect", params={"user": "<i>nobody"})
        assert response.status == 404
        assert "Nothing is known of <bdi>&lt;i&gt;nobody</bdi>" in html
        assert (await get("/inspect?user=" + "x" * 257))[0].status == 400

    serving(made(), scenario)
    assert asked == [b"ben", b"<i>nobody"]


def by_name(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def test_the_token_is_asked_for() -> None:
    async def scenario(get: Get, _: Inspection) -> None:
        for path in ("/inspect", "/inspect/style.css", "/inspect?random=1"):
            for wrong in ({}, by_name("me", "guess"), by_name(PRESENTED, ""), {"Authorization": "Basic ?"}):
                response, html = await get(path, headers=wrong)
                assert response.status == 401
                assert "<" not in html
                assert response.headers["WWW-Authenticate"].startswith("Basic ")
        right = by_name("anybody", PRESENTED)
        for headers in (right, {"Authorization": f"Bearer {PRESENTED}"}, right | {"Host": "h.example"}):
            assert (await get("/inspect", headers=headers))[0].status == 200

    serving(made(token=Secret(PRESENTED)), scenario)


def test_without_a_token_only_names_of_this_machine_lead_to_it() -> None:
    """A page of somebody else's, whose name leads to 127.0.0.1, is opened in a browser on this machine."""

    async def scenario(get: Get, _: Inspection) -> None:
        for host in ("evil.example", "evil.example:8650", "127.0.0.1.evil.example", "10.0.0.1", "["):
            assert (await get("/inspect", headers={"Host": host}))[0].status in (400, 403)
        for host in ("localhost:8650", "127.0.0.1", "[::1]:8650"):
            assert (await get("/inspect", headers={"Host": host}))[0].status == 200

    serving(made(), scenario)


def test_it_is_off_and_on_loopback_unless_asked_for() -> None:
    assert not Settings().inspect.enabled
    assert Settings().inspect.host == "127.0.0.1"
    with pytest.raises(ConfigurationError, match=r"inspect\.host = '0\.0\.0\.0'.* needs a token"):
        made(host="0.0.0.0")  # noqa: S104  # what is refused
    with pytest.raises(ConfigurationError, match=r"inspect\.token and inspect\.token_file"):
        made(token=Secret("a"), token_file="b")  # noqa: S106  # a file's name


def test_a_taken_port_is_named() -> None:
    async def scenario(_: Get, inspection: Inspection) -> None:
        taken = made(port=inspection.port)
        with pytest.raises(ConfigurationError, match=rf"inspect\.port = {inspection.port}"):
            await Inspection(taken, ContentIndex(taken, "test")).start()

    serving(made(), scenario)


def test_who_is_erased_is_forgotten_at_once() -> None:
    remembered = Remembered(10)
    remembered.received([Read(b"ana", b"record")])  # type: ignore[list-item]
    remembered.published([change("ana", "c1"), change("ana", "c2")])
    seen = remembered.get(b"ana")
    assert seen is not None
    assert seen.before is not None
    remembered.received([Read(b"ana", None)])  # type: ignore[list-item]
    remembered.published([change("ana")])
    assert remembered.get(b"ana") is None
    assert len(remembered) == 0


def test_those_ranked_last_are_remembered() -> None:
    remembered = Remembered(3)
    for user in (b"a", b"b", b"c", b"a", b"d"):
        remembered.received([Read(user, b"record")])  # type: ignore[list-item]
    remembered.published([change("a", "c1"), change("\x00cold-start", "c1")])
    assert len(remembered) == 3
    assert remembered.get(b"a") is not None
    assert remembered.get(b"d") is None, "it has no slate yet"
    assert remembered.anyone() in {b"a", b"c", b"d"}
