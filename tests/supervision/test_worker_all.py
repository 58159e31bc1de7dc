"""``worker all``: four processes that end together, by one request."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from stream_app.demo.roles import environment
from stream_app.settings import build
from stream_app.worker import PIPELINE
from tests.interests.workers import wait_until


def test_all_roles_end_cleanly_when_the_whole_group_is_told_to(tmp_path: Path) -> None:
    """Each worker gets SIGTERM twice, from whoever told the group and from its parent: one request."""
    settings = build({"kafka": {"broker": "127.0.0.1:9"}, "observability": {"port": 0}})
    log = tmp_path / "all.log"
    with log.open("wb") as opened:
        process = subprocess.Popen(
            [sys.executable, "-m", "stream_app", "worker", "all"],
            env=os.environ | environment(settings),
            stderr=opened,
            start_new_session=True,
        )
    try:
        absent = [f"{role} stream_app.worker: no Kafka broker answers at 127.0.0.1:9 (" for role in PIPELINE]
        wait_until(lambda: all(map(log.read_text().__contains__, absent)), "each role to say so", log)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 4
        for pid in (process.pid, *map(int, children)):
            os.kill(pid, signal.SIGTERM)
        assert process.wait(30) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
