"""``stream-app dlq redrive``: dead letters get a second chance, each at most once.

1. fence: initialising the transactional id ends a rival, and aborts what a killed one left open;
2. survey: which letters had their chance (nobody else can mark one from here on);
3. in chunks, one transaction each: the copies to be tried, and a mark beside each letter.

Killed anywhere, a chunk has happened or it has not; the same command again goes on after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from stream_app.commands.dlq_letters import Selection, no_letter, read_letters
from stream_app.errors import FencedError, TopicMismatchError, TransactionError
from stream_app.events.redrive import (
    CONTENT_TOPIC,
    DLQ_TOPIC,
    ContentKey,
    Refusal,
    SecondChances,
    is_mark,
    mark_in,
    mark_of,
)
from stream_app.hashing import key64
from stream_app.kafka import clients
from stream_app.kafka.transactions import Output, Transactions
from stream_app.replay.follower import Follower
from stream_app.settings import Settings
from stream_app.topics import RETRY_TOPIC

CHUNK_LETTERS = 500
CHUNK_BYTES = 4_000_000
"""Bounds of one transaction: it stays far below ``kafka.transaction_timeout_s``."""

Refused = Callable[[Any, Refusal], None]
Progress = Callable[[str], None]


class Summary(msgspec.Struct, kw_only=True):
    """What became of the letters that were asked for; what ``--json`` prints."""

    redriven: int = 0
    """Given a second chance; with ``dry_run``: would be given one."""
    redriven_before: int = 0
    """Had it already."""
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    """By code of :class:`Refusal`."""
    dry_run: bool = False

    @property
    def letters(self) -> int:
        """All that were asked for and looked at."""
        return self.redriven + self.redriven_before + sum(self.refused.values())


def redrive(
    settings: Settings,
    selection: Selection,
    *,
    limit: int | None,
    dry_run: bool,
    refused: Refused,
    progress: Progress,
) -> Summary:
    """Redrive what is selected, at most ``limit`` letters of it; ``refused`` is told of each refusal.

    Raises StreamAppError when a letter named by its place is not there, FencedError when another
    redrive was started meanwhile, TransactionError, BrokerUnavailableError, TopicMismatchError.
    """
    chances = SecondChances(settings, _partition_counts(settings))
    with _commits(settings, dry_run=dry_run) as commit:  # 1. fence
        survey = Survey(settings, selection, chances)  # 2. what has happened before
        with contextlib.closing(_NewestContents(settings, survey)) as newest:
            fates = _Fates(chances, survey, newest, refused, Summary(dry_run=dry_run))
            outputs: list[Output] = []
            size = 0
            for letter in read_letters(settings, selection):
                if fates.summary.redriven == limit:
                    break
                if letter.offset >= survey.ends.get(letter.partition, 0):
                    continue
                outputs += fates.outputs(letter)
                size += len(letter.value or b"")
                if len(outputs) >= 2 * CHUNK_LETTERS or size > CHUNK_BYTES:
                    commit(outputs)  # 3. copies and marks, all or nothing
                    outputs, size = [], 0
                    newest.catch_up()
                    progress(f"{fates.summary.letters:,} letters, {fates.summary.redriven:,} redriven")
            commit(outputs)
    return fates.summary


class Survey:
    """What one look at all dead letters tells before the first is redriven."""

    def __init__(self, settings: Settings, selection: Selection, chances: SecondChances) -> None:
        """Raises StreamAppError when a letter named by its place is not there."""
        self.marks: set[int] = set()
        """Names of the letters that had their second chance."""
        self.ends: dict[int, int] = {}
        """Partition → offset after the last record; what comes later is not looked at."""
        self.contents: set[ContentKey] = set()
        """Of the selected letters that would go back to ``content``."""
        missing = set(selection.places)
        for record in clients.read_topic(settings, settings.topic_name(DLQ_TOPIC)):
            self.ends[record.partition] = record.offset + 1
            if is_mark(record):
                self.marks.add(mark_in(record))
            elif selection.has(record):
                missing.discard((record.partition, record.offset))
                if (key := chances.content_key(record)) is not None:
                    self.contents.add(key)
        for place in sorted(missing):
            raise no_letter(settings, *place)


class _Fates:
    """What becomes of each letter; keeps the accounts."""

    def __init__(
        self,
        chances: SecondChances,
        survey: Survey,
        newest: _NewestContents,
        refused: Refused,
        summary: Summary,
    ) -> None:
        self._chances, self._survey, self._newest, self._refused = chances, survey, newest, refused
        self.summary = summary

    def outputs(self, letter: Any) -> tuple[Output, ...]:
        """What has to be produced for a letter: nothing, or its copy and its mark."""
        summary, name = self.summary, mark_of(letter)
        if name in self._survey.marks:
            summary.redriven_before += 1
            return ()
        refusal = self._chances.refusal(letter, self._newest.offset(self._chances.content_key(letter)))
        if name is None or refusal is not None:
            code = refusal or Refusal.NO_ORIGIN
            summary.refused[code.value] = summary.refused.get(code.value, 0) + 1
            self._refused(letter, code)
            return ()
        self._survey.marks.add(name)  # it may have been written twice
        summary.redriven += 1
        return self._chances.outputs(letter, time.time_ns() // 1_000_000)


@contextlib.contextmanager
def _commits(settings: Settings, *, dry_run: bool) -> Iterator[Callable[[list[Output]], None]]:
    """Commits lists of outputs; a dry run commits nothing, and does not stop a redrive that runs."""
    if dry_run:
        yield lambda _outputs: None
        return
    with asyncio.Runner() as runner:

        async def opened() -> Transactions:
            made = Transactions(
                settings, f"{settings.kafka.app_id}-dlq-redrive", settings.group("dlq-redrive")
            )
            await made.fence(settings.topic_name(t) for t in (RETRY_TOPIC, CONTENT_TOPIC, DLQ_TOPIC))
            return made

        transactions = runner.run(opened())

        def commit(outputs: list[Output]) -> None:
            if not outputs:
                return
            try:
                runner.run(transactions.commit(outputs, {}))
            except FencedError:
                raise FencedError(
                    "another `dlq redrive` was started and has taken over; what this one had not done "
                    "yet is left to it"
                ) from None
            except TransactionError as error:
                raise TransactionError(
                    f"{error}; run the same command again: no letter is redriven twice"
                ) from error

        try:
            yield commit
        finally:
            runner.run(transactions.close())


def _partition_counts(settings: Settings) -> dict[str, int]:
    """Partitions of the topics that copies go to. Raises TopicMismatchError when one is missing."""
    counts = {}
    with contextlib.closing(clients.consumer(settings)) as client, clients.naming_the_broker(settings):
        for topic in map(settings.topic_name, (RETRY_TOPIC, CONTENT_TOPIC)):
            counts[topic] = len(client.partitions_for_topic(topic) or ())
            if not counts[topic]:
                raise TopicMismatchError(
                    f"topic {topic} does not exist: create it with `stream-app topics --create`"
                )
    return counts


class _NewestContents:
    """Offsets of the newest records on ``content`` of those keys that selected letters have."""

    def __init__(self, settings: Settings, survey: Survey) -> None:
        self._offsets = dict.fromkeys(survey.contents, -1)
        self._follower = Follower(settings, settings.topic_name(CONTENT_TOPIC)) if survey.contents else None
        self.catch_up()

    def catch_up(self) -> None:
        """Read up to the end that ``content`` has now."""
        if self._follower is not None:
            for record in self._follower.read():
                key = (record.partition, key64(record.key or b""))
                if key in self._offsets:
                    self._offsets[key] = record.offset

    def offset(self, key: ContentKey | None) -> int:
        """Of the newest record with a letter's key, where it first arrived; -1 when there is none."""
        return -1 if key is None else self._offsets.get(key, -1)

    def close(self) -> None:
        """Close the connection."""
        if self._follower is not None:
            self._follower.close()
