"""What the broker says of a partition's inputs, made up: where its owner reads on, and of which topic."""

from __future__ import annotations

from collections.abc import Iterable

from faust.types import TP

from stream_app.kafka.topic_ids import Bounds, CommittedOffset


class KnownOffsets:
    """The same for all inputs."""

    def __init__(self, offset: int | None, topic: str = "first", first: int = 0) -> None:
        self.offset, self.topic, self.first = offset, topic, first
        self.asked = 0
        self.end = 1 << 62
        """Where everything is decided."""

    async def committed(self, tps: Iterable[TP]) -> dict[TP, CommittedOffset]:
        return {tp: CommittedOffset(self.offset, self.topic) for tp in tps}

    async def bounds(self, tps: Iterable[TP]) -> dict[TP, Bounds]:
        return {tp: Bounds(self.first, self.end) for tp in tps}

    async def topic_id(self, _tp: TP) -> str:
        self.asked += 1
        return self.topic

    async def stable_end(self, _tp: TP) -> int:
        return self.end
