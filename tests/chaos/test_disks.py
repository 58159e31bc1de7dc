"""A full disk is full for the worker, state outlives it, and damage is done where it should be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stream_app.chaos.disks import Disk, LimitedDisk, delete_below, disk, newest_files, truncate

WRITER = """
import sys
for line in sys.stdin:
    try:
        with open(sys.argv[1], "ab") as file:
            file.write(bytes(100_000))
        print("written", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


def tried(writer: subprocess.Popen[str]) -> str:
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write("\n")
    writer.stdin.flush()
    return writer.stdout.readline().strip()


@pytest.mark.parametrize("make", [disk, LimitedDisk])
def test_a_full_disk_takes_nothing_until_it_is_freed(tmp_path: Path, make: type[LimitedDisk]) -> None:
    made: Disk = make(tmp_path / "state")
    command = made.inside([sys.executable, "-c", WRITER, str(tmp_path / "state" / "file")])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert tried(writer) == "written"
            assert (made.root / "file").stat().st_size == 100_000
            made.fill(writer.pid)
            assert tried(writer) != "written"
            made.free(writer.pid)
            assert tried(writer) == "written"
        finally:
            writer.kill()
    try:
        assert (made.root / "file").exists(), "the state outlives the worker"
    finally:
        made.close()


def test_damage_is_done_to_the_newest_files(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / "db" / f"{number}.sst"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (number, number))
    newest = newest_files(tmp_path, 2)
    assert [path.name for path in newest] == ["4.sst", "3.sst"]
    truncate(newest[0], 0.25)
    assert newest[0].stat().st_size == 250
    truncate(tmp_path / "gone meanwhile", 0.5)
    delete_below(tmp_path)
    assert list(tmp_path.iterdir()) == []
