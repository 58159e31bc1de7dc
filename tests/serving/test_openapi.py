"""The document says what is answered: every path, every code, and schemas that real answers fit."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from aiohttp import web
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from stream_app.observability.access import Access
from stream_app.ranking.ranked import Item, Parts
from stream_app.recommendations import slate
from stream_app.secret import Secret
from stream_app.serving.api import Api
from stream_app.serving.catalogue import Scored, Similar, Trending
from stream_app.serving.openapi import document
from stream_app.serving.routes import ROUTES, Fault, Problem, Refusal

TREE = json.loads(document())


def references(tree: Any) -> set[str]:
    if isinstance(tree, dict):
        return {value for key, value in tree.items() if key == "$ref"} | references(list(tree.values()))
    return set().union(*map(references, tree)) if isinstance(tree, list) else set()


def test_references_resolve() -> None:
    assert TREE["openapi"] == "3.1.0"
    known = {f"#/components/schemas/{name}" for name in TREE["components"]["schemas"]}
    assert references(TREE)
    assert references(TREE) <= known


async def nothing(*_: object) -> None:
    return None


def test_every_path_that_is_answered_is_there() -> None:
    api = Api(Access(Secret()), 0, 64, nothing, nothing, lambda _: Trending([]), lambda: True, print)
    app: web.Application = api.application()
    answered = {resource.canonical for resource in app.router.resources()}
    assert answered == set(TREE["paths"]) == {route.path for route in ROUTES}
    for path, operations in TREE["paths"].items():
        named = {parameter["name"] for parameter in operations["get"]["parameters"]}
        assert named >= {part[1:-1] for part in path.split("/") if part.startswith("{")}


def test_every_code_is_explained_where_it_can_come() -> None:
    text = json.dumps(TREE["paths"])
    unspecific = {Refusal.NO_SUCH_PATH, Refusal.BAD_METHOD, Refusal.BAD_REQUEST}
    for refusal in Refusal:
        assert (f"`{refusal.code}`" in text) is (refusal not in unspecific)
    assert len({refusal.code for refusal in Refusal}) == len(Refusal)


SLATE = slate.Slate(
    *("u", slate.rfc3339(1), "m", None, "cold_start", [Item("c", 0.5, Parts(0.5, 0, 0, 0), [])]),
)


@pytest.mark.parametrize(
    "answer",
    [
        SLATE,
        Similar("c1", [Scored("c2", 0.5)]),
        Trending([Scored("c2", 3.0)]),
        Problem(Fault(Refusal.BUSY.code, Refusal.BUSY.meaning)),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_answers_fit_their_schemas(answer: msgspec.Struct) -> None:
    name = type(answer).__name__
    check = Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": TREE["components"]})
    tree = json.loads(msgspec.json.encode(answer))
    assert list(check.iter_errors(tree)) == []
    assert not check.is_valid({})
