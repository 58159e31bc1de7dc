"""The suite as a program: sizes from the command line, and a summary whatever fails."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.alternatives import UnavailableError, skipping
from benchmarks.sizes import FULL, QUICK, Sizes, add_options, chosen

ROOT = Path(__file__).parents[2]


def sizes(*arguments: str) -> Sizes:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    add_options(parser)
    return chosen(parser.parse_args(arguments))


def test_each_size_can_be_given() -> None:
    assert sizes() == FULL
    assert sizes("--quick") == QUICK
    given = sizes("--quick", "--repeats", "7", "--rates", "5", "50", "--seconds", "2.5")
    assert (given.repeats, given.rates, given.seconds, given.users) == (7, (5, 50), 2.5, QUICK.users)


def test_what_is_unavailable_is_named_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    skipped: dict[str, str] = {}
    with skipping(skipped, "Quix Streams"):
        raise UnavailableError("no network")
    assert skipped == {"Quix Streams": "no network"}
    assert "SKIPPED Quix Streams: no network" in capsys.readouterr().err


def test_a_part_that_fails_is_named_and_the_summary_written_all_the_same(tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    # a proxy that refuses connections, and no jars: no broker can be had
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "benchmarks/suite.py", "--quick", "--parts", "recovery", "--summary", str(summary)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(summary.read_text())
    assert done.returncode == 1, done.stderr
    assert "could not be fetched" in found["failed"]["recovery"]
    assert "FAILED recovery" in done.stdout
    assert found["skipped"]["state"] == "not among --parts"
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["versions"]["faust-streaming"]
    assert "recovery" not in found
