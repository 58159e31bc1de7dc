"""What the variants share: they are ``stream-app`` with one thing broken on purpose.

``python -m tests.chaos.variants.NAME worker interests`` is a worker like any other but for that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from faust.types import TP

from stream_app import cli
from stream_app.interests.statistics_record import Outcomes
from stream_app.kafka.topic_ids import Bounds, CommittedOffset

WINDOW_S = 0.3
"""Pause between two steps that must be one: a fault that hits at random hits there often."""


def by_the_group(_state: Outcomes, _tp: TP, group: CommittedOffset, _there: Bounds) -> int:
    """Where reading goes on without the state's own positions, which make good what some variants break."""
    assert group.offset is not None
    return group.offset


def main(break_it: Callable[[], None]) -> None:
    """Run the command line; only workers of the interests role are broken."""
    if "interests" in sys.argv:
        break_it()
    sys.exit(cli.run(sys.argv[1:]))
