"""Two ranker processes share the partitions of ``interests``; one takes over from the other."""

from __future__ import annotations

import contextlib
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from stream_app.content import vectors
from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.recommendations.slate import COLD_START_USER, Slate, decode
from stream_app.settings import Settings
from tests.interests.workers import Worker, metric, wait_until
from tests.ranking import ranking_world as world

USERS = 120
CONTENTS = 60


@pytest.fixture
def config(settings: Settings) -> Settings:
    """Four partitions, short vectors, the CPU."""
    settings = msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(settings.kafka, partitions=4, session_timeout_s=6.0),
        content=msgspec.structs.replace(settings.content, dimensions=world.D, capacity=500),
        ranking=msgspec.structs.replace(settings.ranking, device="cpu"),
    )
    create_topics(settings)
    return settings


def port(worker: Worker) -> int:
    found = re.search(r"metrics and health on http://127.0.0.1:(\d+)/", worker.log.read_text())
    return int(found[1]) if found else 0


def ready(worker: Worker) -> bool:
    with contextlib.suppress(urllib.error.HTTPError):
        return port(worker) > 0 and bool(urllib.request.urlopen(f"http://127.0.0.1:{port(worker)}/readyz"))
    return False


def liked(user: int, turn: int) -> int:
    """Number of the content that a user likes in a turn."""
    return (user + 17 * turn) % CONTENTS


def send(config: Settings, turn: int) -> None:
    """Contents before the first turn, then a record of every user."""
    index = world.filled_index(config, CONTENTS, model=model_id(config))
    with contextlib.closing(clients.producer(config)) as producer:
        for id_, row in index.rows.items() if turn == 0 else ():
            vector = index.vectors[row].astype("float16")
            content = ContentVector(index.model, "", int(index.created_at[row]), 0, vector)
            producer.send(config.topic_name("content-vectors"), key=id_, value=vectors.encode(content))
        producer.flush()
        for user in range(USERS):
            id_ = world.content_id(liked(user, turn))
            value = world.interest_record(
                config, index, [world.Engagement(id_, world.NOW)], model=index.model, seen=[id_]
            )
            producer.send(config.topic_name("interests"), key=b"user-%d" % user, value=value)
        producer.flush()


def all_ranked(config: Settings, turn: int) -> bool:
    """Every user's newest slate rests on what the user liked in this turn."""
    newest: dict[bytes, Slate] = {}
    for record in clients.read_topic(config, config.topic_name("recommendations")):
        newest[record.key] = decode(record.value)
    newest.pop(COLD_START_USER, None)
    reasons = {key: slate.items[0].reasons[0].content_id for key, slate in newest.items()}
    return reasons == {
        b"user-%d" % user: world.content_id(liked(user, turn)).decode() for user in range(USERS)
    }


def test_two_rankers_share_the_users_and_one_takes_over(config: Settings, tmp_path: Path) -> None:
    with rankers(tmp_path, first=config, second=config) as (first, second):
        first.start()
        second.start()
        for worker in (first, second):
            wait_until(lambda worker=worker: ready(worker), "readiness", worker.log)
        send(config, 0)
        wait_until(lambda: all_ranked(config, 0), "a slate of every user", first.log)
        shares = [
            metric(port(worker), 'stream_app_ranked_users_total{kind="personal"}')
            for worker in (first, second)
        ]
        assert min(shares) > 0
        assert sum(shares) >= USERS

        assert first.stop() == 0
        send(config, 1)
        wait_until(lambda: all_ranked(config, 1), "a new slate of every user", second.log)
        assert second.stop() == 0


def newest(config: Settings) -> dict[bytes, bytes | None]:
    records = clients.read_topic(config, config.topic_name("recommendations"))
    return {record.key: record.value for record in records}


def erase(config: Settings) -> None:
    """The interests worker's tombstone for every user."""
    with contextlib.closing(clients.producer(config)) as producer:
        for user in range(USERS):
            producer.send(config.topic_name("interests"), key=b"user-%d" % user, value=None)
        producer.flush()


def test_a_ranker_that_was_taken_for_dead_shows_erased_users_nothing(
    config: Settings, tmp_path: Path
) -> None:
    # every user a round, and published whether or not it is news: a long backlog
    short = msgspec.structs.replace(
        config, kafka=msgspec.structs.replace(config.kafka, session_timeout_s=3.0)
    )
    crawling = msgspec.structs.replace(
        short,
        kafka=msgspec.structs.replace(short.kafka, batch_records=1),
        ranking=msgspec.structs.replace(short.ranking, batch_users=1),
        recommendations=msgspec.structs.replace(config.recommendations, skip_unchanged=False),
    )
    with rankers(tmp_path, zombie=crawling, heir=short) as (zombie, heir):
        zombie.start()
        zombie.wait_for("serving 4 partitions")
        for turn in range(10):
            send(config, turn)
        wait_until(lambda: len(newest(config)) > 10, "the first slates", zombie.log)
        zombie.signal(signal.SIGSTOP)  # in the middle of its backlog
        heir.start()
        heir.wait_for("serving 4 partitions")  # the zombie's session has timed out
        erase(config)

        def all_gone() -> bool:
            slates = newest(config)
            return all(b"user-%d" % u in slates and slates[b"user-%d" % u] is None for u in range(USERS))

        wait_until(all_gone, "every slate to be withdrawn", heir.log)
        zombie.signal(signal.SIGCONT)
        # refused by the broker; a rebalance that comes first cuts off who would say so in words
        zombie.wait_for("another worker owns this partition now", "ProducerFenced")
        zombie.wait_for("serving 2 partitions")
        assert all_gone()
        assert zombie.stop() == 0
        assert heir.stop() == 0


@contextlib.contextmanager
def rankers(directory: Path, **configs: Settings) -> Iterator[list[Worker]]:
    """Workers that are yet to be started, gone at the end."""
    made = [Worker(config, name, directory, "ranker") for name, config in configs.items()]
    try:
        yield made
    finally:
        for worker in made:
            with contextlib.suppress(AttributeError):  # one that was not started
                worker.signal(signal.SIGCONT)
                worker.kill()
