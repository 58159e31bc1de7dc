"""What stands beside an offset: our own marks, those of earlier versions, and anything else."""

from __future__ import annotations

import pytest

from stream_app.kafka.marks import Mark, decode_mark

TOPIC = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "mark",
    [
        Mark(TOPIC, "app-interests-1f"),
        Mark(TOPIC, "app-interests-1f", left=True),
        Mark("", "app-interests-1f"),  # of a broker without topic ids
        Mark("", "app-interests-1f", left=True),
        Mark(TOPIC),
        Mark(),
    ],
)
def test_a_mark_is_read_as_it_was_committed(mark: Mark) -> None:
    assert decode_mark(mark.encode()) == mark


def test_a_mark_without_an_owner_is_what_earlier_versions_commit() -> None:
    assert Mark(TOPIC).encode() == TOPIC
    assert decode_mark(TOPIC) == Mark(TOPIC)
    assert decode_mark("") == Mark()


def test_nobody_has_left_who_has_not_written() -> None:
    assert Mark(TOPIC, "", left=True).encode() == TOPIC


@pytest.mark.parametrize(
    ("metadata", "left"),
    [
        ("committed by a tool", False),
        ("a b left of it", True),
        ("  left", True),
        (" ", False),
        ("\n\t\x00 \x00", False),
        ("a  b", False),
        ("a b LEFT", False),
        ("a b c left", False),
        ("x" * 4_000, False),
    ],
)
def test_what_strangers_write_is_read_without_an_error(metadata: str, left: bool) -> None:
    assert decode_mark(metadata).left is left
