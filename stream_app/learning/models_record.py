"""Records of ``models``: the checkpoint is the value, and headers say which one it is.

Two keys stand on the topic: ``ranker``, the model that rankers use, and ``online``, the one that the
trainer goes on learning with after a restart; only the latter says how far ``interests`` was read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from stream_app.errors import RecordFormatError

RANKER_KEY = b"ranker"
ONLINE_KEY = b"online"


@dataclass(frozen=True)
class Description:
    """What is said about a model."""

    version: int
    """Rises by one with each model that is published for the rankers; ``online``: of the newest of those"""
    steps: int
    """How many engagements it has learned from"""
    loss: float
    """Running mean of its loss on what it was about to learn, in nats; 0 before the first step"""
    created_at: int
    """ms"""
    positions: Mapping[int, int] = field(default_factory=dict)
    """Partition of ``interests`` → offset that learning goes on at"""

    def headers(self) -> list[tuple[str, bytes]]:
        """As Kafka headers."""
        return [
            ("version", str(self.version).encode()),
            ("steps", str(self.steps).encode()),
            ("loss", f"{self.loss:.6g}".encode()),
            ("created_at", str(self.created_at).encode()),
            ("positions", msgspec.json.encode(self.positions)),
        ]


def description(headers: Iterable[tuple[str, bytes | None]]) -> Description:
    """Read the headers of a record. Raises RecordFormatError when one is missing or says nothing."""
    found = {name: value for name, value in headers if value is not None}
    try:
        said = Description(
            version=int(found["version"]),
            steps=int(found["steps"]),
            loss=float(found["loss"]),
            created_at=int(found["created_at"]),
            positions=msgspec.json.decode(found["positions"], type=dict[int, int]),
        )
    except (KeyError, ValueError, TypeError, msgspec.MsgspecError) as error:
        raise RecordFormatError(f"a model whose headers cannot be read: {error!r}") from None
    numbers = (said.version, said.steps, said.created_at, *said.positions.keys(), *said.positions.values())
    if not 0 <= said.loss < math.inf or min(numbers) < 0 or max(numbers) >= 1 << 63:
        raise RecordFormatError("a model whose headers have numbers out of range")
    return said
