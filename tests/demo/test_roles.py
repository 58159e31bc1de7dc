"""Workers as children: their settings, their failures, and that nothing of them is left."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from stream_app.demo.roles import ROLES, Roles, _ports, environment
from stream_app.errors import StreamAppError
from stream_app.settings import Settings, build, load


def test_environment_carries_every_setting() -> None:
    settings = build(
        {
            "kafka": {"broker": "127.0.0.1:1", "topic_prefix": "demo."},
            "events": {
                "actions": [{"name": "hide", "topic": "hides", "weight": -0.5}],
                "retry_delays_s": [0.5, 1],
            },
            "interests": {"half_life_days": 0.0002},
            "recommendations": {"skip_unchanged": False},
        }
    )
    assert load(environment=environment(settings)) == settings
    assert load(environment=environment(Settings())) == Settings()


def test_ports_are_the_configured_ones_while_they_are_free() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        taken = probe.getsockname()[1]
        assert taken not in _ports("127.0.0.1", taken)
    assert len(set(_ports("127.0.0.1", 0))) == len(ROLES)


def test_a_worker_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    """The state directory cannot be made where a file stands."""
    (tmp_path / "state").write_text("in the way")
    broken = build({"kafka": {"broker": "127.0.0.1:1", "connect_timeout_s": 0.1}})
    roles = Roles(broken, tmp_path, keep=True)
    said: list[str] = []
    try:
        roles.start()
        pids = list(roles.pids.values())
        with pytest.raises(
            StreamAppError, match=r"worker ended with status \d+. Its log ends with"
        ) as caught:
            roles.wait_until_ready(said.append)
    finally:
        roles.stop()
    assert "127.0.0.1:1" in str(caught.value) or "state" in str(caught.value)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
