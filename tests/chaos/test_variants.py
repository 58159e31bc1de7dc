"""`stream-app chaos` fails workers that are broken on purpose, and passes sound ones in the same run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

RUN = ("--seed", "83", "--faults", "3", "--kinds", "kill,zombie,duplicates", "--events", "1500")
"""A zombie for 7.5 s, then a burst of repeats, then a kill; both hit an interests worker."""
PATIENCE_S = 560


@dataclass
class Ended:
    """A run that has come to its end."""

    status: int
    summary: dict[str, Any]
    said: str

    @property
    def wrongs(self) -> set[str]:
        """What the oracle found wrong, by name."""
        counts = {name: self.summary[name] for name in ("lost", "doubled", "committed_ahead")}
        counts |= self.summary["wrong"] | {"counters": not self.summary["counters_equal"]}
        return {name for name, count in counts.items() if count}


def chaos(module: str, directory: Path) -> Ended:
    summary = directory / "summary.json"
    command = [sys.executable, "-m", "stream_app", "chaos", *RUN, "--summary", str(summary)]
    workers = f"{sys.executable} -m {module}"
    done = subprocess.run(
        [*command, "--worker-command", workers], capture_output=True, text=True, timeout=PATIENCE_S
    )
    said = done.stdout + done.stderr
    assert summary.exists(), said[-3000:]
    return Ended(done.returncode, json.loads(summary.read_text()), said)


def test_sound_workers_pass(tmp_path: Path) -> None:
    ended = chaos("stream_app", tmp_path)
    assert ended.status == 0, ended.said
    assert not ended.wrongs
    assert ended.summary["by_kind"] == {"kill": 1, "zombie": 1, "duplicates": 1}
    assert ended.summary["accounts"]["duplicates"] > 100


@pytest.mark.parametrize(
    ("variant", "wrong"),
    [
        ("offset_apart", {"counters"}),
        ("store_before_commit", {"counters"}),
        ("repeats_not_recognised", {"doubled", "counters"}),
        ("reads_before_fencing", {"counters"}),
        ("acked_at_first_record", {"lost", "committed_ahead"}),
    ],
)
def test_a_broken_variant_fails(variant: str, wrong: set[str], tmp_path: Path) -> None:
    ended = chaos(f"tests.chaos.variants.{variant}", tmp_path)
    assert ended.status == 1, ended.said
    assert wrong <= ended.wrongs, ended.said
