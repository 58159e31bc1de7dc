"""A worker without the layers named by ``WITHOUT``, broken on purpose: see ``tests/kafka/layers.py``."""

from __future__ import annotations

import os
import sys

from stream_app import cli
from tests.interests.zombie import WITHOUT
from tests.kafka.layers import take_away


def main() -> None:
    take_away(*os.environ.get(WITHOUT, "").split())
    sys.exit(cli.run(sys.argv[1:]))


if __name__ == "__main__":
    main()
