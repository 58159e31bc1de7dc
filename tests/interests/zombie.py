"""An interests worker that comes to a halt in the middle of its transactions, each partition at another step.

``python -m tests.interests.zombie worker interests``. Partition p halts once at ``STEPS[p % len(STEPS)]``,
says so on stderr, and goes on there when the file named by ``GO_ON`` exists. The flush is the last one:
until all transactions halt, nothing is flushed. The process itself lives on; a test may stop it.

With ``UNFENCED=1`` its transactional ids are its own: nobody fences it. That is broken on purpose.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import aiokafka
from aiokafka.producer.sender import EndTxnHandler

from stream_app import cli
from stream_app.interests.app import InterestsWorker
from stream_app.interests.partition import InterestPartition
from stream_app.kafka.transactions import Transactions

STEPS = (
    "before the transaction begins",
    "after it has begun",
    "after its records were sent",
    "after its offset was sent",
    "before the commit",
    "after the commit, before its answer is handled",
    "in the flush to RocksDB",
)
GO_ON = "ZOMBIE_GO_ON"
UNFENCED = "ZOMBIE_UNFENCED"
POLL_S = 0.02


_open: set[int] = set()
"""Partitions that have aborted what a former owner left: what comes now are transactions of batches."""

_halted: set[int] = set()
"""Partitions that have reached their step."""


def step_of(partition: int) -> str:
    return STEPS[partition % len(STEPS)]


def halts(partition: int, step: str) -> bool:
    """Whether this partition is to halt here, now; from then on it has."""
    if partition not in _open or step_of(partition) != step or partition in _halted or _gone_on():
        return False
    _halted.add(partition)
    print(f"partition {partition} halts {step}", file=sys.stderr, flush=True)
    return True


def _gone_on() -> bool:
    return Path(os.environ[GO_ON]).exists()


async def going_on() -> None:
    while not _gone_on():  # noqa: ASYNC110 - another process makes the file
        await asyncio.sleep(POLL_S)


class HaltingProducer(aiokafka.AIOKafkaProducer):  # type: ignore[misc]  # aiokafka is untyped
    """A transactional producer of one partition that halts at its partition's step, once."""

    def __init__(self, *args: Any, **named: Any) -> None:
        name = named.get("transactional_id") or ""
        ours = "-interests-" in name  # not one of Faust's producers
        self.partition = int(name.rpartition("-")[2]) if ours else -1
        if ours and os.environ.get(UNFENCED):
            named["transactional_id"] = f"{name}-{os.getpid()}"
        super().__init__(*args, **named)

    async def halt(self, step: str) -> None:
        if halts(self.partition, step):
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


class HaltingEnd(EndTxnHandler):  # type: ignore[misc]  # aiokafka is untyped
    """The end of a transaction whose answer comes in and is not looked at for a while."""

    async def do(self, node_id: int) -> bool:
        partition = int(self._sender._txn_manager.transactional_id.split("-interests-")[1].partition("-")[0])
        answer = await self._sender.client.send(node_id, self.create_request(), group=self.group)
        if answer.error_code == 0 and halts(partition, "after the commit, before its answer is handled"):
            await going_on()
        backoff = self.handle_response(answer)
        if backoff is not None:  # as in BaseHandler
            await asyncio.sleep(backoff)
        return backoff is None


abort_at_once = Transactions._settle_remains
write_at_once = InterestPartition._write
flush_all = InterestsWorker._flush


async def settle_remains(self: Transactions, *args: Any) -> None:
    await abort_at_once(self, *args)
    _open.add(self._producer.partition)


async def flush_last(self: InterestsWorker) -> None:
    if _gone_on():
        await flush_all(self)
    elif len(_halted) == len(self._partitions) - 1:
        await next(p for n, p in self._partitions.items() if n not in _halted).flush()


def write_haltingly(self: InterestPartition, *args: Any, **named: Any) -> None:
    if self._slab.dirty.any() and halts(self.partition, "in the flush to RocksDB"):
        while not _gone_on():  # in a thread
            time.sleep(POLL_S)
    write_at_once(self, *args, **named)


def main() -> None:
    aiokafka.AIOKafkaProducer = HaltingProducer  # what Transactions makes
    aiokafka.producer.sender.EndTxnHandler = HaltingEnd
    Transactions._settle_remains = settle_remains  # type: ignore[method-assign]
    InterestPartition._write = write_haltingly  # type: ignore[method-assign]
    InterestsWorker._flush = flush_last  # type: ignore[method-assign]
    sys.exit(cli.run(sys.argv[1:]))


if __name__ == "__main__":
    main()
