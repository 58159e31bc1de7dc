"""Contents before events: how a log is sent when nothing paces it.

Encoding a text takes longer than everything that an event causes. Were both sent as they come in the
log, most events would arrive before their content has a vector, and wait on the retry topic. So
a log goes out in three parts: contents, each up to its deletion; then, once they are indexed, the
events in order; then the deletions with whatever follows them, once the events are settled.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

from stream_app.content.model import model_id
from stream_app.content.vectors import split_key
from stream_app.errors import StreamAppError
from stream_app.events.dead_letters import PREFIX
from stream_app.hashing import key64, model_code
from stream_app.kafka import clients
from stream_app.replay.follower import Follower
from stream_app.replay.formats import CONTENT_TOPIC, LogRecord
from stream_app.settings import Settings

POLL_S = 0.2
MEMBERS_INTERVAL_S = 3.0
START_WORKER = "no content worker is running: start one with `stream-app worker content`"


def contents(records: Iterable[LogRecord]) -> Iterator[LogRecord]:
    """Every content up to its first deletion."""
    return (record for record, deleted in _contents(records) if not deleted)


def events(records: Iterable[LogRecord]) -> Iterator[LogRecord]:
    """The events."""
    return (record for record in records if record.is_event)


def deletions(records: Iterable[LogRecord]) -> Iterator[LogRecord]:
    """Every content from its first deletion on."""
    return (record for record, deleted in _contents(records) if deleted)


def _contents(records: Iterable[LogRecord]) -> Iterator[tuple[LogRecord, bool]]:
    """Contents, each with whether it has been deleted by now."""
    gone: set[bytes | None] = set()
    for record in records:
        if not record.is_event:
            if record.value is None:
                gone.add(record.key)
            yield record, record.key in gone


class Indexing:
    """Follows which contents the configured encoder has read, or are dead letters, from its creation on."""

    def __init__(self, settings: Settings) -> None:
        """Raises TopicMismatchError, BrokerUnavailableError."""
        self._settings = settings
        self._code = model_code(model_id(settings))
        self._done: set[int] = set()
        topics = (settings.topic_name(name) for name in ("content-vectors", "events-dlq"))
        with contextlib.ExitStack() as opened:
            self._vectors, self._dead_letters = (
                opened.enter_context(contextlib.closing(Follower(settings, topic, from_now=True)))
                for topic in topics
            )
            self._close = opened.pop_all().close

    def wait(self, wanted: set[int], patience_s: float, progress: Callable[[str, float], None]) -> None:
        """Wait until each of these contents (key64 of their ids) is done.

        ``progress`` gets a line and how much is done, 0 to 1. Raises StreamAppError when nothing has
        changed for ``patience_s``.
        """
        changed = asked = time.monotonic()
        running = True
        while left := len(wanted - self._done):
            if self._take_in():
                changed = time.monotonic()
                continue
            now = time.monotonic()
            if now - asked >= MEMBERS_INTERVAL_S or now - changed >= patience_s:
                asked, running = now, self._worker_runs()
            text = f"contents indexed {len(wanted) - left:,} of {len(wanted):,}"
            if not running:
                text += f": {START_WORKER}"
            if now - changed >= patience_s:
                raise StreamAppError(
                    f"{text}; nothing changed for {patience_s:g} s, and no event has been sent"
                    + ("" if not running else ": `stream-app doctor` tells what the worker needs")
                )
            progress(text, 1 - left / len(wanted))
            time.sleep(POLL_S)

    def close(self) -> None:
        """Close the connections."""
        self._close()

    def _take_in(self) -> bool:
        """Whether anything came since the last call."""
        before = len(self._done)
        for record in self._vectors.read():
            place = None if record.key is None else split_key(record.key)
            if place is not None and place.former is None and place.code in (None, self._code):
                self._done.add(key64(place.content_id))
        topic = self._settings.topic_name(CONTENT_TOPIC).encode()
        for letter in self._dead_letters.read():
            if letter.key is not None and dict(letter.headers).get(f"{PREFIX}topic") == topic:
                self._done.add(key64(letter.key))
        return len(self._done) > before

    def _worker_runs(self) -> bool:
        """Whether a content worker, of whatever model, is in its consumer group."""
        prefix = self._settings.group("content") + "-"
        with (
            clients.naming_the_broker(self._settings),
            contextlib.closing(clients.admin_client(self._settings)) as admin,
        ):
            names = [g["group_id"] for g in admin.list_groups() if g["group_id"].startswith(prefix)]
            groups = admin.describe_groups(names).values() if names else ()
            return any(group["members"] for group in groups)
