"""What a role is to the app that runs it: an owner of partitions, and what takes their batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from stream_app.kafka.records import Partition, RecordBatch

Done = Callable[[], Awaitable[None]]


class Stage(Protocol):
    """Owns what the group assigns to this worker."""

    async def start(self) -> None:
        """Before the worker joins its group."""

    async def stop(self) -> None:
        """After the last batch, and before the worker leaves the group."""

    async def assign(self, actives: set[int], standbys: set[int]) -> None:
        """Open these partitions, close all others. Cancelled when a newer assignment arrives."""

    async def settle(self) -> None:
        """Finish and commit what is in flight; called before partitions are given up."""

    def positions(self) -> dict[Partition, int | None]:
        """Where the inputs of open partitions are read on; None: no such topic."""


@dataclass(frozen=True, slots=True)
class Input:
    """Topics whose batches one handler takes, one after the other."""

    topics: Sequence[str]
    """Full names."""
    take: Callable[[RecordBatch], Awaitable[None]]
    """The next batch comes when this one is done. An error stops the worker."""
    failure: str
    """What the log says then."""


@dataclass(frozen=True, slots=True)
class OpenInput:
    """Topics whose batches count as in hand until their handler says that they are done."""

    topics: Sequence[str]
    """Full names."""
    take: Callable[[RecordBatch, Done], Awaitable[None]]
    """The next batch comes when this returns. Batches of a partition are done in their order."""
