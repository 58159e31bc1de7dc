"""What the broker says of a partition's inputs, made up: where its owner reads on, and of which topic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from faust.types import TP

from stream_app.errors import FencedError
from stream_app.kafka.marks import Mark, Membership
from stream_app.kafka.shared import Share, SharedTransactions
from stream_app.kafka.topic_ids import Bounds, CommittedOffset
from stream_app.settings import Settings


class KnownOffsets:
    """The same for all inputs."""

    def __init__(
        self,
        offset: int | None,
        topic: str = "first",
        first: int = 0,
        claims: dict[TP, tuple[int, Mark]] | None = None,
    ) -> None:
        """``claims``: of a group that several owners share."""
        self.offset, self.topic, self.first = offset, topic, first
        self.claims: dict[TP, tuple[int, Mark]] = {} if claims is None else claims
        self.asked = 0
        self.moved_on = False
        """Whether the group has another assignment now."""
        self.end = 1 << 62
        """Where everything is decided."""

    async def committed(self, tps: Iterable[TP]) -> dict[TP, CommittedOffset]:
        return {tp: CommittedOffset(self.offset, self.topic) for tp in tps}

    async def offsets(self, tps: Iterable[TP]) -> dict[TP, CommittedOffset]:
        return {
            tp: CommittedOffset(self.offset, self.topic, self.claims[tp][1] if tp in self.claims else None)
            for tp in tps
        }

    async def claim(self, marks: Mapping[TP, tuple[int, Mark]], _member: Membership | None) -> None:
        self.claims.update(marks)

    async def confirm(self, _member: Membership) -> None:
        if self.moved_on:
            raise FencedError("the group has moved on")

    async def bounds(self, tps: Iterable[TP]) -> dict[TP, Bounds]:
        return {tp: Bounds(self.first, self.end) for tp in tps}

    async def topic_id(self, _tp: TP) -> str:
        self.asked += 1
        return self.topic

    async def stable_end(self, _tp: TP) -> int:
        return self.end


async def share_of(
    settings: Settings,
    name: str,
    group: str,
    writes: Sequence[str],
    inputs: Iterable[TP],
    offsets: Callable[[], KnownOffsets],
) -> Share:
    """Of a worker that owns these inputs alone, and is in no group."""
    transactions = SharedTransactions(settings, settings.group(group), name, writes, offsets)
    await transactions.assigned(None)
    return Share(transactions, tuple(inputs))
