"""A replica's database: what is too old is nobody's, and deleted slates leave the files."""

from __future__ import annotations

from pathlib import Path

from stream_app.recommendations.slate import COLD_START_USER
from stream_app.serving.store import SlateStore, stamped


def files(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_what_retention_has_taken_is_nobodys_slate(tmp_path: Path) -> None:
    store = SlateStore(tmp_path)
    slates = {b"old": 10, b"new": 20, COLD_START_USER: 5}
    store.write([(user, stamped(b"slate of %s" % user, at)) for user, at in slates.items()], 7)
    for _ in range(2):
        assert store.slate(b"old", 11) is None
        assert store.slate(b"new", 11) == b"slate of new"
        assert store.slate(COLD_START_USER, 11) is not None
        assert store.slate(b"nobody", 11) is None
        store.sweep(11)
    assert store.slate(b"old", 0) is None, "it is gone, not only hidden"
    assert store.position == 7
    store.close()


def test_deleted_slates_leave_the_files(tmp_path: Path) -> None:
    store = SlateStore(tmp_path)
    store.write([(b"ana-of-the-files", stamped(b"shown-to-ana", 1)), (b"ben", stamped(b"s", 1))], 1)
    store.close()
    store = SlateStore(tmp_path)
    store.write([(b"ana-of-the-files", None)], 2)
    assert store.slate(b"ana-of-the-files", 0) is None
    assert b"shown-to-ana" in files(tmp_path)
    assert not store.is_due(3600)
    store.compact()
    assert store.slate(b"ben", 0) == b"s"
    store.reopen()
    store.close()
    assert b"ana-of-the-files" not in files(tmp_path)
    assert b"shown-to-ana" not in files(tmp_path)


def test_the_count_leaves_out_the_position(tmp_path: Path) -> None:
    store = SlateStore(tmp_path)
    assert store.held == 0
    store.write([(b"u%d" % n, stamped(b"s", 1)) for n in range(50)], 50)
    assert store.held == 50
    store.close()
