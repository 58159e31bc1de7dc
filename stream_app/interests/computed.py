"""What a batch has caused, on its way to its transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stream_app.kafka.records import Partition
from stream_app.kafka.transactions import Output

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from stream_app.observability.tracing import Passage

KEY_BYTES = 160
"""Of an output's key, headers and framing, about."""


@dataclass(slots=True)
class Computed:
    """The outputs of a batch, and the position after it."""

    outputs: list[Output]
    source: Partition
    end: int
    passages: Sequence[Passage]
    size: int = field(init=False)
    """Bytes, about: to look at every header would take as long as a tenth of the computing."""

    def __post_init__(self) -> None:
        values = sum([len(one.value or b"") for one in self.outputs])
        self.size = values + KEY_BYTES * len(self.outputs)
