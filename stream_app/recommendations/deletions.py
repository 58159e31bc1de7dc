"""Deleted contents leave every slate: whoever was shown one gets a slate without it.

The numbered steps, all in one background task:

1. a partition that has come to this ranker: read what its users are shown (``recommendations``, once);
2. contents that were deleted while nobody looked: of those that are shown but not in the index, the ones
   that no longer stand on ``content-vectors``. (The others have expired, or wait for a new encoder.);
3. whose slates name a deleted content? The ledger knows; for a partition that it could not remember whole,
   ``recommendations`` is searched;
4. look up those users' records on ``interests`` (a ranker keeps none), in one scan for all of them;
5. rank and publish them, like any others, in the transactions of their partitions. Whoever has been
   ranked meanwhile is left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Sequence

import msgspec

from stream_app.content.index import ContentIndex
from stream_app.content.vectors import VectorKey, split_key
from stream_app.hashing import key64, model_code
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.fenced import FencedPartitions
from stream_app.kafka.once import read_once
from stream_app.kafka.partitions import partition_of
from stream_app.kafka.records import Record
from stream_app.observability import metrics
from stream_app.recommendations.ledger import SlateLedger
from stream_app.recommendations.pipeline import COLD_START_PARTITION, RankerPipeline
from stream_app.recommendations.slate import COLD_START_USER, content_keys, decode_shown, fingerprint
from stream_app.settings import Settings

log = logging.getLogger(__name__)

RETRY_S = 1.0
AT_ONCE = 5_000
"""Users whose records one scan may hold: some 25 MB with 256 seen contents each."""

Seen = tuple[bytes, int, tuple[int, list[int]] | None]
"""user, partition of ``interests``, and mark and content keys of the slate; None for a withdrawn one"""


class DeletedContents:
    """Finds the slates that name deleted contents and has them made anew."""

    def __init__(
        self,
        settings: Settings,
        index: ContentIndex,
        ledger: SlateLedger,
        partitions: FencedPartitions,
        pipeline: RankerPipeline,
    ) -> None:
        self._settings = settings
        self._index = index
        self._ledger = ledger
        self._partitions = partitions
        self._pipeline = pipeline
        self._batch_users = settings.ranking.batch_users
        self._code = model_code(index.model)
        self._deleted: set[int] = set()  # keys of contents whose slates are yet to be looked for
        self._missing: set[int] = set()  # shown, but not in the index: deleted or expired
        self._wake = asyncio.Event()

    def learn(self, records: Sequence[Record]) -> None:
        """Take note of the deletions among records of ``content-vectors`` that the index has applied."""
        if not self._partitions.sound:
            return  # step 2 finds these, for whichever partition comes
        deleted = [
            key64(place.content_id)
            for r in records
            if r.value is None and r.key is not None and (place := self._place(r.key)) is not None
        ]
        if deleted:
            self._deleted.update(deleted)
            self._wake.set()

    def look(self) -> None:
        """Partitions have come to this ranker."""
        self._wake.set()

    async def run(self) -> None:
        """For ever. What the broker prevents is tried again; any other error is raised."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            deleted, self._deleted = self._deleted, set()
            try:
                await self._fill()
                deleted |= await self._gone()
                await self._renew(deleted)
            except KafkaError as error:
                log.warning("slates of deleted contents wait: %r", error)
                self._deleted |= deleted
                self._wake.set()
                await asyncio.sleep(RETRY_S)

    async def _fill(self) -> None:
        """1. What is shown to the users of partitions that are new here."""
        terms = self._ledger.unfilled(self._partitions.sound)
        if not terms:
            return

        async def apply(records: Sequence[Record]) -> None:
            for user, partition, slate in await asyncio.to_thread(self._read, records):
                self._ledger.fill(terms, user, partition, slate)
                if slate is not None and partition in terms:
                    self._missing.update(key for key in slate[1] if self._index.row_of_key(key) is None)

        await read_once(self._settings, self._settings.topic_name("recommendations"), apply)
        self._ledger.filled(terms)
        log.info("%d users' slates are known, of %d new partitions", len(self._ledger), len(terms))

    async def _gone(self) -> set[int]:
        """2. Those of the missing contents that do not stand on ``content-vectors`` any more."""
        missing = self._missing
        if not missing:
            return set()
        standing: set[tuple[int, bytes]] = set()

        async def apply(records: Sequence[Record]) -> None:
            for record in records:
                if (name := record.key) is None or (place := split_key(name)) is None:
                    continue
                if place.former is None and (key := key64(place.content_id)) in missing:
                    (standing.discard if record.value is None else standing.add)((key, name))

        await read_once(self._settings, self._settings.topic_name("content-vectors"), apply)
        self._missing = set()
        return missing - {key for key, _ in standing}

    def _place(self, key: bytes) -> VectorKey | None:
        """Whose record the key is of, where it is one that the index holds."""
        place = split_key(key)
        wanted = place is not None and place.former is None and place.code in (None, self._code)
        return place if wanted else None

    async def _renew(self, deleted: set[int]) -> None:
        while deleted := {key for key in deleted if self._index.row_of_key(key) is None}:
            users = await self._affected(deleted)
            if not users:
                return
            await self._renew_users(users)

    async def _affected(self, deleted: set[int]) -> dict[bytes, int]:
        """3. user → partition of at most ``AT_ONCE`` users who are shown any of these contents."""
        # then what was on its way to the topic is in the ledger, and what comes names none of them
        await self._pipeline.published()
        named = await self._ledger.naming(deleted)
        sound = self._partitions.sound
        found = {user: partition for user, partition in named.items() if partition in sound}
        incomplete = self._ledger.incomplete & sound
        if not found and incomplete:
            metrics.LEDGER_SEARCHES.inc()
            found = await self._search(deleted, incomplete)
        return dict(list(found.items())[:AT_ONCE])

    async def _search(self, deleted: set[int], partitions: Collection[int]) -> dict[bytes, int]:
        """3. The same for these partitions, by what stands on ``recommendations``."""
        found: dict[bytes, int] = {}

        async def apply(records: Sequence[Record]) -> None:
            for user, partition, slate in await asyncio.to_thread(self._read, records):
                if partition not in partitions or slate is None or deleted.isdisjoint(slate[1]):
                    found.pop(user, None)
                elif len(found) < AT_ONCE:
                    found[user] = partition

        await read_once(self._settings, self._settings.topic_name("recommendations"), apply)
        return found

    async def _renew_users(self, users: dict[bytes, int]) -> None:
        self._ledger.outdated = wanted = dict(users)  # whoever gets another slate leaves it
        found: dict[bytes, tuple[int, bytes | None]] = {user: (p, None) for user, p in users.items()}
        if found.pop(COLD_START_USER, None) is not None:
            await self._pipeline.renew_cold_start()
        if found:  # 4.
            await self._look_up(found)
        for chunk in self._chunks(list(found)):  # 5.
            await self._pipeline.renew({user: found[user] for user in chunk}, wanted)
        self._ledger.outdated = {}
        metrics.SLATES_RENEWED.inc(len(users))
        log.info("%d slates named deleted contents and were made anew", len(users))

    async def _look_up(self, found: dict[bytes, tuple[int, bytes | None]]) -> None:
        """4. Put in the users' newest records."""

        async def apply(records: Sequence[Record]) -> None:
            for record in records:
                if record.key in found:
                    found[record.key] = (record.partition, record.value)

        topic = self._settings.topic_name("interests")
        await read_once(self._settings, topic, apply, {partition for partition, _ in found.values()})

    def _chunks(self, users: list[bytes]) -> Iterator[list[bytes]]:
        """Small enough for what comes meanwhile not to wait long."""
        for start in range(0, len(users), self._batch_users):
            yield users[start : start + self._batch_users]

    def _read(self, records: Sequence[Record]) -> list[Seen]:
        """Records of ``recommendations``; those that are no slate count as none."""
        return [seen for record in records if (seen := self._read_one(record)) is not None]

    def _read_one(self, record: Record) -> Seen | None:
        user, partitions = record.key, self._settings.kafka.partitions
        if user is None:
            return None
        partition = COLD_START_PARTITION if user == COLD_START_USER else partition_of(user, partitions)
        if record.value is None:
            return user, partition, None
        try:
            shown = decode_shown(record.value)
        except msgspec.DecodeError:
            metrics.RANKER_REJECTED.labels("recommendations").inc()
            return user, partition, None
        if shown.caused_by is not None and shown.caused_by.partition < partitions:
            # a user's events and record share a partition's number, whatever partitioner chose it
            partition = shown.caused_by.partition
        return user, partition, (fingerprint(shown.items), content_keys(shown))
