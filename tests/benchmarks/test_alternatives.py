"""What the suite compares with: the version of the broker, and a reason where something cannot be had."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import alternatives
from benchmarks.alternatives import UnavailableError
from stream_app.kafka import distribution


def test_kafka_streams_is_of_the_brokers_version() -> None:
    pom = ElementTree.parse(alternatives.JAVA_SOURCE / "pom.xml")  # noqa: S314  # our own file
    assert pom.findtext(".//{*}kafka.version") == distribution.VERSION


def test_without_a_jdk_or_maven_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="no JDK"):
        alternatives.kafka_streams()
    for name in ("java", "javac"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(UnavailableError, match="no Maven"):
        alternatives.kafka_streams()


def test_a_build_that_fails_is_a_reason_with_what_maven_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("java", ""), ("javac", ""), ("mvn", "echo Unknown host; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    with pytest.raises(UnavailableError, match=r"(?s)failed.*Unknown host"):
        alternatives.kafka_streams()


def test_an_environment_that_cannot_be_made_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternatives, "KEPT", tmp_path)
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    with pytest.raises(UnavailableError, match="failed"):
        alternatives.python_with("none", ("quixstreams==0.0.0",))
    assert not (tmp_path / "none" / "requirements").exists()
