"""The trainer as a process: models appear and get better, only one trainer writes, nothing is lost."""

from __future__ import annotations

import contextlib
import itertools
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest

from stream_app.content.vectors import ContentVector, encode
from stream_app.evaluation.log import EvaluationLog
from stream_app.evaluation.prequential import run
from stream_app.evaluation.product import LiveRanker
from stream_app.evaluation.scorer import Scores, Touch
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import free_port
from stream_app.learning.checkpoint import decode
from stream_app.learning.features import BANDS, NAMES
from stream_app.learning.models_record import ONLINE_KEY, RANKER_KEY, Description, description
from stream_app.learning.neighbours_record import decode as decode_neighbours
from stream_app.settings import Learning, Settings
from tests.evaluation.small_logs import SETTINGS, fashions, read
from tests.evaluation.test_learned import world_of
from tests.interests.workers import Worker, metric, wait_until

USERS, CONTENTS = 12, 40
TOUCHES = USERS * CONTENTS
BEGUN = "learning goes on after"
replace = msgspec.structs.replace

Stream = list[tuple[bytes, bytes]]


class Recorder:
    """The state path: notes the records that each event leads to, on interests and on content-stats."""

    def __init__(self, log: EvaluationLog, settings: Settings) -> None:
        self._log = log
        self.product = LiveRanker(world_of(log), settings, log)
        self.product._statistics = self  # type: ignore[assignment]  # takes what they are told
        self.stream: Stream = []
        self.statistics: list[Stream] = []

    def score(self, now: int, user: int, count: int) -> Scores:
        return np.zeros(count)

    def apply(self, records: Stream) -> None:
        self.statistics.append([(key, value) for key, value in records if not key.startswith(b"\0")])

    def update(self, touch: Touch) -> None:
        self.product.update(touch)
        slab, user = self.product._state.slab, self._log.user_ids[touch.user]
        self.stream.append((user, slab.encode(np.array([slab.index[user]]))[0]))


@pytest.fixture
def configured(settings: Settings) -> Settings:
    return replace(
        settings,
        kafka=replace(settings.kafka, session_timeout_s=3.0, partitions=1),
        events=SETTINGS.events,
        content=replace(settings.content, dimensions=8),
        learning=Learning(publish_interval_s=0.5, min_steps=40, shadow_window=100, neighbours=16),
        observability=replace(settings.observability, port=free_port()),
    )


@pytest.fixture
def recorded(configured: Settings) -> Recorder:
    """Records of a whole log; topics are there, and contents are published."""
    create_topics(configured)
    log = read(fashions(USERS, CONTENTS))
    recorder = Recorder(log, configured)
    run(log, recorder, begin=1.0)
    index = recorder.product._index
    with clients.producer(configured) as producer:
        for content_id, row in index.rows.items():
            at = int(index.created_at[row])
            vector = ContentVector(index.model, "", at, at, index.vectors[row].astype(np.float16))
            producer.send(configured.topic_name("content-vectors"), key=content_id, value=encode(vector))
    return recorder


def produce(settings: Settings, stream: Stream, topic: str = "interests") -> None:
    with clients.producer(settings) as producer:
        for key, value in stream:
            producer.send(settings.topic_name(topic), key=key, value=value, partition=0)


def feed(settings: Settings, recorded: Recorder, start: int, end: int) -> None:
    """These events' records, statistics first: nobody may learn from what is counted already."""
    counts = [record for records in recorded.statistics[start:end] for record in records]
    produce(settings, counts, "content-stats")
    produce(settings, recorded.stream[start:end])


def show(settings: Settings, recorded: Recorder, start: int, end: int) -> Stream:
    """Impressions of what these events are about, a second before, above another content."""
    log, found = recorded._log, []
    for place in range(start, end):
        user, content = log.user_ids[log.users[place]], int(log.contents[place])
        items = [f"c{content}", f"c{(content + 1) % CONTENTS}"]
        report = {"user_id": user.decode(), "items": items, "shown_at": int(log.times[place]) - 1000}
        found.append((user, msgspec.json.encode(report)))
    produce(settings, [(b"u1", b"nonsense"), *found], "impressions")
    return found


def models(settings: Settings, key: bytes) -> list[tuple[Description, bytes]]:
    """All that ever stood under that key, oldest first."""
    topic = settings.topic_name("models")
    return [
        (description(record.headers), record.value)
        for record in clients.read_topic(settings, topic)
        if record.key == key
    ]


def state(settings: Settings) -> Description:
    """Where learning stands."""
    found = models(settings, ONLINE_KEY)
    return found[-1][0] if found else Description(0, 0, 0.0, 0, {0: 0})


def wait_for_position(settings: Settings, position: int, log: Path) -> Description:
    wait_until(lambda: state(settings).positions == {0: position}, f"position {position} published", log)
    return state(settings)


def check_models(settings: Settings) -> None:
    """Whoever wrote them: versions rise by one, steps never fall, and each can be read."""
    published = models(settings, RANKER_KEY)
    assert [said.version for said, _ in published] == list(range(1, len(published) + 1))
    for said, value in published:
        model, _ = decode(value, NAMES, BANDS)
        assert model.steps == said.steps
        assert all(np.isfinite(parameter).all() for parameter in model.parameters.values())
    for (earlier, _), (later, _) in itertools.pairwise(models(settings, ONLINE_KEY)):
        assert later.steps >= earlier.steps
        assert later.positions[0] >= earlier.positions[0]
        assert later.created_at > earlier.created_at


def test_models_get_better_and_a_restart_goes_on(
    configured: Settings, recorded: Recorder, tmp_path: Path
) -> None:
    stream = recorded.stream
    trainer = Worker(configured, "trainer", tmp_path, "trainer")
    half = len(stream) // 2
    try:
        trainer.start()
        trainer.wait_for(BEGUN)
        for start in range(0, half, 60):  # so that there is something to publish in between
            feed(configured, recorded, start, min(start + 60, half))
            wait_for_position(configured, min(start + 60, half), trainer.log)
        bad = [(b"u1", b"nonsense"), (b"\x00slates", stream[0][1]), (b"u1", stream[half][1][:100])]
        produce(configured, bad)
        wait_for_position(configured, half + 3, trainer.log)
        port = configured.observability.port
        assert metric(port, 'stream_app_trainer_rejected_total{topic="interests"}') == 3
        before = state(configured)
        assert metric(port, "stream_app_trainer_steps_total") == before.steps == half - CONTENTS
        assert metric(port, "stream_app_trainer_version") == before.version
        assert trainer.stop() == 0
        losses = [said.loss for said, _ in models(configured, RANKER_KEY)]
        assert len(losses) > 2
        assert losses[-1] < 0.9 * losses[0]

        # what comes while nobody learns is no step: its counts are there when learning goes on
        feed(configured, recorded, half, half + 20)
        trainer.start()
        trainer.wait_for(f"{BEGUN} {before.steps} steps, at version {before.version}")
        after = wait_for_position(configured, half + 23, trainer.log)
        assert after.steps == before.steps
        shown = show(configured, recorded, half + 20, len(stream))
        taken = 'stream_app_impressions_total{outcome="taken",role="trainer"}'
        wait_until(lambda: metric(port, taken) == len(shown), "impressions taken", trainer.log)
        feed(configured, recorded, half + 20, len(stream))
        end = wait_for_position(configured, len(stream) + 3, trainer.log)
        assert end.steps == before.steps + len(stream) - half - 20
        assert metric(port, "stream_app_trainer_shown_steps_total") == len(shown)
        assert metric(port, 'stream_app_impressions_total{outcome="malformed_json",role="trainer"}') == 1
        assert trainer.stop() == 0
        check_models(configured)
        neighbours = {
            record.key: decode_neighbours(record.value)
            for record in clients.read_topic(configured, configured.topic_name("co-engagement"))
        }
        assert len(neighbours) == CONTENTS
        # publisher and users, each once: no record was taken twice, and none was missed
        assert {found.users for found in neighbours.values()} == {USERS + 1}
        assert "Traceback" not in trainer.log.read_text()
    finally:
        with contextlib.suppress(AttributeError):
            trainer.kill()


def test_only_one_trainer_writes_and_another_takes_over(
    configured: Settings, recorded: Recorder, tmp_path: Path
) -> None:
    # one publishes only when it gives its partition up: what it has learned is at hand when it wakes up,
    # whatever comes first then
    silent = replace(configured.learning, publish_interval_s=3600.0)
    one = Worker(replace(configured, learning=silent), "one", tmp_path, "trainer")
    others_port = replace(configured.observability, port=free_port())
    other = Worker(replace(configured, observability=others_port), "other", tmp_path, "trainer")
    total = len(recorded.stream)
    third, half, most = total // 3, total // 2, total * 2 // 3

    def its_steps() -> float:
        return metric(configured.observability.port, "stream_app_trainer_steps_total")

    try:
        other.start()
        other.wait_for(BEGUN)
        feed(configured, recorded, 0, third)
        before = wait_for_position(configured, third, other.log)
        assert other.stop() == 0
        assert before.steps == third - CONTENTS

        one.start()
        one.wait_for(f"{BEGUN} {before.steps} steps")
        feed(configured, recorded, third, half)
        # the last engagement waits for the rest of its second
        wait_until(lambda: its_steps() == half - third - 1, "what only the first one learns", one.log)
        one.signal(signal.SIGSTOP)  # taken for dead
        assert state(configured) == before
        other.start()
        wait_until(lambda: other.log.read_text().count(BEGUN) == 2, "the other one again", other.log)
        feed(configured, recorded, half, most)
        after = wait_for_position(configured, most, other.log)
        one.signal(signal.SIGCONT)
        one.wait_for("another worker owns this partition now")
        assert state(configured).steps == after.steps
        other.kill()
        wait_until(lambda: one.log.read_text().count(BEGUN) == 2, "the first one again", one.log)
        so_far = its_steps()  # more than before, where it got to read on before it was refused
        feed(configured, recorded, most, total)
        wait_until(lambda: its_steps() >= so_far + total - most - 1, "the rest learned", one.log)
        assert one.stop() == 0
        end = state(configured)
        assert end.positions == {0: total}
        assert end.steps == TOUCHES - (half - third)  # of what it learned in vain, nobody learned again
        check_models(configured)
    finally:
        for worker in (one, other):
            with contextlib.suppress(AttributeError):
                worker.signal(signal.SIGCONT)
                worker.kill()
