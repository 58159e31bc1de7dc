"""Logging of one worker: one format, one stream, one place that sets levels."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)-8s {role} %(name)s: %(message)s"
DATE_FORMAT = "%Y-%m-%dT%H:%M:%S"


def configure(role: str, level: str, stream: TextIO | None = None) -> None:
    """Log to ``stream`` (stderr): our own records from ``level`` on, other packages' warnings.

    At ``debug`` other packages log from info on: their debug records show whole messages, with ids in
    them. Faust's worker must be made with ``override_logging=False``, or it replaces this and sets the
    root logger to debug.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter = logging.Formatter(FORMAT.format(role=role), DATE_FORMAT)
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    own = getattr(logging, level.upper())
    logging.basicConfig(
        level=logging.INFO if own == logging.DEBUG else logging.WARNING, handlers=[handler], force=True
    )
    logging.getLogger("stream_app").setLevel(own)
    # a transaction that begins while the previous one is still being completed is told to retry: normal
    logging.getLogger("aiokafka.producer.sender").setLevel(logging.ERROR)
    logging.captureWarnings(True)
