"""The database of one partition: values and position belong together, whatever happens to its files."""

from __future__ import annotations

import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stream_app.errors import StateDamagedError, StateDirectoryError
from stream_app.interests import store as store_module
from stream_app.interests.store import PartitionStore

USERS = 200


def value_of(user: int, position: int) -> bytes:
    return b"%d/%d/" % (user, position) + bytes(range(256)) * 4


def touched(position: int) -> range:
    """Users written at a position."""
    return range(position % 7, USERS, 7)


def contents_at(position: int) -> dict[bytes, bytes]:
    """What a store must hold that stands at ``position``."""
    state: dict[bytes, bytes] = {}
    for p in range(1, position + 1):
        for user in touched(p):
            state[b"u%03d" % user] = value_of(user, p)
        state.pop(b"u%03d" % (p % USERS), None)
    return state


def write(store: PartitionStore, position: int) -> None:
    changed: list[tuple[bytes, bytes | None]] = [
        (b"u%03d" % user, value_of(user, position)) for user in touched(position)
    ]
    store.write([*changed, (b"u%03d" % (position % USERS), None)], position)


def contents(store: PartitionStore) -> dict[bytes, bytes]:
    return dict(store.scan(b"", 10 * USERS))


def check(store: PartitionStore, newest: int) -> int:
    """Values and position agree; the position."""
    position = store.position
    assert 0 <= position <= newest
    assert contents(store) == contents_at(position)
    return position


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A store closed after two generations of files."""
    directory = tmp_path / "written"
    for first, last in ((1, 20), (21, 40)):
        store = PartitionStore(directory)
        for position in range(first, last + 1):
            write(store, position)
        store.close()
    return directory


def test_reads_what_was_written_and_nothing_else(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "s")
    assert store.position == 0
    assert store.get([]) == []
    assert store.get([b"nobody"]) == [None]
    assert contents(store) == {}
    write(store, 1)
    assert store.get([b"u000", b"u008", b"nobody", b"u015"]) == [None, value_of(8, 1), None, value_of(15, 1)]
    assert check(store, 1) == 1
    store.clear()
    assert store.position == 0
    assert contents(store) == {}
    store.close()


def test_scanning_in_pieces_meets_every_user_once(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "s")
    store.write([(b"u%03d" % user, b"x") for user in range(USERS)], 5)
    found: list[bytes] = []
    after = b""
    while piece := [user for user, _ in store.scan(after, 30)]:
        assert len(piece) == min(30, USERS - len(found)), "a full piece, or the end"
        found += piece
        after = piece[-1]
    assert found == [b"u%03d" % user for user in range(USERS)]
    store.close()


def test_settings_hold_for_a_directory_that_is_there_already(tmp_path: Path) -> None:
    for write_buffer_bytes in (1 << 20, 2 << 20):
        store = PartitionStore(tmp_path / "s", write_buffer_bytes)
        write(store, 1)
        store.close()
    log = (tmp_path / "s" / "LOG").read_text()
    assert re.findall(r"Options\.write_buffer_size: (\d+)", log) == [str(2 << 20)]
    assert re.findall(r"filter_policy: (\w+)", log) == ["bloomfilter"]


def test_a_scan_leaves_the_cache_to_what_is_looked_up(tmp_path: Path) -> None:
    """Expiry passes by every user every minute: read into the cache, they would push the others out."""
    store = PartitionStore(tmp_path / "s")
    users = [(b"user-%03d" % number, bytes([number]) * 10_000) for number in range(200)]
    store.write(users, 1)
    store.close()  # now it is in files
    store = PartitionStore(tmp_path / "s")
    before = store._cache.get_usage()
    assert len(list(store.scan(b"", 1_000))) == len(users)
    assert store._cache.get_usage() - before < 200_000
    assert store.get([user for user, _ in users]) == [value for _, value in users]
    assert store._cache.get_usage() - before > 1_000_000
    store.close()


def test_a_killed_process_leaves_values_and_position_of_one_moment(tmp_path: Path) -> None:
    """SIGKILL while writing, some of it flushed: the log of RocksDB is off, so the rest may be gone."""
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.interests.test_store import PartitionStore, write\n"
        "store = PartitionStore(Path(sys.argv[1]), 64 << 10)\n"  # RocksDB writes out again and again
        "for position in range(1, 100_000):\n"
        "    write(store, position); print(position, flush=True)\n"
    )
    directory = tmp_path / "s"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 60:
                process.send_signal(signal.SIGKILL)
                break
        newest = max([60, *(int(line) for line in process.stdout if line.strip().isdigit())])
    store = PartitionStore(directory)
    assert check(store, newest + 1) > 0, "some of it had been written out"
    store.close()


def test_a_directory_copied_while_open_is_consistent(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "s")
    for position in range(1, 31):
        write(store, position)
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    copy = PartitionStore(tmp_path / "copy")
    check(copy, 30)
    copy.close()
    store.close()
    again = PartitionStore(tmp_path / "s")
    assert check(again, 30) == 30, "a clean close loses nothing"
    again.close()


@pytest.mark.parametrize("pattern", ["*.sst", "MANIFEST-*", "CURRENT", "OPTIONS-*", "IDENTITY", "*.log"])
@pytest.mark.parametrize("damage", ["gone", "empty", "halved", "overwritten"])
def test_damaged_files_never_give_wrong_values(
    written: Path, pattern: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was written; or nothing and a warning, and the changelog is read from its beginning."""
    files = sorted(written.glob(pattern), key=lambda path: path.stat().st_mtime)
    assert files
    newest, size = files[-1], files[-1].stat().st_size
    if damage == "gone":
        newest.unlink()
    elif damage == "overwritten":
        newest.write_bytes(bytes(b ^ 0x5A for b in newest.read_bytes()))
    else:
        with newest.open("r+b") as file:
            file.truncate(0 if damage == "empty" else size // 2)
    with caplog.at_level(logging.WARNING):
        store = PartitionStore(written)
    if (position := check(store, 40)) < 40:
        assert position == 0
        assert "rebuilt from the changelog" in caplog.text
    write(store, 41)
    store.close()


def test_what_cannot_be_read_is_an_error_once_and_rebuilt_from_then_on(
    written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """RocksDB opens such files; only reading finds them out, and would each time."""
    for path in written.glob("*.sst"):
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 3] ^= 0xFF
        path.write_bytes(damaged)
    store = PartitionStore(written)
    with pytest.raises(StateDamagedError, match="rebuilt from the changelog") as caught:
        store.get(list(contents_at(40)))
    assert str(written) in str(caught.value)
    with pytest.raises(StateDamagedError):
        contents(store)  # and not a table that ends early
    store.close()
    again = PartitionStore(written)
    assert check(again, 0) == 0
    assert "rebuilt from the changelog" in caplog.text
    write(again, 1)
    again.close()
    third = PartitionStore(written)
    assert check(third, 1) == 1, "rebuilt once, not at every start"
    third.close()


TOPIC, OTHER = "b8aa29de-9236-4646-a8c2-f1d4c76ee9f0", "5d1f66ab-2f07-46a5-9a36-6a02a9d9b6ff"
TRUSTED_MS = 64_800_000


def resumed(directory: Path, topic: str, later_ms: int = 0) -> int:
    """Position that a worker reads on from who opens the directory so much later."""
    store = PartitionStore(directory)
    try:
        position = store.resume(topic, time.time_ns() // 1_000_000 + later_ms, TRUSTED_MS)
        assert (position > 0) == bool(contents(store)), "nothing is kept without its position"
        return position
    finally:
        store.close()


@pytest.mark.parametrize(
    ("topic", "later_ms", "position"),
    [
        (TOPIC, 0, 7),
        (TOPIC, TRUSTED_MS - 60_000, 7),
        (TOPIC, TRUSTED_MS + 60_000, 0),
        (TOPIC, -TRUSTED_MS - 60_000, 0),  # a clock that was wrong tells nothing
        (OTHER, 0, 0),
        ("", 0, 0),
    ],
)
def test_values_are_trusted_only_for_their_own_changelog_and_while_its_tombstones_stand(
    tmp_path: Path, topic: str, later_ms: int, position: int
) -> None:
    store = PartitionStore(tmp_path / "s")
    assert store.resume(TOPIC, time.time_ns() // 1_000_000, TRUSTED_MS) == 0
    write(store, 7)
    store.close()
    assert resumed(tmp_path / "s", topic, later_ms) == position


def test_while_the_changelog_is_read_its_records_say_how_far_it_was_followed(tmp_path: Path) -> None:
    """A recovery that was cut short stands where its records do, however recent it was."""
    store = PartitionStore(tmp_path / "s")
    now = time.time_ns() // 1_000_000
    assert store.resume(TOPIC, now, TRUSTED_MS) == 0
    store.write([(b"u", b"x")], 7, now - TRUSTED_MS - 60_000)
    store.close()
    assert resumed(tmp_path / "s", TOPIC) == 0


def test_values_of_an_older_layout_are_rebuilt(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "s")
    store.write([(b"u", b"x")], 7)
    store._db.put(store_module.STANDING_KEY, (7).to_bytes(8, "little"))
    store.close()
    assert resumed(tmp_path / "s", TOPIC) == 0


def test_a_purge_leaves_no_byte_of_a_deleted_user(tmp_path: Path) -> None:
    user, secret = b"zoe-whose-name-comes-last", b"what-zoe-liked"
    store = PartitionStore(tmp_path / "s")
    write(store, 1)
    store.write([(user, secret * 9)], 2)
    store.close()
    store = PartitionStore(tmp_path / "s")
    assert traces(tmp_path / "s", user)
    store.write([(user, None)], 3)
    store.purge()
    assert not traces(tmp_path / "s", user)
    assert not traces(tmp_path / "s", secret)
    assert store.position == 3
    assert contents(store) == contents_at(1)
    store.close()


def traces(directory: Path, text: bytes) -> list[str]:
    """Files that hold these bytes, or their hexadecimal digits as RocksDB's log writes them."""
    forms = (text, text.hex().encode(), text.hex().upper().encode())
    return [path.name for path in directory.iterdir() if any(form in path.read_bytes() for form in forms)]


def test_a_second_opener_is_told_which_setting_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "OPEN_RETRY_S", 0.001)
    first = PartitionStore(tmp_path / "s")
    with pytest.raises(StateDirectoryError, match=r"interests\.data_dir") as caught:
        PartitionStore(tmp_path / "s")
    assert str(tmp_path / "s") in str(caught.value)
    write(first, 1)
    first.close()
    PartitionStore(tmp_path / "s").close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateDirectoryError, match="file/state"):
        PartitionStore(tmp_path / "file" / "state")


def test_what_rocksdb_writes_about_itself_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log and its manifest grow with every flush, not with the users."""
    monkeypatch.setattr(store_module, "LOG_FILE_BYTES", 16 << 10)
    store = PartitionStore(tmp_path)
    for position in range(1, 60):
        write(store, position)
        store._db.flush()
    logs = [f.stat().st_size for f in tmp_path.glob("LOG*")]
    manifest = sum(f.stat().st_size for f in tmp_path.glob("MANIFEST*"))
    state = contents(store)
    store.close()
    assert len(logs) == 2
    assert max(logs) < 2 * store_module.LOG_FILE_BYTES
    assert 0 < manifest < 2 * store_module.LOG_FILE_BYTES
    assert state == contents_at(59)
