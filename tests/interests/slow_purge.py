"""A worker whose state takes long to rewrite: until a file says so."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from stream_app.__main__ import main
from stream_app.interests.store import PartitionStore

DIRECTORY = Path(os.environ["SLOW_PURGE"])
GO_ON, BEGUN = DIRECTORY / "go-on", DIRECTORY / "begun"

purge = PartitionStore.purge


def slowly(self: PartitionStore) -> None:
    BEGUN.touch()
    while not GO_ON.exists():
        time.sleep(0.01)
    purge(self)


PartitionStore.purge = slowly  # type: ignore[method-assign]  # what is slow
sys.exit(main())
