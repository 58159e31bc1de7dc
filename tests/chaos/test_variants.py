"""`stream-app chaos` fails workers that are broken on purpose, and passes sound ones in the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.variants.broken import RAN

pytestmark = pytest.mark.long  # ten runs of half a minute to minutes each

KILLS = ("--seed", "22", "--faults", "3", "--kinds", "kill,duplicates", "--events", "1500", "--workers", "1")
"""Kills of the one interests worker, which comes back to its own directory, and a burst of repeats."""
ZOMBIE = ("--seed", "10", "--faults", "1", "--kinds", "zombie", "--events", "1500")
"""One of two interests workers sleeps for 7.5 s."""
ADDED = ("--seed", "22", "--faults", "1", "--kinds", "worker_added", "--events", "1500")
"""A third interests worker takes partitions over from two that live."""
PATIENCE_S = 560


@dataclass
class Ended:
    """A run that has come to its end."""

    status: int
    summary: dict[str, Any]
    said: str
    broken: bool
    """Whether something was done the broken way."""

    @property
    def wrongs(self) -> set[str]:
        """What the oracle found wrong, by name."""
        counts = {name: self.summary[name] for name in ("lost", "doubled", "committed_ahead")}
        counts |= self.summary["wrong"] | {"counters": not self.summary["counters_equal"]}
        return {name for name, count in counts.items() if count}


def chaos(module: str, run: tuple[str, ...], directory: Path) -> Ended:
    summary, ran = directory / "summary.json", directory / "ran"
    command = [sys.executable, "-m", "stream_app", "chaos", *run, "--summary", str(summary)]
    workers = f"{sys.executable} -m {module}"
    done = subprocess.run(
        [*command, "--worker-command", workers],
        env=os.environ | {RAN: str(ran)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    said = done.stdout + done.stderr
    assert summary.exists(), said[-3000:]
    return Ended(done.returncode, json.loads(summary.read_text()), said, ran.exists())


@pytest.mark.parametrize("run", [KILLS, ZOMBIE, ADDED])
def test_sound_workers_pass(run: tuple[str, ...], tmp_path: Path) -> None:
    ended = chaos("stream_app", run, tmp_path)
    assert ended.status == 0, ended.said
    assert not ended.wrongs
    assert ended.summary["inputs"] >= 1500


@pytest.mark.parametrize(
    ("variant", "run", "wrong"),
    [
        ("offset_apart", KILLS, {"counters"}),
        ("store_before_commit", KILLS, {"counters", "lost", "committed_ahead"}),
        ("repeats_not_recognised", KILLS, {"doubled"}),
        ("acked_at_first_record", KILLS, {"committed_ahead"}),
        ("reads_before_fencing", ZOMBIE, {"counters", "lost"}),
        ("claims_ignored", ZOMBIE, {"counters", "lost"}),
        ("released_too_early", ADDED, {"counters", "lost"}),
    ],
)
def test_a_broken_variant_fails(variant: str, run: tuple[str, ...], wrong: set[str], tmp_path: Path) -> None:
    ended = chaos(f"tests.chaos.variants.{variant}", run, tmp_path)
    assert ended.broken, f"it never came to what is broken:\n{ended.said}"
    assert ended.status == 1, ended.said
    assert wrong & ended.wrongs, ended.said
