"""Fixtures of the tests of Kafka."""

from __future__ import annotations

import pytest

from stream_app.kafka import coordination
from tests.kafka.layers import announce


@pytest.fixture(params=["announced", "unannounced"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How transactions are sent; the broker can do both."""
    monkeypatch.setattr(coordination, "unannounced", coordination.unannounced)  # what a test makes of it ends
    if request.param == "announced":
        announce()
    return str(request.param)
