"""``python -m stream_app`` and the ``stream-app`` command."""

from __future__ import annotations

import sys

from stream_app import cli


def main() -> int:
    """Run the command line's command; its exit status."""
    return cli.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
