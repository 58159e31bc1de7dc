"""An interests worker that comes to a halt in the middle of a transaction that spans several partitions.

``python -m tests.interests.zombie worker interests``. It halts once, at the step named by ``STEP``, as soon
as the file named by ``HALT`` exists; it says so on stderr, and goes on there when the file named by ``GO_ON``
exists. The process itself lives on; a test may stop it.

``WITHOUT`` names layers (see ``tests/kafka/layers.py``) that it lacks: that is broken on purpose.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiokafka
from aiokafka.producer.sender import EndTxnHandler

from stream_app import cli
from stream_app.interests.partition import InterestPartition
from stream_app.kafka.marks import Mark
from stream_app.kafka.records import Partition
from stream_app.kafka.shared import SharedTransactions
from stream_app.kafka.transactions import Transactions
from tests.kafka.layers import take_away

STEPS = (
    "before the transaction begins",
    "after it has begun",
    "after its records were sent",
    "after its offset was sent",
    "before the commit",
    "after the commit, before its answer is handled",
    "in the flush to RocksDB",
)
STEP = "ZOMBIE_STEP"
HALT = "ZOMBIE_HALT"
GO_ON = "ZOMBIE_GO_ON"
WITHOUT = "ZOMBIE_WITHOUT"
POLL_S = 0.02
GATHER_S = 1.0
"""So long the first one that asks for a transaction waits for another one."""

ANSWER, FLUSH = STEPS[-2:]

commit_at_once = Transactions.commit
write_at_once = InterestPartition._write


class Story:
    """How far this worker has got."""

    spanning = False
    """Whether the transaction on its way is one to halt in."""
    halted = False


def halts(step: str) -> bool:
    """Whether to halt here, now; from then on it has."""
    if os.environ[STEP] != step or Story.halted or not _exists(HALT) or _exists(GO_ON):
        return False
    Story.halted = True
    print(f"halts {step}", file=sys.stderr, flush=True)
    return True


def _exists(name: str) -> bool:
    return Path(os.environ[name]).exists()


async def going_on() -> None:
    while not _exists(GO_ON):  # noqa: ASYNC110 - another process makes the file
        await asyncio.sleep(POLL_S)


async def commit(
    self: Transactions,
    outputs: Any,
    offsets: Mapping[Partition, tuple[int, Mark]] = {},
    *more: Any,
) -> dict[Partition, int]:
    Story.spanning = len({tp.partition for tp in offsets}) > 1
    try:
        return await commit_at_once(self, outputs, offsets, *more)
    finally:
        Story.spanning = False


async def run_together(self: SharedTransactions) -> None:
    """As it is, but for the wait: partitions that keep the same pace may else take turns for ever."""
    while self._asked:
        await self._open.wait()
        deadline = time.monotonic() + GATHER_S
        while not Story.halted and len(self._asked) < 2 and time.monotonic() < deadline:  # noqa: ASYNC110 - a passing look
            await asyncio.sleep(POLL_S)
        async with self._in_work:
            if self._asked and self._open.is_set():
                await self._carry_out(self._next())


class HaltingProducer(aiokafka.AIOKafkaProducer):  # type: ignore[misc]  # aiokafka is untyped
    """A producer that halts at the worker's step, once."""

    async def halt(self, step: str) -> None:
        if Story.spanning and halts(step):
            await going_on()

    async def begin_transaction(self) -> None:
        await self.halt("before the transaction begins")
        await super().begin_transaction()
        await self.halt("after it has begun")

    async def send_offsets_to_transaction(self, *args: Any, **named: Any) -> None:
        await self.flush()
        await self.halt("after its records were sent")
        await super().send_offsets_to_transaction(*args, **named)
        await self.halt("after its offset was sent")

    async def commit_transaction(self) -> None:
        await self.flush()
        await self.halt("before the commit")
        await super().commit_transaction()


async def end_haltingly(self: EndTxnHandler, node_id: int) -> bool:
    """The end of a transaction whose answer comes in and is not looked at for a while."""
    answer = await self._sender.client.send(node_id, self.create_request(), group=self.group)
    told = answer.error_code == 0 and Story.spanning
    if told and halts(ANSWER):
        await going_on()
    backoff = self.handle_response(answer)
    if backoff is not None:  # as in BaseHandler
        await asyncio.sleep(backoff)
    return backoff is None


def write_haltingly(self: InterestPartition, *args: Any, **named: Any) -> None:
    if self._slab.dirty.any() and halts(FLUSH):
        while not _exists(GO_ON):  # in a thread
            time.sleep(POLL_S)
    write_at_once(self, *args, **named)


def main() -> None:
    aiokafka.AIOKafkaProducer = HaltingProducer  # what Transactions makes
    EndTxnHandler.do = end_haltingly
    Transactions.commit = commit  # type: ignore[method-assign,assignment]
    SharedTransactions._run = run_together  # type: ignore[method-assign]
    InterestPartition._write = write_haltingly  # type: ignore[method-assign]
    take_away(*os.environ.get(WITHOUT, "").split())
    sys.exit(cli.run(sys.argv[1:]))


if __name__ == "__main__":
    main()
