"""JSON Schemas of our messages and the AsyncAPI description of all topics."""

from __future__ import annotations

import inspect
import json
from typing import Any

import msgspec

from stream_app.content.schema import Content
from stream_app.events.dead_letters import HEADERS, PREFIX
from stream_app.events.impressions import Impression
from stream_app.events.schema import Event
from stream_app.interests.erasure import Erasure
from stream_app.interests.receipts import Receipt
from stream_app.interests.statistics_record import OUTCOMES_KEY
from stream_app.learning.models_record import ONLINE_KEY, RANKER_KEY
from stream_app.recommendations.slate import COLD_START_USER, Slate
from stream_app.settings import Settings
from stream_app.topics import Topic, declare

VERSION = "0.1.0"  # of the contracts: changes when a message or a topic does
BINARY = "application/octet-stream"

SCHEMAS: dict[str, type[msgspec.Struct]] = {
    "event": Event,
    "impression": Impression,
    "content": Content,
    "slate": Slate,
    "erasure": Erasure,
    "receipt": Receipt,
}
"""File name under ``docs/schemas`` → message."""

TRACE_HEADERS = {
    "traceparent": "Optional, W3C Trace Context: the trace that the record belongs to. It goes on from the "
    "event to the slate, with `observability.tracing`.",
    "tracestate": "Optional, beside it: what tracing systems add to it.",
}


def _ours(*names: str) -> dict[str, str]:
    return {f"{PREFIX}{name}": HEADERS[name] for name in names}


MESSAGES: dict[str, dict[str, Any]] = {
    "event (JSON)": {"name": "event", "headers": TRACE_HEADERS},
    "impression (JSON)": {"name": "impression"},
    "content (JSON); null deletes": {"name": "content"},
    "slate (JSON)": {"name": "slate", "headers": TRACE_HEADERS},
    "erasure (JSON)": {"name": "erasure"},
    "receipt (JSON)": {"name": "receipt"},
    "original event; headers": {
        "name": "retry",
        "summary": "An event whose content is not known yet, as it came, and headers.",
        "headers": _ours(
            *("topic", "partition", "offset", "timestamp", "attempts", "not-before", "time"),
            *("redrives", "history"),
        ),
    },
    "original bytes; headers": {
        "name": "deadLetter",
        "summary": "A record that was not applied, as it came, and headers that say why; or the mark that a "
        "redrive leaves for one.",
        "headers": _ours(*(name for name in HEADERS if name != "not-before")),
    },
    "vector record": {
        "name": "contentVector",
        "summary": "Unit vector of a content; layout in stream_app/content/vectors.py.",
    },
    "interest record": {
        "name": "interestRecord",
        "summary": "A user's interest state; layout in stream_app/interests/record.py.",
        "headers": TRACE_HEADERS,
    },
    "statistics record": {
        "name": "statisticsRecord",
        "summary": "Decayed engagement counts of a content in one partition; layout in "
        "stream_app/interests/statistics_record.py.",
    },
    "checkpoint (safetensors); headers": {
        "name": "checkpoint",
        "summary": "A ranker, tensors as in stream_app/learning/checkpoint.py. The headers version, steps, "
        "loss, created_at (ms) and positions (JSON: partition of interests to offset) are text.",
    },
    "neighbours record": {
        "name": "neighbours",
        "summary": "Contents that a content is engaged with together; layout in "
        "stream_app/learning/neighbours_record.py.",
    },
}
"""``Topic.value`` → its message. A topic whose value is not here cannot be documented."""

RESERVED_KEYS = {
    "models": f" Key {RANKER_KEY.decode()!r}: the model that rankers use; {ONLINE_KEY.decode()!r}: the one "
    "that goes on learning. Written in transactions, as co-engagement is: read with "
    "`isolation.level=read_committed`.",
    "recommendations": f" Key {COLD_START_USER.decode()!r}: the slate for users who have none of their own. "
    "Slates are produced in transactions: read with `isolation.level=read_committed`.",
    "content-stats": f" Key {OUTCOMES_KEY.decode()!r}: the partition's account of its input records (JSON).",
}


def schema(name: str) -> str:
    """``docs/schemas/NAME.json``."""
    components = msgspec.json.schema(SCHEMAS[name])["$defs"]
    for component in components.values():
        if "description" in component:  # Python 3.13 strips docstrings, earlier versions do not
            component["description"] = inspect.cleandoc(component["description"])
    tree: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    tree |= components.pop(SCHEMAS[name].__name__)
    if components:
        tree["$defs"] = components
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def asyncapi() -> str:
    """``docs/asyncapi.yaml``: the topics of the default settings."""
    settings = Settings()
    topics = declare(settings)
    host = settings.kafka.broker
    tree = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "stream-app",
            "version": VERSION,
            "description": "Likes, comments and shares in; fresh recommendations out. Made by "
            "`python -m stream_app.docs` from the code, with the default settings.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"kafka": {"host": host, "protocol": "kafka", "description": "kafka.broker"}},
        "channels": {topic.name: _channel(topic, settings) for topic in topics},
        "operations": {_operation_name(topic): _operation(topic) for topic in topics},
        "components": {"messages": {m["name"]: _message(m) for m in MESSAGES.values()}},
    }
    return "\n".join(_yaml(tree)) + "\n"


def _channel(topic: Topic, settings: Settings) -> dict[str, Any]:
    name = MESSAGES[topic.value]["name"]
    return {
        "address": topic.name,
        "description": f"Keyed by {topic.key}."
        + (" Has the partitions of the interests table." if topic.partitioned else "")
        + RESERVED_KEYS.get(topic.name, ""),
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {
            "kafka": {
                "partitions": topic.partitions,
                "replicas": settings.kafka.replication_factor,
                "topicConfiguration": {
                    "cleanup.policy": topic.cleanup.split(","),
                    "retention.ms": topic.retention_ms,
                },
            }
        },
    }


def _is_input(topic: Topic) -> bool:
    return MESSAGES[topic.value]["name"] in ("event", "impression", "content", "erasure")


def _operation_name(topic: Topic) -> str:
    return f"{'receive' if _is_input(topic) else 'send'}-{topic.name}"


def _operation(topic: Topic) -> dict[str, Any]:
    """From the product's side: it receives events and contents, and sends everything else."""
    return {
        "action": "receive" if _is_input(topic) else "send",
        "channel": {"$ref": f"#/channels/{topic.name}"},
    }


def _message(message: dict[str, Any]) -> dict[str, Any]:
    name = message["name"]
    if name in SCHEMAS:
        about = inspect.cleandoc(SCHEMAS[name].__doc__ or "").partition("\n")[0]
        tree: dict[str, Any] = {"summary": about, "payload": {"$ref": f"./schemas/{name}.json"}}
    else:
        tree = {"summary": message["summary"], "contentType": BINARY}
    if headers := message.get("headers"):
        described = {name: {"type": "string", "description": about} for name, about in headers.items()}
        tree["headers"] = {"type": "object", "properties": described}
    return tree


def _yaml(tree: dict[str, Any], indent: str = "") -> list[str]:
    """Block style for objects; strings and everything else as JSON, which YAML includes."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_yaml(value, indent + "  ")]
        else:
            lines.append(f"{indent}{_key(key)}: {json.dumps(value, ensure_ascii=False)}")
    return lines


def _key(key: str) -> str:
    return json.dumps(key) if key.startswith("$") else key
