"""Batches are the log's: however it is read, the trainer learns the same, and what the evaluation learns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from stream_app.evaluation.log import EvaluationLog
from stream_app.evaluation.prequential import run
from stream_app.evaluation.scorer import Touch
from stream_app.learning.online import SAMPLE
from stream_app.learning.training import Training
from tests.evaluation.small_logs import content, event, read
from tests.learning.test_training import Live, Read, configured, world_of

USERS, CONTENTS, A_SECOND, SECONDS = 30, 40, 25, 30


def crowd() -> EvaluationLog:
    """So many engagements a second, each with something new to its user."""
    random = np.random.default_rng(4)
    records = [content(f"c{i}") for i in range(CONTENTS)]
    records += [event("publisher", f"c{i}", i) for i in range(CONTENTS)]
    pairs = random.permutation(USERS * CONTENTS)[: A_SECOND * SECONDS].tolist()
    for number, pair in enumerate(pairs):
        minute = CONTENTS + number / A_SECOND / 60
        records.append(event(f"u{pair % USERS}", f"c{pair // USERS}", minute))
    return read(records)


class Collected(Live):
    """The state path and the evaluation's ranker; records for the trainer are kept."""

    def __init__(self, log: EvaluationLog) -> None:
        super().__init__(log, world_of(log), configured())
        self.records: list[Read] = []

    def update(self, touch: Touch) -> None:
        self.learned.update(touch)
        self.product.update(touch)
        slab, user = self.product._state.slab, self._log.user_ids[touch.user]
        (value,) = slab.encode(np.array([slab.index[user]]))
        self.records.append(Read(user, value, len(self.records)))

    def taught(self, sizes: Sequence[int]) -> Training:
        """A trainer that got the records in turns of these sizes, over and over."""
        training, at, turn = Training(self.settings, self.contents), 0, 0
        training.begin({0: 0})
        while at < len(self.records):
            size = sizes[turn % len(sizes)]
            training.learn(self.records[at : at + size])
            at, turn = at + size, turn + 1
        training.publication(1)
        return training


@pytest.fixture(scope="module")
def collected() -> Collected:
    """A whole log, learned by the evaluation."""
    log = crowd()
    live = Collected(log)
    run(log, live, begin=0.0)
    live.learned.settle()
    return live


@pytest.mark.parametrize("sizes", [[1], [7, 1, 30], [10_000]])
def test_the_same_is_learned_however_the_log_is_read(collected: Collected, sizes: list[int]) -> None:
    one, other = collected.taught([100]), collected.taught(sizes)
    ours, theirs = one._online, other._online
    assert SECONDS * SAMPLE * 0.9 < ours.trainer.model.steps <= SECONDS * SAMPLE
    for name, parameter in ours.trainer.model.parameters.items():
        np.testing.assert_array_equal(parameter, theirs.trainer.model.parameters[name], err_msg=name)
    np.testing.assert_array_equal(ours.together.counts, theirs.together.counts)
    np.testing.assert_array_equal(ours.counts._engaged, theirs.counts._engaged)
    assert one.positions == other.positions == {0: len(collected.records)}
    assert ours.together.users.sum() == len(collected.records)


def test_the_evaluation_learns_it_too(collected: Collected) -> None:
    ours, theirs = collected.taught([100])._online.trainer.model, collected.learned.trainer.model
    assert ours.steps == theirs.steps
    for name, parameter in ours.parameters.items():
        np.testing.assert_allclose(parameter, theirs.parameters[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_what_is_published_has_learned_from_all_that_was_read(collected: Collected) -> None:
    training = Training(collected.settings, collected.contents)
    training.begin({0: 0})
    training.learn(collected.records[: CONTENTS + 5])
    assert training._online.together.users.sum() < CONTENTS + 5  # the batch waits for the rest of its second
    training.publication(1)
    assert training._online.together.users.sum() == CONTENTS + 5


def test_a_content_that_leaves_while_its_batch_waits_teaches_nothing() -> None:
    log = crowd()
    live = Collected(log)
    run(log, live, begin=0.0, end=(CONTENTS + 5) / len(log))
    training = Training(live.settings, live.contents)
    training.begin({0: 0})
    training.learn(live.records)
    last = log.catalogue.ids[int(log.contents[CONTENTS + 4])]
    with live.contents.still() as index:
        row = index.rows[last]
        index.delete(last)
    training.publication(1)
    assert training._online.together.users[row] == 0
    assert training._online.trainer.model.steps < 5
