"""The reduced chaos run: every kind of fault at least once, on real workers and a real Kafka of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from stream_app.chaos.schedule import KINDS

FAULTS = 23
SEED = 20
EVENTS = 15_000
TIMEOUT_S = 600
"""Three and a half minutes on two free cores; a busy machine may take longer."""


def test_nothing_is_lost_and_nothing_doubled_under_every_kind_of_fault(tmp_path: Path) -> None:
    summary_file = tmp_path / "summary.json"
    options = ["--faults", str(FAULTS), "--seed", str(SEED), "--events", str(EVENTS)]
    done = subprocess.run(
        [sys.executable, "-m", "stream_app", "chaos", *options, "--summary", str(summary_file)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert f"--seed {SEED} --faults {FAULTS}" in done.stdout.splitlines()[0], "how to replay it"
    summary = json.loads(summary_file.read_bytes())
    assert summary["by_kind"].keys() == KINDS.keys()
    assert summary["faults"] == sum(summary["by_kind"].values()) == FAULTS
    assert summary["events"] == summary["inputs"] >= EVENTS
    assert summary["lost"] == summary["doubled"] == summary["committed_ahead"] == 0
    assert summary["counters_equal"]
    assert 0 < summary["max_relative_error"] <= 1e-5
    assert summary["accounts"]["duplicates"] > 100
    assert summary["accounts"]["dead_lettered"] > 50
    assert summary["recovery_s"]["max"] > 0
