"""The softmax ranker: a step helps, a score stands alone, what is not finite gets in nowhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.errors import LearningError
from stream_app.learning import checkpoint
from stream_app.learning.habits import AgeHabits
from stream_app.learning.model import LEAST_VARIANCE, LIMIT, Floats, Listed, Rates, SoftmaxRanker
from stream_app.learning.trainer import DRAWN, HARD, OnlineTrainer

NAMES = ("a", "b", "c", "d")
GROUPS = 5


def some(candidates: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(candidates, len(NAMES))).astype(np.float32)


def trained(steps: int = 30, seed: int = 0, hidden: int = 6, rates: Rates | None = None) -> SoftmaxRanker:
    model = SoftmaxRanker(NAMES, GROUPS, hidden, seed, rates)
    for step in range(steps):
        features = some(20, 100 * seed + step)
        chosen = int(features[:, 0].argmax())
        model.learn([Listed(features, (step % 2, 2 + step % 3), chosen, no_offsets(20))])
    return model


def no_offsets(n: int) -> Floats:
    return np.zeros(n, np.float32)


def loss_of(model: SoftmaxRanker, features: Floats, groups: tuple[int, int], chosen: int) -> float:
    scores = model.score(features, groups).astype(np.float64)
    return float(np.log(np.exp(scores - scores.max()).sum()) - (scores[chosen] - scores.max()))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10_000))
def test_a_step_makes_its_own_choice_likelier(candidates: int, seed: int) -> None:
    # short steps: a long one may go too far for its own list, which is what the next lists are for
    careful = Rates(linear=0.002, groups=0.002, hidden=0.002)
    model = trained(200, rates=careful)
    features, chosen = some(candidates, seed), seed % candidates
    before = loss_of(model, features, (0, 3), chosen)
    listed = Listed(features, (0, 3), chosen, no_offsets(candidates))
    assert model.learn([listed]) == pytest.approx([before], abs=1e-4)
    after = loss_of(model, features, (0, 3), chosen)
    assert after < before if before > 0.01 else after < before + 1e-6


def test_gradients_are_those_of_the_loss() -> None:
    model, twin = trained(), trained()
    features, groups, chosen = some(12, 7), (1, 4), 3
    for squares in twin.squares.values():
        squares[:] = 1e-12  # what is added is the gradient's square
    twin.learn([Listed(features, groups, chosen, no_offsets(12))])
    model.parameters = {name: p.astype(np.float64) for name, p in model.parameters.items()}  # type: ignore[misc]  # exact differences
    for name, parameter in model.parameters.items():
        found = np.zeros_like(parameter)
        for place in np.ndindex(parameter.shape):
            kept = parameter[place]
            parameter[place] = kept + 1e-5
            above = loss_of(model, features, groups, chosen)
            parameter[place] = kept - 1e-5
            found[place] = (above - loss_of(model, features, groups, chosen)) / 2e-5
            parameter[place] = kept
        np.testing.assert_allclose(np.sqrt(twin.squares[name]), np.abs(found), atol=1e-4, err_msg=name)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_a_score_does_not_depend_on_the_other_candidates(candidates: int, seed: int) -> None:
    model, features = trained(), some(candidates, seed)
    order = np.random.default_rng(seed).permutation(candidates)
    scores = model.score(features, (1, 2))
    np.testing.assert_allclose(model.score(features[order], (1, 2)), scores[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.score(features[:1], (1, 2)), scores[:1], rtol=1e-4, atol=1e-5)


def test_scoring_learns_nothing() -> None:
    model = trained()
    before = checkpoint.encode(model, AgeHabits())
    model.score(some(20, 1), (0, 2))
    assert checkpoint.encode(model, AgeHabits()) == before


def test_the_order_of_the_candidates_does_not_matter_to_a_step() -> None:
    features, order = some(30, 3), np.random.default_rng(0).permutation(30)
    one, other = trained(), trained()
    one.learn([Listed(features, (0, 2), 4, no_offsets(30))])
    other.learn([Listed(features[order], (0, 2), int(np.flatnonzero(order == 4)[0]), no_offsets(30))])
    for name, parameter in one.parameters.items():
        np.testing.assert_allclose(other.parameters[name], parameter, atol=1e-4, err_msg=name)


def test_only_the_users_own_groups_learn_from_a_step() -> None:
    model = trained()
    before = model.parameters["groups"].copy()
    model.learn([Listed(some(20, 5), (0, 3), 2, no_offsets(20))])
    moved = (model.parameters["groups"] != before).any(axis=1)
    assert moved.tolist() == [True, False, False, True, False]


def test_groups_come_to_choose_differently() -> None:
    model = SoftmaxRanker(NAMES, GROUPS, 0)
    for step in range(400):
        features = some(20, step)
        group = step % 2
        chosen = int(features[:, 0].argmin() if group else features[:, 0].argmax())
        model.learn([Listed(features, (group, 2), chosen, no_offsets(20))])
    features = some(500, 9)
    for group, sign in ((0, 1), (1, -1)):
        assert np.corrcoef(model.score(features, (group, 2)), features[:, 0])[0, 1] * sign > 0.8


def test_the_hidden_layer_learns_what_no_weight_can_say() -> None:
    def hits(model: SoftmaxRanker) -> float:
        found = []
        for step in range(1500):
            features = some(10, step)
            chosen = int(np.abs(features[:, 1]).argmin())  # the middle is best
            if step >= 1200:
                found.append(model.score(features, (0, 2)).argmax() == chosen)
            model.learn([Listed(features, (0, 2), chosen, no_offsets(10))])
        return float(np.mean(found))

    assert hits(SoftmaxRanker(NAMES, GROUPS, 0)) < 0.25
    assert hits(SoftmaxRanker(NAMES, GROUPS, 16)) > 0.5


def test_what_a_drawn_candidate_stands_for_counts() -> None:
    model, features = trained(), some(3, 4)
    scores = model.score(features, (0, 2)).astype(np.float64)
    offsets = np.log(np.array([7, 1, 1], np.float32))
    expected = np.log((np.exp(scores) * [7, 1, 1]).sum()) - scores[2]
    assert model.learn([Listed(features, (0, 2), 2, offsets)]) == pytest.approx([expected], abs=1e-4)


def lists(count: int, seed: int) -> list[Listed]:
    """Choices of what is largest in feature 0, out of lists of several lengths."""
    found = []
    for number in range(count):
        features = some(8 + number % 5, 1000 * seed + number)
        chosen, groups = int(features[:, 0].argmax()), (number % 2, 2 + number % 3)
        found.append(Listed(features, groups, chosen, no_offsets(len(features))))
    return found


def test_a_step_on_several_lists_adds_up_what_each_says_of_the_model_as_it_was() -> None:
    batch, begun = lists(6, 1), trained()
    alone = []
    for one in batch:
        model = trained()
        model.learn([one])
        alone.append(model)
    model = trained()
    losses = model.learn(batch)
    assert losses == pytest.approx([trained().learn([one])[0] for one in batch], abs=1e-5)
    assert model.steps == begun.steps + 6
    for name, before in begun.parameters.items():
        # each list's own g, as its step shows it
        each = [
            (before - other.parameters[name]) * np.sqrt(other.squares[name]) / other._rates[name]
            for other in alone
        ]
        squares = begun.squares[name] + np.square(sum(each))
        np.testing.assert_allclose(model.squares[name], squares, rtol=1e-2, atol=1e-4, err_msg=name)
        moved = model._rates[name] * sum(each) / np.sqrt(squares)
        np.testing.assert_allclose(model.parameters[name], before - moved, atol=1e-4, err_msg=name)
    # all lists count alike, however long they are
    mean = np.mean([one.features.mean(axis=0) for one in batch], axis=0)
    part = 6 / model.steps
    np.testing.assert_allclose(model.mean, begun.mean + part * (mean - begun.mean), atol=1e-6)


def test_batches_teach_what_as_many_choices_one_by_one_teach() -> None:
    losses = {}
    for size in (1, 16):
        model = SoftmaxRanker(NAMES, GROUPS, 8)
        for number in range(0, 640, size):
            model.learn(lists(size, number))
        losses[size] = np.mean(model.learn(lists(200, 9_999)))
    assert losses[1] < losses[16] < 0.5 * np.log(10)


def test_lists_that_agree_move_a_young_model_no_further_than_one() -> None:
    one = lists(1, 3)[0]
    models = {size: SoftmaxRanker(NAMES, GROUPS, 8) for size in (1, 64)}
    begun = SoftmaxRanker(NAMES, GROUPS, 8)
    for size, model in models.items():
        model.learn([one] * size)
        for name, parameter in model.parameters.items():
            moved = np.abs(parameter - begun.parameters[name]).max()
            assert moved <= model._rates[name] * 1.001, (size, name)


def test_a_list_that_is_refused_costs_the_others_nothing() -> None:
    good, bad = lists(4, 1), lists(1, 2)[0]
    bad.features[3, 1] = np.inf
    trainer = OnlineTrainer(trained())
    outcomes = trainer.learn([*good[:2], bad, *good[2:]])
    assert [isinstance(one, LearningError) for one in outcomes] == [False, False, True, False, False]
    other = OnlineTrainer(trained())
    for one in good:
        other.learn([one])
    assert checkpoint.encode(trainer.model, AgeHabits()) == checkpoint.encode(other.model, AgeHabits())
    assert trainer.loss == other.loss


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_step_that_is_not_finite_changes_nothing(bad: float) -> None:
    model, features = trained(), some(20, 1)
    features[5, 1] = bad
    before = checkpoint.encode(model, AgeHabits())
    with pytest.raises(LearningError, match="feature b"):
        model.learn([Listed(features, (0, 2), 3, no_offsets(20))])
    assert checkpoint.encode(model, AgeHabits()) == before


def test_one_wild_feature_moves_the_hidden_layer_no_further_than_the_limit() -> None:
    model, features = trained(), np.zeros((1, len(NAMES)), np.float32)
    model.parameters["linear"][:] = 0.0
    model.parameters["groups"][:] = 0.0
    edge = model.mean[2] + LIMIT * np.sqrt(model.variance[2] + np.float32(LEAST_VARIANCE))
    features[0, 2] = edge
    expected = model.score(features, (0, 2))
    features[0, 2] = 1000 * edge
    np.testing.assert_allclose(model.score(features, (0, 2)), expected, atol=1e-4)


def choose(trainer: OnlineTrainer, features: Floats, chosen: int) -> float:
    everything = np.ones(len(features), np.bool_)
    scores = trainer.model.score(features, (0, 2))
    (loss,) = trainer.learn([trainer.listed(features, scores, everything, (0, 2), chosen)])
    assert isinstance(loss, float)
    return loss


def test_a_trainer_learns_what_users_choose_and_knows_it() -> None:
    trainer = OnlineTrainer(SoftmaxRanker(NAMES, GROUPS, 8), seed=1)
    first: list[float] = []
    for step in range(600):
        features = some(400, step)
        first.append(choose(trainer, features, int(features[:, 0].argmax())))
    assert trainer.loss is not None
    assert trainer.loss < 0.4 * np.log(400)
    assert np.mean(first[:5]) > 2 * np.mean(first[-100:])
    features = some(400, 1000)
    assert trainer.model.score(features, (0, 2)).argmax() == features[:, 0].argmax()


def test_a_list_holds_the_best_a_sample_of_the_rest_and_the_choice_once() -> None:
    trainer = OnlineTrainer(SoftmaxRanker(NAMES, GROUPS, 8), seed=1)
    random = np.random.default_rng(0)
    scores = random.normal(size=2000).astype(np.float32)
    candidates = random.random(2000) < 0.8
    for chosen in (int(scores.argmax()), int(scores.argmin()), *np.flatnonzero(candidates)[:3].tolist()):
        candidates[chosen] = True
        rows, offsets = trainer._list(scores, candidates, chosen)
        assert len(rows) == len(set(rows.tolist())) == HARD + DRAWN + 1
        assert rows[-1] == chosen
        assert candidates[rows].all()
        others = np.flatnonzero(candidates & (np.arange(2000) != chosen))
        assert set(others[np.argsort(-scores[others])[:HARD]].tolist()) <= set(rows.tolist())
        assert np.exp(offsets).sum() == pytest.approx(candidates.sum(), rel=1e-4)  # the list stands for all


@pytest.mark.parametrize("contents", [1, 2, HARD + DRAWN + 1])
def test_a_short_list_is_taken_whole(contents: int) -> None:
    trainer = OnlineTrainer(SoftmaxRanker(NAMES, GROUPS, 8), seed=1)
    rows, offsets = trainer._list(np.zeros(contents, np.float32), np.ones(contents, np.bool_), 0)
    assert sorted(rows.tolist()) == list(range(contents))
    assert rows[-1] == 0
    assert not offsets.any()
    assert np.isfinite(choose(trainer, some(contents, 0), 0))
