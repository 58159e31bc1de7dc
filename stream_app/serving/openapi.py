"""The OpenAPI document of the HTTP interface, made from its routes and messages."""

from __future__ import annotations

import inspect
import json
from typing import Any

import msgspec

from stream_app.serving.routes import (
    DEFAULT_LIMIT,
    EVERYWHERE,
    LARGEST_LIMIT,
    ROUTES,
    Problem,
    Refusal,
    Route,
)

VERSION = "1.0.0"  # of the interface: changes when a path, a message or a code does

SLATE_HEADER = "X-Slate"
OWN, COLD_START = "own", "cold-start"

_HEADERS = {
    "slate": {
        SLATE_HEADER: {
            "description": f"`{OWN}`: the user's, without items where nothing is left that the user has not "
            f"engaged with; `{COLD_START}`: the user has none, this is everybody "
            "else's, with a `user_id` of its own.",
            "schema": {"type": "string", "enum": [OWN, COLD_START]},
        }
    }
}
_RETRY = {
    "Retry-After": {
        "description": "Whole seconds after which to try again.",
        "schema": {"type": "integer", "minimum": 1},
    }
}


def document() -> str:
    """``docs/openapi.json``, and what ``/v1/openapi.json`` answers."""
    messages = [route.answer for route in ROUTES if route.answer is not None]
    _, components = msgspec.json.schema_components(
        [*messages, Problem], ref_template="#/components/schemas/{name}"
    )
    for component in components.values():
        if "description" in component:  # Python 3.13 strips docstrings, earlier versions do not
            component["description"] = inspect.cleandoc(component["description"])
    tree = {
        "openapi": "3.1.0",
        "info": {
            "title": "stream-app",
            "version": VERSION,
            "description": "Slates for platforms that ask instead of subscribing: what stands on "
            "`recommendations`, answered by `stream-app worker serve`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:8700", "description": "serving.host and serving.port"}],
        "security": [{}, {"token": []}],
        "paths": {route.path: {"get": _operation(route)} for route in ROUTES},
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "serving.token; none is asked for where it is not set.",
                }
            },
        },
    }
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def _operation(route: Route) -> dict[str, Any]:
    answer = {"type": "object"} if route.answer is None else _reference(route.answer)
    ok = {
        "description": route.summary + ".",
        "content": {"application/json": {"schema": answer}},
        **({"headers": _HEADERS[route.name]} if route.name in _HEADERS else {}),
    }
    return {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": list(_parameters(route)),
        "responses": {"200": ok, **_refused((*EVERYWHERE, *route.refusals))},
    }


def _parameters(route: Route) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": f"{name}_id, percent-encoded",
            "schema": {"type": "string", "minLength": 1},
        }
        for name in ("user", "content")
        if f"{{{name}}}" in route.path
    ]
    if route.limited:
        bounds = {"type": "integer", "minimum": 1, "maximum": LARGEST_LIMIT, "default": DEFAULT_LIMIT}
        found.append(
            {"name": "limit", "in": "query", "description": "Most contents in the answer", "schema": bounds}
        )
    return found


def _refused(refusals: tuple[Refusal, ...]) -> dict[str, Any]:
    """By status, the codes that it may have."""
    answers: dict[str, Any] = {}
    for status in sorted({refusal.status for refusal in refusals}):
        codes = [refusal for refusal in refusals if refusal.status == status]
        answers[str(status)] = {
            "description": "; ".join(f"`{refusal.code}`: {refusal.meaning}" for refusal in codes),
            "content": {"application/json": {"schema": _reference(Problem)}},
            **({"headers": _RETRY} if status in (429, 503) else {}),
        }
    return answers


def _reference(message: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{message.__name__}"}
