"""The reference pages are those that the code makes, and the published schemas say what the code accepts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # comes with transformers
from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]

from stream_app import cli
from stream_app.docs.__main__ import PAGES, ROOT
from stream_app.events.decode import EventDecoder
from stream_app.events.reasons import Reason
from stream_app.interests.owners import written_topics
from stream_app.ranking.ranked import Item, Parts
from stream_app.ranking.ranked import Reason as Because
from stream_app.recommendations import slate
from stream_app.settings import SECTIONS, Settings
from stream_app.topics import declare, is_retry_topic


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_up_to_date(name: str) -> None:
    path = ROOT / name
    assert path.exists(), f"docs/{name} is missing: run `python -m stream_app.docs`"
    if path.read_text(encoding="utf-8") != PAGES[name]():
        pytest.fail(f"docs/{name} is not what the code says: run `python -m stream_app.docs` and commit it")


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_roles_say_all_that_an_interests_worker_writes() -> None:
    """Operators grant rights by this table, and a right that is missing keeps every partition closed."""
    (row,) = (line for line in page("ARCHITECTURE.md").splitlines() if line.startswith("| interests | event"))
    written = row.split("|")[3]
    for topic in written_topics(Settings()):
        assert ("the retry topics" if is_retry_topic(topic) else f"`{topic}`") in written


def test_every_setting_reason_and_command_has_its_line() -> None:
    for name, section in SECTIONS.items():
        for field in section.__struct_fields__:
            assert f"`STREAM_APP_{name}_{field}`".upper() in page("CONFIG.md")
    for reason in Reason:
        assert f"| `{reason.value}` |" in page("REASONS.md")
    for command in cli.COMMANDS:
        assert f"## stream-app {command}\n" in page("COMMANDS.md")


def test_asyncapi_has_every_topic_and_resolves() -> None:
    tree = yaml.safe_load(page("asyncapi.yaml"))
    assert tree["asyncapi"] == "3.0.0"
    assert list(tree["channels"]) == [topic.name for topic in declare(Settings())]
    assert len(tree["operations"]) == len(tree["channels"])
    for operation in tree["operations"].values():
        assert operation["channel"]["$ref"].removeprefix("#/channels/") in tree["channels"]
    for channel in tree["channels"].values():
        for name, reference in channel["messages"].items():
            assert reference == {"$ref": f"#/components/messages/{name}"}
            payload = tree["components"]["messages"][name].get("payload")
            assert payload is None or (ROOT / payload["$ref"]).is_file()


def validator(name: str) -> Draft202012Validator:
    schema = json.loads(page(f"schemas/{name}.json"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=FormatChecker())


@dataclass
class Consumed:
    key: bytes | None
    value: bytes | None
    offset: int = 0
    timestamp: int = 1_780_000_000_000
    headers: tuple[tuple[str, bytes | None], ...] = ()


@pytest.mark.parametrize(
    ("event", "valid"),
    [
        ({"user_id": "u", "content_id": "c"}, True),
        ({"user_id": "u", "content_id": "c", "occurred_at": "2026-05-01T10:00:00Z", "undo": True}, True),
        ({"user_id": "u", "content_id": "c", "occurred_at": 1_779_000_000_000, "event_id": "e"}, True),
        ({"user_id": "u", "content_id": "c", "event_id": None, "text": None, "device": {"os": 1}}, True),
        ({"user_id": "u"}, False),
        ({"user_id": "", "content_id": "c"}, False),
        ({"user_id": 1, "content_id": "c"}, False),
        ({"user_id": "u", "content_id": "c", "occurred_at": 1.5}, False),
        ({"user_id": "u", "content_id": "c", "undo": "yes"}, False),
        ([], False),
    ],
)
def test_schema_and_decoder_agree_on_events(event: Any, valid: bool) -> None:
    assert validator("event").is_valid(event) is valid
    batch = EventDecoder(Settings()).decode([Consumed(b"u", json.dumps(event).encode())], "likes", 0, None)
    assert (len(batch.source) == 1) is valid


@pytest.mark.parametrize(
    ("content", "valid"),
    [
        ({"content_id": "c", "title": "Rain at last", "text": "…", "author": "a"}, True),
        ({"title": "named by its key", "created_at": "2026-05-01T10:00:00+02:00"}, True),
        ({"content_id": 5, "title": "t"}, False),
        ({"content_id": "c", "text": ["t"]}, False),
    ],
)
def test_the_content_schema(content: Any, valid: bool) -> None:
    assert validator("content").is_valid(content) is valid


def test_a_published_slate_fits_its_schema() -> None:
    published = slate.Slate(
        user_id="u",
        generated_at=slate.rfc3339(1_780_000_000_000),
        model="m",
        caused_by=slate.Cause("likes", 1, 2, slate.rfc3339(1), slate.rfc3339(2)),
        kind="personal",
        items=[
            Item("c", 0.5, Parts(0.5, 0, 0, 0), [Because("c2", "like", 1.0)]),
        ],
    )
    check = validator("slate")
    tree = json.loads(slate.encode(published))
    assert list(check.iter_errors(tree)) == []
    del tree["items"][0]["reasons"]
    assert not check.is_valid(tree)
