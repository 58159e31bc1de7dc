"""The newest model on ``models``, as rankers take it over. Knows neither Faust nor Kafka's client."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stream_app.errors import LearningError, RecordFormatError
from stream_app.learning import checkpoint
from stream_app.learning.features import BANDS, NAMES
from stream_app.learning.habits import AgeHabits
from stream_app.learning.model import SoftmaxRanker
from stream_app.learning.models_record import RANKER_KEY, description
from stream_app.observability import metrics

log = logging.getLogger(__name__)

Record = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]
"""Key, value and headers."""


@dataclass(frozen=True)
class Published:
    """A model with the version it was published under."""

    version: int
    model: SoftmaxRanker
    habits: AgeHabits


class PublishedModel:
    """Follows ``models``: what was read last and could be read."""

    def __init__(self) -> None:
        self.newest: Published | None = None

    def apply(self, records: Iterable[Record]) -> None:
        """Take in records in their order. A tombstone withdraws the model; what cannot be read is counted
        and logged, and the last good one stays."""
        for key, value, headers in records:
            if key != RANKER_KEY:
                continue  # what the trainer keeps for itself
            if value is None:
                log.warning("the learned ranker was withdrawn from models")
                self.newest = None
                metrics.RANKER_MODEL_TIME.set(0)
            else:
                self._take(value, headers)

    def _take(self, value: bytes, headers: Sequence[tuple[str, bytes | None]]) -> None:
        try:
            said = description(headers)
            model, habits = checkpoint.decode(value, NAMES, BANDS)
        except (LearningError, RecordFormatError) as error:
            metrics.RANKER_REJECTED.labels("models").inc()
            log.error("a checkpoint on models is left out, the last good one stays: %r", error)
            return
        self.newest = Published(said.version, model, habits)
        metrics.RANKER_MODEL_TIME.set(said.created_at / 1000)
