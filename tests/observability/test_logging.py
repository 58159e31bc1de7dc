"""What reaches the log, at which level, in which form."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator

import mode
import pytest

from stream_app.errors import FencedError, StateDamagedError, StateDirectoryError
from stream_app.observability.logging import configure


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave logging as it was for the other tests."""
    root, own = logging.getLogger(), logging.getLogger("stream_app")
    before = root.level, root.handlers[:], own.level
    yield
    logging.captureWarnings(False)
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    own.setLevel(before[2])


@pytest.mark.parametrize(
    ("level", "wanted"),
    [
        ("debug", ["own debug", "own info", "own warning", "faust info", "faust warning"]),
        ("info", ["own info", "own warning", "faust warning"]),
        ("warning", ["own warning", "faust warning"]),
        ("error", ["faust warning"]),
    ],
)
def test_levels(level: str, wanted: list[str]) -> None:
    stream = io.StringIO()
    configure("content", level, stream)
    for who, name in (("own", "stream_app.content.app"), ("faust", "faust.transport")):
        logger = logging.getLogger(name)
        logger.debug("%s debug", who)
        logger.info("%s info", who)
        logger.warning("%s warning", who)
    lines = stream.getvalue().splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines] == wanted
    line = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ +content \S+: .+")
    assert all(line.fullmatch(text) for text in lines)


def test_configuring_twice_logs_once() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure("content", "info", first)
    configure("ranker", "info", second)
    logging.getLogger("stream_app").info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_warnings_are_logged() -> None:
    stream = io.StringIO()
    configure("content", "info", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("look here", stacklevel=1)
    assert "look here" in stream.getvalue()


def test_a_faust_worker_told_so_leaves_it_alone() -> None:
    stream = io.StringIO()
    configure("content", "warning", stream)
    worker = mode.Worker(loglevel="warn", override_logging=False)
    assert not worker.override_logging
    logging.getLogger("faust").info("not this")
    assert logging.getLogger().level == logging.WARNING
    assert stream.getvalue() == ""


def json_lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_is_one_object_a_line_with_the_place() -> None:
    stream, place = io.StringIO(), {"topic": "likes", "partition": 2, "offset": 41}
    configure("interests", "info", stream, form="json", place=lambda: place)
    log = logging.getLogger("stream_app.interests.app")
    log.info('two\nlines, a "quote" and %s', "ümläut")
    log.warning("its own", extra={"partition": 3, "offset": 7})
    first, second = json_lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(first.pop("time")))
    assert first == {
        "level": "info",
        "role": "interests",
        "logger": "stream_app.interests.app",
        "message": 'two\nlines, a "quote" and ümläut',
        **place,
    }
    assert (second["topic"], second["partition"], second["offset"]) == ("likes", 3, 7)


def test_json_carries_the_traceback() -> None:
    stream = io.StringIO()
    configure("ranker", "info", stream, form="json")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("stream_app").exception("failed")
    (line,) = json_lines(stream)
    assert line["message"] == "failed"
    assert str(line["exception"]).endswith("ValueError: broken")
    assert "topic" not in line


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("error", "level", "stack"),
    [
        (StateDirectoryError("no space left"), "info", False),
        (StateDirectoryError("no space left"), "debug", True),
        (StateDamagedError("cannot read"), "info", False),
        (FencedError("another owner"), "info", True),
        (ValueError("broken"), "info", True),
    ],
)
def test_an_error_of_the_environment_comes_without_a_stack_trace(
    error: Exception, level: str, stack: bool, form: str
) -> None:
    stream = io.StringIO()
    configure("interests", level, stream, form=form)
    try:
        raise error
    except type(error):
        logging.getLogger("faust").exception("Crashed reason=%r", error)
    assert str(error) in stream.getvalue()
    assert ("Traceback" in stream.getvalue()) == stack
