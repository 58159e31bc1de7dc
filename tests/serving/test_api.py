"""The HTTP interface over real HTTP, with nothing behind it but what each test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, web
from yarl import URL

from stream_app.errors import StateDamagedError
from stream_app.observability import metrics
from stream_app.observability.access import Access
from stream_app.recommendations.slate import COLD_START_USER
from stream_app.secret import Secret
from stream_app.serving.api import Api
from stream_app.serving.catalogue import BusyError, Scored, Similar, Trending
from stream_app.serving.routes import Refusal

PRESENTED = "correct horse"
ANA, EVERYBODY = b'{"user_id":"ana"}', b'{"user_id":"everybody"}'


class Behind:
    """What stands behind the interface."""

    def __init__(self) -> None:
        self.slates: dict[bytes, bytes] = {b"ana": ANA, COLD_START_USER: EVERYBODY}
        self.ready = True
        self.busy = False
        self.damage: str | None = None
        self.broken: list[str] = []

    async def slate(self, user: bytes) -> bytes | None:
        if self.damage:
            raise StateDamagedError(self.damage)
        return self.slates.get(user)

    async def similar(self, content: str, limit: int) -> Similar | None:
        if self.busy:
            raise BusyError
        return Similar(content, [Scored("c2", 0.5)] * limit) if content == "c1" else None

    def trending(self, limit: int) -> Trending:
        return Trending([Scored("c3", 2.0)] * limit)


Get = Callable[..., Awaitable[tuple[ClientResponse, Any]]]


def serving(
    scenario: Callable[[Get, Behind], Awaitable[None]], *, token: str = "", rate: float = 0.0
) -> None:
    """Run a scenario against a started server."""

    async def run() -> None:
        behind = Behind()
        api = Api(
            *(Access(Secret(token)), rate, 64, behind.slate, behind.similar, behind.trending),
            *(lambda: behind.ready, behind.broken.append),
        )
        runner = web.AppRunner(api.application())
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]
            async with ClientSession() as session:

                async def get(path: str, how: str = "GET", **headers: str) -> tuple[ClientResponse, Any]:
                    url = URL(f"http://127.0.0.1:{port}{path}", encoded=True)
                    async with session.request(how, url, headers=headers) as response:
                        return response, json.loads(await response.read() or b"null")

                await scenario(get, behind)
        finally:
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(run(), 30))


def code(body: Any) -> str:
    return str(body["error"]["code"])


def test_a_slate_comes_as_it_was_published() -> None:
    async def scenario(get: Get, behind: Behind) -> None:
        response, body = await get("/v1/users/ana/slate")
        assert (response.status, body) == (200, {"user_id": "ana"})
        assert response.headers["X-Slate"] == "own"
        assert response.headers["Cache-Control"] == "no-store"
        response, body = await get("/v1/users/nobody/slate")
        assert (response.status, body) == (200, {"user_id": "everybody"})
        assert response.headers["X-Slate"] == "cold-start"
        del behind.slates[COLD_START_USER]
        response, body = await get("/v1/users/nobody/slate")
        assert (response.status, code(body)) == (404, "no_slate")

    serving(scenario)


@pytest.mark.parametrize(
    ("path", "user"),
    [("a%2Fb", "a/b"), ("a%25b", "a%b"), ("%C3%A9%20%F0%9F%8D%B2", "é 🍲"), ("%3Cscript%3E", "<script>")],
)
def test_ids_are_percent_encoded(path: str, user: str) -> None:
    async def scenario(get: Get, behind: Behind) -> None:
        behind.slates[user.encode()] = ANA
        response, _ = await get(f"/v1/users/{path}/slate")
        assert (response.status, response.headers["X-Slate"]) == (200, "own")

    serving(scenario)


@pytest.mark.parametrize(
    ("path", "status", "what"),
    [
        ("/v1/users/" + "x" * 65 + "/slate", 400, Refusal.BAD_ID),
        ("/v1/users/" + "%C3%A9" * 33 + "/slate", 400, Refusal.BAD_ID),
        ("/v1/users/%00cold-start/slate", 400, Refusal.BAD_ID),
        ("/v1/contents/" + "x" * 65 + "/similar", 400, Refusal.BAD_ID),
        ("/v1/contents/c9/similar", 404, Refusal.UNKNOWN_CONTENT),
        ("/v1/contents/c1/similar?limit=0", 400, Refusal.BAD_LIMIT),
        ("/v1/contents/c1/similar?limit=101", 400, Refusal.BAD_LIMIT),
        ("/v1/trending?limit=ten", 400, Refusal.BAD_LIMIT),
        ("/v1/trending?limit=%C2%B2", 400, Refusal.BAD_LIMIT),
        ("/v1/users//slate", 404, Refusal.NO_SUCH_PATH),
        ("/", 404, Refusal.NO_SUCH_PATH),
    ],
)
def test_what_is_not_answered_has_a_code(path: str, status: int, what: Refusal) -> None:
    async def scenario(get: Get, _: Behind) -> None:
        response, body = await get(path)
        assert (response.status, code(body)) == (status, what.code)
        assert status == what.status

    serving(scenario)


def test_only_reading_is_answered() -> None:
    async def scenario(get: Get, _: Behind) -> None:
        response, body = await get("/v1/trending", "POST")
        assert (response.status, code(body)) == (405, "bad_method")

    serving(scenario)


def test_contents() -> None:
    async def scenario(get: Get, behind: Behind) -> None:
        _, body = await get("/v1/contents/c1/similar?limit=2")
        assert body == {"content_id": "c1", "items": [{"content_id": "c2", "score": 0.5}] * 2}
        _, body = await get("/v1/trending")
        assert body == {"items": [{"content_id": "c3", "score": 2.0}] * 10}
        behind.busy = True
        response, body = await get("/v1/contents/c1/similar")
        assert (response.status, code(body), response.headers["Retry-After"]) == (503, "busy", "1")

    serving(scenario)


def test_strangers_are_refused_and_use_nothing_up() -> None:
    async def scenario(get: Get, _: Behind) -> None:
        for wrong in (
            "",
            "Bearer",
            "Bearer wrong",
            f"Token {PRESENTED}",
            f"Bearer {PRESENTED}x",
            "Basic eA==",
        ):
            for path in ("/v1/users/ana/slate", "/v1/openapi.json", "/nowhere"):
                response, body = await get(path, **({"Authorization": wrong} if wrong else {}))
                assert (response.status, code(body)) == (401, "unauthorized")
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
        response, _ = await get("/v1/users/ana/slate", Authorization=f"Bearer {PRESENTED}")
        assert response.status == 200

    serving(scenario, token=PRESENTED, rate=1.0)


def test_more_than_the_rate_is_told_when_to_come_again() -> None:
    async def scenario(get: Get, _: Behind) -> None:
        assert (await get("/v1/users/ana/slate"))[0].status == 200
        response, body = await get("/v1/users/ana/slate")
        assert (response.status, code(body)) == (429, "too_many_requests")
        assert int(response.headers["Retry-After"]) >= 1

    serving(scenario, rate=0.001)


def test_not_before_everything_is_read() -> None:
    async def scenario(get: Get, behind: Behind) -> None:
        behind.ready = False
        for path in ("/v1/users/ana/slate", "/v1/contents/c1/similar", "/v1/trending"):
            response, body = await get(path)
            assert (response.status, code(body)) == (503, "not_ready")
            assert response.headers["Retry-After"] == "1"
        assert (await get("/v1/openapi.json"))[0].status == 200

    serving(scenario)


def test_a_database_that_cannot_be_read_stops_the_worker() -> None:
    async def scenario(get: Get, behind: Behind) -> None:
        behind.damage = "block checksum"
        response, body = await get("/v1/users/ana/slate")
        assert (response.status, code(body)) == (503, "not_ready")
        assert behind.broken == ["block checksum"]

    serving(scenario)


def test_a_fault_is_answered_and_logged_without_ids(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(get: Get, behind: Behind) -> None:
        behind.slates = None  # type: ignore[assignment]  # as if a programmer erred
        response, body = await get("/v1/users/somebody/slate")
        assert (response.status, code(body)) == (500, "internal")

    serving(scenario)
    assert "a request for slate failed" in caplog.text
    assert "somebody" not in caplog.text


def test_requests_are_counted_by_route_and_status_alone() -> None:
    def count(route: str, status: str) -> float:
        return metrics.SERVING_REQUESTS.labels(route, status)._value.get()

    before = count("slate", "200"), count("none", "404"), count("slate", "400")

    async def scenario(get: Get, _: Behind) -> None:
        await get("/v1/users/ana/slate")
        await get("/v1/users/ben/slate")
        await get("/v1/elsewhere/ana")
        await get("/v1/users/%00/slate")

    serving(scenario)
    after = count("slate", "200"), count("none", "404"), count("slate", "400")
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1, 1]
    labels = {label for sample in metrics.SERVING_REQUESTS.collect()[0].samples for label in sample.labels}
    assert labels == {"route", "status"}
