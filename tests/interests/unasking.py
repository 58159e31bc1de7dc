"""An interests worker that does not ask what the others of its group have.

``python -m tests.interests.unasking worker interests``: as two that start at the same time, of which neither
sees the other, so that the broker alone can tell them apart.
"""

from __future__ import annotations

import sys

from stream_app import cli
from stream_app.kafka.faust import membership
from stream_app.settings import Settings


def nobody(_settings: Settings, _group: str) -> None:
    return None


if __name__ == "__main__":
    membership._live_protocol = nobody  # what is broken
    sys.exit(cli.run(sys.argv[1:]))
