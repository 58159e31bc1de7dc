"""What can be asked and what can go wrong: the one list that the server and its OpenAPI document share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from stream_app.recommendations.slate import Slate
from stream_app.serving.catalogue import Similar, Trending

DEFAULT_LIMIT, LARGEST_LIMIT = 10, 100


class Refusal(Enum):
    """Why a request is not answered: a stable code, the status, and the meaning."""

    BAD_ID = (
        "bad_id",
        400,
        "the id is empty, longer than `events.max_id_bytes`, or begins with a zero character",
    )
    BAD_LIMIT = "bad_limit", 400, f"`limit` is no whole number from 1 to {LARGEST_LIMIT}"
    UNAUTHORIZED = "unauthorized", 401, "the token is missing or wrong: send `Authorization: Bearer TOKEN`"
    NO_SLATE = "no_slate", 404, "the user has no slate, and there is none yet for users without"
    UNKNOWN_CONTENT = "unknown_content", 404, "the content is not known: never encoded, expired or deleted"
    NO_SUCH_PATH = (
        "no_such_path",
        404,
        "nothing is answered under this path; `/v1/openapi.json` lists what is",
    )
    BAD_METHOD = "bad_method", 405, "only GET and HEAD are answered"
    TOO_MANY = (
        "too_many_requests",
        429,
        "more requests than `serving.rate_per_s`; try again after `Retry-After`",
    )
    BAD_REQUEST = "bad_request", 400, "the request is no HTTP that can be answered"
    INTERNAL = "internal", 500, "a fault of the server's, which its log shows"
    BUSY = "busy", 503, "as many searches wait as `serving.queue` allows; try again after `Retry-After`"
    NOT_READY = "not_ready", 503, "the replica has not read its topics yet; ask another one"

    def __init__(self, code: str, status: int, meaning: str) -> None:
        self.code, self.status, self.meaning = code, status, meaning


class Fault(msgspec.Struct, frozen=True):
    """What is wrong."""

    code: str
    """Stable; see the statuses of each path"""
    message: str


class Problem(msgspec.Struct, frozen=True):
    """The body of every answer that is none."""

    error: Fault


@dataclass(frozen=True)
class Route:
    """One path that is answered."""

    name: str
    """Also the label of its metrics"""
    path: str
    summary: str
    answer: type[msgspec.Struct] | None
    """Of status 200; None for the document itself"""
    refusals: tuple[Refusal, ...] = ()
    """Beside those that every route has"""
    limited: bool = False
    """Takes ``limit``"""


EVERYWHERE = (Refusal.UNAUTHORIZED, Refusal.TOO_MANY, Refusal.INTERNAL)

SLATE = Route(
    "slate",
    "/v1/users/{user}/slate",
    "The user's slate as it was published last, or the one for users whom nobody knows",
    Slate,
    (Refusal.BAD_ID, Refusal.NO_SLATE, Refusal.NOT_READY),
)
SIMILAR = Route(
    "similar",
    "/v1/contents/{content}/similar",
    "The contents nearest to one, by what they say",
    Similar,
    (Refusal.BAD_ID, Refusal.BAD_LIMIT, Refusal.UNKNOWN_CONTENT, Refusal.BUSY, Refusal.NOT_READY),
    limited=True,
)
TRENDING = Route(
    "trending",
    "/v1/trending",
    "What is engaged with most at the moment",
    Trending,
    (Refusal.BAD_LIMIT, Refusal.NOT_READY),
    limited=True,
)
DOCUMENT = Route("openapi", "/v1/openapi.json", "This document", None)

ROUTES = (SLATE, SIMILAR, TRENDING, DOCUMENT)
