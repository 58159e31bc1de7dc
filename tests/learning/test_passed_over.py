"""A trainer that is told what was shown: what came before teaches, what came later does not."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY

from stream_app.evaluation.prequential import run
from stream_app.evaluation.scorer import Touch
from stream_app.learning.exposure import Exposure
from tests.evaluation.small_logs import fashions, read
from tests.learning.test_training import Live, Read, configured, world_of

USERS, CONTENTS = 6, 20


@dataclass
class Shown:
    """An impression as it was consumed."""

    key: bytes | None
    value: bytes | None
    timestamp: int
    partition: int = 0
    offset: int = 0


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"stream_app_{name}_total", labels) or 0.0


class Told(Live):
    """The state path, and a platform that reports what it showed."""

    later_ms: int | None = None
    """Of the report's time, against the engagement's; None: nothing is reported"""

    def update(self, touch: Touch) -> None:
        if self.later_ms is not None:
            at, user = touch.time + self.later_ms, self._log.user_ids[touch.user]
            # beside one whose day is long past, or to come: reports of it are too old by then
            items = [f"c{touch.content}", f"c{(touch.content + CONTENTS // 2) % CONTENTS}", "unheard of"]
            value = msgspec.json.encode({"user_id": user.decode(), "items": items, "shown_at": at})
            self.training.take_impressions([Shown(user, value, at), Shown(user, b"?", at)])
        super().update(touch)


def run_through(later_ms: int | None) -> Told:
    log = read(fashions(USERS, CONTENTS))
    live = Told(log, world_of(log), configured())
    live.later_ms = later_ms
    run(log, live, begin=0.0)
    live.settle()
    return live


@pytest.fixture(scope="module")
def untold() -> Told:
    return run_through(None)


def test_what_is_shown_after_an_engagement_teaches_nothing_about_it(untold: Told) -> None:
    before = counted("trainer_shown_steps")
    told = run_through(later_ms=1)
    assert counted("trainer_shown_steps") == before
    ours, theirs = (live.training._online.trainer.model for live in (told, untold))
    for name, parameter in ours.parameters.items():
        np.testing.assert_array_equal(parameter, theirs.parameters[name], err_msg=name)
    np.testing.assert_array_equal(told.training._online.exposure.logs, Exposure().logs)


def test_what_was_shown_before_it_is_what_a_user_chose_from(untold: Told) -> None:
    before = counted("trainer_shown_steps"), counted("impressions", role="trainer", outcome="malformed_json")
    told = run_through(later_ms=-1)
    online = told.training._online
    steps = online.trainer.model.steps
    assert steps == USERS * CONTENTS
    assert counted("trainer_shown_steps") - before[0] == steps
    rejected = counted("impressions", role="trainer", outcome="malformed_json") - before[1]
    assert rejected == steps + CONTENTS  # the publisher's as well
    learned = online.exposure.logs - Exposure().logs
    assert learned[0] > 0 > learned[1]
    weights = untold.training._online.trainer.model.parameters["linear"]
    assert np.abs(online.trainer.model.parameters["linear"] - weights).max() > 0.01
    # an erased user's are forgotten
    shown = told.training._impressions.shown
    assert len(shown) == USERS + 1
    told.training.learn([Read(b"u1", None, told.offset)])
    assert len(shown) == USERS
