"""Shadow scoring: what goes astray is never published, what turns bad is taken back."""

from __future__ import annotations

import numpy as np
import pytest

from stream_app.errors import LearningError
from stream_app.learning.checkpoint import encode
from stream_app.learning.habits import AgeHabits
from stream_app.learning.model import Listed, SoftmaxRanker
from stream_app.learning.online import Candidates, Choice
from stream_app.learning.shadow import WORST, Shadow, Verdict, judged

FEATURES, CONTENTS = 6, 40
GROUPS = (0, 1)
INTERVAL, LEAST, WINDOW, MARGIN = 60, 40, 100, 0.05


class Trainer:
    """Learns that users choose by the sign of a feature, and publishes by the shadow's verdicts."""

    def __init__(self, seed: int = 0) -> None:
        self.online = SoftmaxRanker([f"f{n}" for n in range(FEATURES)], 2, 8, seed)
        self.shadow = Shadow(WINDOW, MARGIN, LEAST)
        self.verdicts: list[Verdict] = []
        self._random = np.random.default_rng(seed)
        self._steps = 0

    def step(self, likes: float, taught: float | None = None) -> None:
        """A user chooses what ``likes`` · feature 0 is large for; the online model is taught ``taught``."""
        features = self._random.normal(size=(CONTENTS, FEATURES)).astype(np.float32)
        noise = self._random.gumbel(size=CONTENTS)
        chosen = int(np.argmax(3 * likes * features[:, 0] + noise))
        learned = int(np.argmax(3 * (likes if taught is None else taught) * features[:, 0] + noise))
        nothing = np.zeros(CONTENTS, np.float32)
        among = Candidates(
            np.arange(CONTENTS), features, nothing, GROUPS, self.online.score(features, GROUPS)
        )
        self.shadow.judge(Choice(among, np.ones(CONTENTS, np.bool_), chosen))
        self.online.learn([Listed(features, GROUPS, learned, nothing)])
        self._steps += 1
        if self._steps % INTERVAL == 0:
            self._decide()

    def _decide(self) -> None:
        verdict = self.shadow.verdict()
        self.verdicts.append(verdict)
        if verdict is Verdict.PUBLISH:
            self.shadow.publish(self.online)
        elif verdict is Verdict.RESTART or (verdict is Verdict.ROLL_BACK and self.shadow.roll_back()):
            self.online = self.shadow.restart()

    def prefers(self) -> float:
        """What the published model makes of feature 0: its slope."""
        assert self.shadow.published is not None
        probe = np.zeros((2, FEATURES), np.float32)
        probe[:, 0] = -1, 1
        low, high = self.shadow.published.score(probe, GROUPS)
        return float(high - low)


def test_a_model_that_gets_better_is_published_again_and_again() -> None:
    trainer = Trainer()
    for _ in range(6 * INTERVAL):
        trainer.step(1.0)
    assert trainer.verdicts == [Verdict.PUBLISH] * 6
    assert trainer.prefers() > 2
    assert trainer.shadow.losses["online"].value < np.log(CONTENTS)
    assert 0 < trainer.shadow.gains["published"].value <= 1


@pytest.mark.parametrize("begin", [0, 1, 30, 59])
@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_is_taught_the_contrary_is_never_published(seed: int, begin: int) -> None:
    trainer = Trainer(seed)
    for _ in range(4 * INTERVAL + begin):
        trainer.step(1.0)
    good = trainer.prefers()
    for _ in range(10 * INTERVAL):
        trainer.step(1.0, taught=-1.0)
        assert trainer.prefers() > 0.8 * good
    assert Verdict.RESTART in trainer.verdicts or Verdict.ROLL_BACK in trainer.verdicts
    for _ in range(4 * INTERVAL):  # and once it is taught well again, it goes on
        trainer.step(1.0)
    assert trainer.verdicts[-1] is Verdict.PUBLISH


def test_a_published_model_that_turns_bad_on_new_choices_is_taken_back() -> None:
    trainer = Trainer()
    for _ in range(3 * INTERVAL):
        trainer.step(1.0)
    good = trainer.prefers()
    trainer.shadow.publish(SoftmaxRanker(trainer.online.names, 2, 8, seed=9))  # however that got there
    for _ in range(INTERVAL):
        trainer.step(1.0)
    assert trainer.verdicts[-1] is Verdict.ROLL_BACK
    assert trainer.prefers() >= 0.8 * good
    assert trainer.shadow.before is None
    assert "before" not in trainer.shadow.losses


def test_users_who_change_their_minds_are_followed() -> None:
    trainer = Trainer()
    for _ in range(3 * INTERVAL):
        trainer.step(1.0)
    for _ in range(15 * INTERVAL):
        trainer.step(-1.0)
    assert trainer.prefers() < -2


def test_too_few_choices_decide_nothing() -> None:
    trainer = Trainer()
    for _ in range(LEAST - 1):
        trainer.step(1.0)
    assert trainer.shadow.verdict() is Verdict.KEEP
    trainer.step(1.0)
    assert trainer.shadow.verdict() is Verdict.PUBLISH


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_no_number_is_never_published(wrong: float) -> None:
    trainer = Trainer()
    for _ in range(INTERVAL):
        trainer.step(1.0)
    trainer.online.parameters["linear"][0] = wrong
    with pytest.raises(LearningError):
        encode(trainer.online, AgeHabits())
    nothing = np.zeros(CONTENTS, np.float32)
    features = np.ones((CONTENTS, FEATURES), np.float32)
    for _ in range(WINDOW):
        among = Candidates(
            np.arange(CONTENTS), features, nothing, GROUPS, trainer.online.score(features, GROUPS)
        )
        trainer.shadow.judge(Choice(among, np.ones(CONTENTS, np.bool_), 3))
    assert trainer.shadow.losses["online"].value > WORST / 3
    assert trainer.shadow.verdict() is Verdict.RESTART


def test_loss_and_gain_of_a_choice_are_those_of_the_allowed() -> None:
    scores = np.array([5.0, 1.0, 2.0, 0.0], np.float32)
    offsets = np.array([0.0, 0.0, np.log(3.0), 0.0], np.float32)
    among = Candidates(np.arange(4), np.zeros((4, 1), np.float32), offsets, GROUPS, scores)
    choice = Choice(among, np.array([False, True, True, True]), 1)
    loss, gain = judged(scores, choice)
    assert loss == pytest.approx(np.log(np.exp(1) + 3 * np.exp(2) + 1) - 1, rel=1e-6)
    assert gain == pytest.approx(1 / np.log2(5), rel=1e-6)
