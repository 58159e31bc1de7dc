"""The trainer without Kafka: it learns what the evaluation learns, publishes, and goes on after a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from msgspec.structs import replace

from stream_app.errors import LearningError
from stream_app.evaluation.learned import LearnedRanker
from stream_app.evaluation.log import EvaluationLog
from stream_app.evaluation.prequential import run
from stream_app.evaluation.product import LiveRanker
from stream_app.evaluation.scorer import Scores, Touch, World
from stream_app.interests.contents import IndexedContents
from stream_app.learning.checkpoint import decode
from stream_app.learning.features import BANDS, NAMES
from stream_app.learning.models_record import ONLINE_KEY, RANKER_KEY, Description, description
from stream_app.learning.training import News, Training
from stream_app.settings import Learning, Settings
from tests.evaluation.small_logs import SETTINGS, content, event, fashions, read
from tests.evaluation.test_learned import world_of as world_of_floats

INTERVAL = 60
K = 32
USERS, CONTENTS = 12, 40


@dataclass
class Read:
    """One record as it was consumed."""

    key: bytes | None
    value: bytes | None
    offset: int
    partition: int = 0
    headers: Sequence[tuple[str, bytes]] = ()


class Live:
    """State path and trainer, side by side with the evaluation's ranker."""

    def __init__(self, log: EvaluationLog, world: World, settings: Settings) -> None:
        self._log = log
        self.product = LiveRanker(world, settings, log)
        self.product._publish(int(log.published[0]), int(log.now[0]))
        self.contents = IndexedContents(self.product._index)
        self.settings = replace(self.product._settings, learning=settings.learning)
        self.learned = LearnedRanker(world, settings.interests.recent, settings.learning.neighbours)
        self.training = Training(self.settings, self.contents)
        self.training.begin({0: 0})
        self.published: list[News] = []
        self.offset = 0

    def score(self, now: int, user: int, count: int) -> Scores:
        return self.learned.score(now, user, count)

    def update(self, touch: Touch) -> None:
        self.learned.update(touch)
        self.product.update(touch)
        slab, user = self.product._state.slab, self._log.user_ids[touch.user]
        (value,) = slab.encode(np.array([slab.index[user]]))
        self.training.learn([Read(user, value, self.offset)])
        self.offset += 1
        if self.offset % INTERVAL == 0:
            self.published += self.training.publication(touch.now)

    def settle(self) -> None:
        """Let both learn from the batch that goes on."""
        self.learned.settle()
        with self.contents.still() as index:
            self.training._learn(index)

    def models(self, key: bytes) -> list[tuple[Description, bytes]]:
        """What was published under that key, oldest first."""
        found = [news for news in self.published if (news.topic, news.key) == ("models", key)]
        return [(description(news.headers), news.value or b"") for news in found]


def world_of(log: EvaluationLog) -> World:
    """With vectors as they are published."""
    world = world_of_floats(log)
    return dataclasses.replace(world, vectors=world.vectors.astype(np.float16).astype(np.float32))


def configured(**learning: object) -> Settings:
    given = {"min_steps": 50, "shadow_window": 200, "neighbours": K, "candidates": 5000} | learning
    return replace(
        SETTINGS,
        interests=replace(SETTINGS.interests, recent=64),
        learning=Learning(**given),  # type: ignore[arg-type]  # fields by name
    )


@pytest.fixture(scope="module")
def live() -> Live:
    """A whole log, learned."""
    log = read(fashions(USERS, CONTENTS))
    live = Live(log, world_of(log), configured())
    run(log, live, begin=0.0)
    live.settle()
    return live


def test_the_trainer_learns_what_the_evaluation_learns(live: Live) -> None:
    ours, theirs = live.training._online.trainer.model, live.learned.trainer.model
    assert ours.steps == theirs.steps == USERS * CONTENTS
    for name, parameter in ours.parameters.items():
        np.testing.assert_allclose(parameter, theirs.parameters[name], rtol=1e-3, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-4, atol=1e-4)


def test_versions_rise_by_one_and_the_loss_falls(live: Live) -> None:
    models = live.models(RANKER_KEY)
    assert [said.version for said, _ in models] == list(range(1, len(models) + 1))
    assert len(models) > 3
    losses = [said.loss for said, _ in models]
    assert losses[-1] < 0.8 * losses[0]
    for said, value in models:
        model, _ = decode(value, NAMES, BANDS)
        assert model.steps == said.steps
    states = live.models(ONLINE_KEY)
    assert [said.positions for said, _ in states] == [{0: INTERVAL * (n + 1)} for n in range(len(states))]


def test_after_a_restart_it_goes_on_where_it_stood(live: Live) -> None:
    published = {(news.topic, news.key): news for news in live.published}
    again = Training(live.settings, live.contents)

    def of(topic: str) -> list[Read]:
        return [Read(k, n.value, 0, 0, n.headers) for (t, k), n in published.items() if t == topic]

    again.take_models(of("models"))
    again.take_neighbours(of("co-engagement"))
    (state, _), (newest, _) = live.models(ONLINE_KEY)[-1], live.models(RANKER_KEY)[-1]
    assert again.begin({0: live.offset}) == state.positions == {0: live.offset // INTERVAL * INTERVAL}
    model = again._online.trainer.model
    assert model.steps == state.steps
    assert again._shadow.published is not None
    assert again._shadow.published.steps == newest.steps
    # nothing has been learned since, and so co-engagement is what it was
    if live.offset % INTERVAL == 0:
        np.testing.assert_array_equal(again._followed.together.users, live.training._followed.together.users)
    assert again.publication(1) == []  # nothing is news until something is read


def test_what_the_statistics_hold_already_is_no_step_but_is_engaged_with_together() -> None:
    log = read(fashions(users=6, contents=8))
    live = Live(log, world_of(log), configured())
    live.training = training = Training(live.settings, live.contents)
    training.begin({0: 30})
    run(log, live, begin=0.0, end=30 / len(log))
    live.settle()
    assert training._online.trainer.model.steps == 0
    assert not training._online.counts.engaged_at.any()
    assert training._followed.together.users.sum() == 30
    assert training.positions == {0: 30}


@pytest.mark.parametrize(
    ("key", "value"), [(None, b"x"), (b"", b"x"), (b"\x00slates", b"x"), (b"u0", b""), (b"u0", b"nonsense")]
)
def test_records_that_cannot_be_read_are_skipped(live: Live, key: bytes | None, value: bytes) -> None:
    before = live.training._online.trainer.model.steps
    live.training.learn([Read(key, value, live.offset), Read(b"u0", None, live.offset + 1)])
    assert live.training.positions == {0: live.offset + 2}
    assert live.training._online.trainer.model.steps == before


def test_a_model_that_is_no_number_is_not_published_and_learning_begins_again() -> None:
    log = read(fashions(users=16, contents=12))
    live = Live(log, world_of(log), configured())
    run(log, live, begin=0.0)
    good = len(live.models(RANKER_KEY))
    assert good
    online = live.training._online
    online.trainer.model.parameters["linear"][3] = np.nan
    news = live.training.publication(1)
    assert [one.key for one in news if one.topic == "models"] == [ONLINE_KEY]
    assert all(np.isfinite(p).all() for p in online.trainer.model.parameters.values())
    with pytest.raises(LearningError):
        decode(b"", NAMES, BANDS)


def test_other_models_on_the_topic_are_left_out_but_versions_go_on(live: Live) -> None:
    again = Training(live.settings, live.contents)
    said = Description(41, 5, 1.0, 1, {0: 3})
    again.take_models([Read(RANKER_KEY, b"nonsense", 0, 0, said.headers()), Read(b"other", b"x", 1)])
    again.begin({0: 9})
    assert again.positions == {0: 9}
    assert again._online.trainer.model.steps == 0
    assert again._version == 41


def test_few_candidates_teach_almost_as_much() -> None:
    log = read(fashions(users=7, contents=60))
    live = Live(log, world_of(log), configured(candidates=50))
    assert live.settings.learning.candidates < len(log.catalogue)
    run(log, live, begin=0.0)
    losses = [said.loss for said, _ in live.models(RANKER_KEY)]
    assert losses[-1] < 0.9 * losses[0]


def test_contents_that_are_deleted_are_forgotten_everywhere() -> None:
    records = [content(f"c{i}") for i in range(4)] + [event("first", f"c{i}", 1) for i in range(4)]
    records += [event(f"u{n}", f"c{i}", 2 + 4 * n + i) for n in range(5) for i in range(4)]
    log = read(records)
    live = Live(log, world_of(log), configured())
    run(log, live, begin=0.0)
    live.training.publication(1)
    assert live.training.publication(2) == []
    row = live.contents.index.rows[b"c2"]
    live.contents.index.delete(b"c2")
    news = live.training.publication(2)
    assert [(one.key, one.value) for one in news if one.topic == "co-engagement"] == [(b"c2", None)]
    assert not live.training._online.counts.engaged_at[row]
    assert not (live.training._followed.together.neighbours == row).any()


def test_damaged_records_teach_nothing_impossible(live: Live) -> None:
    """Bytes of good records changed at random: refused, or learned from, and then what is known is sound."""
    random = np.random.default_rng(8)
    slab, online = live.product._state.slab, live.training._online
    good = slab.encode(np.array(sorted(slab.index.values())))
    users = list(slab.index)
    records = []
    for number in range(600):
        value = bytearray(good[number % len(good)])
        # every other one has its header damaged, or its interactions
        places = random.integers(0, 96 if number % 2 else len(value), random.integers(1, 5))
        for place in places.tolist():
            value[place] = random.choice([0, 1, 127, 128, 255, int(random.integers(256))])
        user = b"x%d" % number if number % 3 else users[number % len(users)]
        records.append(Read(user, bytes(value), live.offset + 10 + number))
    for start in range(0, len(records), 50):
        live.training.learn(records[start : start + 50])
    assert np.isfinite(online.counts._engaged).all()
    assert np.isfinite(online.counts._weighted).all()
    assert np.isfinite(online.together.counts).all()
    assert 0 < live.training._stream_time < 4_102_444_800_000
    assert live.training.publication(1)[-1].key == ONLINE_KEY
