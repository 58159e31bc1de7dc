"""While a partition's files are rewritten, everything else goes on: it, other partitions, and its end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from stream_app.interests.store import PartitionStore

BYTES = 2_000


@pytest.fixture
def store(tmp_path: Path) -> PartitionStore:
    store = PartitionStore(tmp_path / "s")
    for position in range(1, 41):
        users = range(1_000 * position, 1_000 * (position + 1))
        store.write(
            [(b"user-%06d" % user, user.to_bytes(8, "big") * (BYTES // 8)) for user in users], position
        )
    return store


def begun(store: PartitionStore) -> threading.Thread:
    purge = threading.Thread(target=store.purge)
    purge.start()
    while purge.is_alive() and not store._purging:
        time.sleep(0.001)
    return purge


def test_reading_and_writing_go_on_and_last(store: PartitionStore, tmp_path: Path) -> None:
    store.write([(b"user-001000", None)], 41)
    purge = begun(store)
    written = 0
    while purge.is_alive():
        written += 1
        store.write([(b"new-%d" % written, b"value")], 41 + written)
        assert store.get([b"new-%d" % written, b"user-001001"])[0] == b"value"
    purge.join()
    assert store.get([b"user-001000", b"new-1"]) == [None, b"value"]
    store.close()
    assert not any(b"user-001000" in file.read_bytes() for file in (tmp_path / "s").iterdir())
    again = PartitionStore(tmp_path / "s")
    assert again.position == 41 + written
    assert again.get([b"new-%d" % written]) == [b"value"]
    again.close()


def test_closing_gives_a_purge_up_and_keeps_what_was_written(store: PartitionStore, tmp_path: Path) -> None:
    purge = begun(store)
    store.write([(b"last", b"value")], 99)
    store.close()
    purge.join(10)
    assert not purge.is_alive()
    store.purge()  # asked for too late: nothing to do
    again = PartitionStore(tmp_path / "s")
    assert again.position == 99
    assert again.get([b"last", b"user-001000"])[0] == b"value"
    again.close()


def test_whoever_scans_is_not_closed_under(store: PartitionStore) -> None:
    scan = store.scan(b"", 10_000)
    first = next(scan)
    purge = threading.Thread(target=store.purge)
    purge.start()
    rest = list(scan)
    purge.join()
    assert len([first, *rest]) == 10_000
    store.close()
