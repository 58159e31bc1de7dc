"""Logging of one worker: one format, one stream, one place that sets levels."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from stream_app.errors import (
    AccessError,
    BrokerUnavailableError,
    ConfigurationError,
    StateDirectoryError,
)

FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)-8s {role} %(name)s: %(message)s"
DATE_FORMAT = "%Y-%m-%dT%H:%M:%S"
PLACE = ("topic", "partition", "offset")
"""Where the record stands that a line is about."""

ENVIRONMENT = (AccessError, BrokerUnavailableError, ConfigurationError, StateDirectoryError)
"""Errors whose cause lies outside the program, and whose message says what to do."""

Place = Mapping[str, str | int]


def nowhere() -> Place:
    """For what is about no record."""
    return {}


def without_stack(record: logging.LogRecord) -> bool:
    """A filter that lets everything pass, but leaves out where in the program an error of the
    environment was met: whoever is to free a disk looks for that line, not for ours."""
    if record.exc_info and isinstance(record.exc_info[1], ENVIRONMENT):
        record.exc_info = None
    return True


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, role, logger, message; topic, partition and offset of the batch that
    is being worked on, or those that the line was given as ``extra``; the traceback as ``exception``."""

    def __init__(self, role: str, place: Callable[[], Place]) -> None:
        """``place`` says which batch is being worked on where the line is written."""
        super().__init__(datefmt=DATE_FORMAT)
        self._role, self._place = role, place
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, str | int] = {
            "time": f"{self.formatTime(record, DATE_FORMAT)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "role": self._role,
            "logger": record.name,
            "message": record.getMessage(),
            **self._place(),
            **{name: getattr(record, name) for name in PLACE if hasattr(record, name)},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(
    role: str,
    level: str,
    stream: TextIO | None = None,
    *,
    form: str = "text",
    place: Callable[[], Place] = nowhere,
) -> None:
    """Log to ``stream`` (stderr): our own records from ``level`` on, other packages' warnings.

    ``form`` is ``text`` or ``json``; ``place`` is asked for each line of the latter.

    At ``debug`` other packages log from info on: their debug records show whole messages, with ids in
    them. Above it errors of the environment come without a stack trace.

    Faust's worker must be made with ``override_logging=False``, or it replaces this and sets the root
    logger to debug.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter: logging.Formatter = JsonFormatter(role, place)
    if form == "text":
        formatter = logging.Formatter(FORMAT.format(role=role), DATE_FORMAT)
        formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    own = getattr(logging, level.upper())
    if own > logging.DEBUG:
        handler.addFilter(without_stack)
    logging.basicConfig(
        level=logging.INFO if own == logging.DEBUG else logging.WARNING, handlers=[handler], force=True
    )
    logging.getLogger("stream_app").setLevel(own)
    # a transaction that begins while the previous one is still being completed is told to retry: normal
    logging.getLogger("aiokafka.producer.sender").setLevel(logging.ERROR)
    logging.captureWarnings(True)
