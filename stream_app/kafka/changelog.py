"""Reads one partition of a compacted topic in record batches: recovery to its end, standbys for ever."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaTimeoutError

from stream_app.errors import UnreadableStateError
from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.disconnect import disconnect
from stream_app.kafka.positions import positions
from stream_app.kafka.records import KeyedRecord, Partition
from stream_app.kafka.stable_end import high_watermark
from stream_app.kafka.unreadable import UnreadableRange
from stream_app.observability import metrics
from stream_app.settings import Settings

log = logging.getLogger(__name__)

BATCH_RECORDS = 4_000
FETCH_BYTES = 4 << 20
"""Larger answers cost a fifth more processor time a record: their buffers are new memory each time."""

POLL_MS = 100
PROGRESS_S = 5.0

Apply = Callable[[Sequence[KeyedRecord], int], Awaitable[None]]
"""Takes records and the position after them."""


class ChangelogReader:
    """Reads committed records of one partition from a position on.

    One that gives nothing for ``kafka.request_timeout_s`` although there is something to read raises
    KafkaTimeoutError: a new reader may do better. A range that cannot be read raises UnreadableStateError:
    what is rebuilt from the rest would be wrong.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        partition: int,
        moved: Callable[[], None] = lambda: None,
        *,
        partial: bool = False,
    ) -> None:
        """``moved`` is called whenever the way to the end has become shorter. With ``partial`` a range that
        cannot be read is passed over."""
        self._moved = moved
        self._partial = partial
        self._patience_s = settings.kafka.request_timeout_s
        self._decision_s = settings.kafka.transaction_timeout_s
        self._tp = Partition(topic, partition)
        self._consumer = AIOKafkaConsumer(
            **aiokafka_options(settings, f"{settings.kafka.app_id}-changelog"),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=POLL_MS,
            max_partition_fetch_bytes=min(settings.kafka.fetch_max_bytes, FETCH_BYTES),
            check_crcs=settings.kafka.batch_max_bytes,
        )

    async def start(self, position: int) -> bool:
        """Connect and go to ``position``. Returns False, having gone to the beginning instead, when
        the topic no longer reaches that far (it was deleted and made again)."""
        await self._consumer.start()
        self._consumer.assign([self._tp])
        beginning = (await self._consumer.beginning_offsets([self._tp]))[self._tp]
        end = await self.end()
        known = beginning <= position <= end
        self._consumer.seek(self._tp, position if known else beginning)
        return known or position == 0

    async def stop(self) -> None:
        """Disconnect."""
        await disconnect(self._consumer)

    async def end(self) -> int:
        """The offset that the next record will get."""
        return int((await self._consumer.end_offsets([self._tp]))[self._tp])

    async def position(self) -> int:
        """The offset that is read next. Transaction markers take offsets, so only this, and never a
        record's offset, tells whether the end has been reached."""
        return int(await self._consumer.position(self._tp))

    def positions(self) -> dict[Partition, int]:
        """The same without waiting; nothing before it is known."""
        return {tp: at for tp, at in positions(self._consumer, {self._tp.topic}).items() if at}

    async def read_to_end(self, apply: Apply) -> int:
        """Apply everything up to the end as it is now; returns the position reached.

        That is the end of what has been written, not of what is decided: others may have transactions on the
        partition too, and the decision on theirs is waited for. Else what was committed behind an open one
        would be missed.
        """
        begun = reported = moved = time.monotonic()
        end, count, before = await self._known_end(), 0, -1
        patience_s = self._patience_s + self._decision_s
        while (position := await self._known_position()) < end:
            now = time.monotonic()
            if position > before:
                before, moved = position, now
                self._moved()
            elif now - moved > patience_s:
                raise self._silence(position, end)
            count += await self._poll(apply, "recovery")
            now = time.monotonic()
            if now - reported >= PROGRESS_S:
                reported = now
                log.info(
                    "%s: recovered %d records, %.0f/s, offset %d of %d",
                    *(self._label, count, count / (now - begun), position, end),
                )
        seconds = time.monotonic() - begun
        log.info(
            "%s: recovered %d records in %.2f s, %.0f/s",
            *(self._label, count, seconds, count / max(seconds, 1e-9)),
        )
        return position

    async def follow(self, apply: Apply) -> None:
        """Apply what comes, until cancelled."""
        checked, before, end = time.monotonic(), await self._known_position(), 0
        while True:
            await self._poll(apply, "standby")
            if time.monotonic() - checked > self._patience_s:
                if (position := await self._known_position()) == before < end:
                    raise self._silence(position, end)
                checked, before, end = time.monotonic(), position, await self.end()

    async def _known_position(self) -> int:
        try:
            async with asyncio.timeout(self._patience_s):
                return await self.position()
        except TimeoutError:
            raise KafkaTimeoutError(f"{self._label}: the position stays unknown") from None

    async def _known_end(self) -> int:
        async with asyncio.timeout(self._patience_s):
            return await high_watermark(self._consumer._client, self._tp)

    def _silence(self, position: int, end: int) -> KafkaTimeoutError:
        return KafkaTimeoutError(
            f"{self._label} gave nothing for {self._patience_s:.0f} s at offset {position} of {end}"
        )

    async def _poll(self, apply: Apply, mode: str) -> int:
        fetched = await self._consumer.getmany(self._tp, timeout_ms=POLL_MS, max_records=BATCH_RECORDS)
        records = fetched.get(self._tp, ())
        if records and isinstance(records[0], UnreadableRange):
            if not self._partial:
                damage = records[0].damage
                raise UnreadableStateError(
                    f"{self._label}: offsets {damage.first} to {damage.last} cannot be read "
                    f"({damage.reason}: {damage.detail}), and state without them would be wrong"
                )
            records = ()
        if records:
            await apply(records, await self.position())
            metrics.RECOVERY_RECORDS.labels(mode).inc(len(records))
        await asyncio.sleep(0)  # getmany does not give way while it has records
        return len(records)

    @property
    def _label(self) -> str:
        return f"{self._tp.topic}[{self._tp.partition}]"
