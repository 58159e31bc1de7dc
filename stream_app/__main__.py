"""``python -m stream_app`` and the ``stream-app`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stream_app.processes import end_at_once_on_signals

VALUED = ("--config", "--log-level")  # global options whose value is the next argument


def main() -> int:
    """Run the command line's command; its exit status."""
    arguments = sys.argv[1:]
    if _command(arguments) == "worker":
        end_at_once_on_signals()  # before anything is imported, which takes seconds
    from stream_app import cli

    return cli.run(arguments)


def _command(arguments: Sequence[str]) -> str | None:
    rest = iter(arguments)
    for argument in rest:
        if argument in VALUED:
            next(rest, None)
        elif not argument.startswith("-"):
            return argument
    return None


if __name__ == "__main__":
    sys.exit(main())
