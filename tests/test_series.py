"""Series that are there from the start are those that the code counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from stream_app import series
from stream_app.observability import metrics
from stream_app.settings import Settings

SOURCES = Path(series.__file__).parent.rglob("*.py")
COUNTED = {
    (metric, value)
    for file in SOURCES
    for metric, value in re.findall(r'metrics\.([A-Z_]+)\.labels\("([^"]+)"\)', file.read_text("utf-8"))
}


def test_whatever_the_code_counts_under_a_fixed_name_is_there_from_the_start() -> None:
    begun: dict[object, set[str]] = {}
    for role in series.FIXED.values():
        for metric, labels in role:
            begun.setdefault(metric, set()).update(labels[0])
    names = {name: getattr(metrics, name) for name in {name for name, _ in COUNTED}}
    missing = {(name, value) for name, value in COUNTED if value not in begun.get(names[name], {value})}
    assert len(COUNTED) > 30
    assert missing == set()


@pytest.mark.parametrize(
    ("role", "name", "labels"),
    [
        ("interests", "stream_app_events_total", {"action": "share", "outcome": "retrying"}),
        ("interests", "stream_app_dead_letters_total", {"reason": "erased"}),
        ("ranker", "stream_app_fallbacks_total", {"cause": "queue_full"}),
        ("ranker", "stream_app_arm_users_total", {"arm": "learned", "ranker": "blend"}),
        ("trainer", "stream_app_rebalances_total", {"role": "trainer"}),
    ],
)  # fmt: skip
def test_a_role_begins_with_its_series(role: str, name: str, labels: dict[str, str]) -> None:
    series.begin(Settings(), role)
    assert REGISTRY.get_sample_value(name, labels) is not None
