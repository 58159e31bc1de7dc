"""What the variants share: they are ``stream-app`` with one thing broken on purpose.

``python -m tests.chaos.variants.NAME worker interests`` is a worker like any other but for that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from stream_app import cli

WINDOW_S = 0.3
"""Pause between two steps that must be one: a fault that hits at random hits there often."""


def main(break_it: Callable[[], None]) -> None:
    """Run the command line; only workers of the interests role are broken."""
    if "interests" in sys.argv:
        break_it()
    sys.exit(cli.run(sys.argv[1:]))
