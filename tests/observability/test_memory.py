"""What a worker has freed goes back to the system."""

from __future__ import annotations

import os
from pathlib import Path

from stream_app.memory import give_back

BLOCKS, BLOCK_BYTES, KEPT = 20_000, 5_000, 50
"""100 MB in blocks that are larger than Python's own allocator takes, and smaller than a mapping of their
own; one in KEPT stays, so that the heap cannot shrink from its end."""


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_free_memory_between_what_is_used_goes_back() -> None:
    give_back()  # what other tests have freed
    before = resident()
    blocks = [bytes([1]) * BLOCK_BYTES for _ in range(BLOCKS)]
    kept = blocks[::KEPT]
    del blocks
    held = resident() - before
    give_back()
    assert held > BLOCKS * BLOCK_BYTES / 2
    assert resident() - before < held / 4
    assert len(kept) == BLOCKS // KEPT
