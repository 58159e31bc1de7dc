"""From decoded contents to ``content-vectors`` records. Knows neither Faust nor torch."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream_app.content import vectors
from stream_app.content.schema import Text
from stream_app.content.vectors import ContentVector
from stream_app.observability import metrics
from stream_app.settings import Settings


class Encoder(Protocol):
    """What turns texts into unit vectors (:class:`stream_app.content.encoder.TextEncoder`)."""

    @property
    def model(self) -> str:
        """Id stored with every vector."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[T, D] unit vectors of T texts, in their order."""


class ContentPipeline:
    """Makes the records of contents, encoding each text only once as long as it is remembered.

    Vectors are remembered by text, not by content: a record is made again for every version that arrives,
    because after a rebalance only the topic knows which version another worker published last.
    """

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        self._encoder = encoder
        self._capacity = settings.content.remembered_texts
        # digest of a text → its vector, float16 [D]; the one used longest ago first
        self._remembered: OrderedDict[bytes, NDArray[np.float16]] = OrderedDict()

    def records(self, contents: Mapping[bytes, Text | None]) -> list[tuple[bytes, bytes | None]]:
        """One (key, value) record for each content; the value is None where it was deleted."""
        digests = {key: _digest(c.text) for key, c in contents.items() if c is not None}
        found = self._vectors({digests[key]: c.text for key, c in contents.items() if c is not None})
        now = time.time_ns() // 1_000_000
        model = self._encoder.model
        return [
            (
                key,
                None
                if c is None
                else vectors.encode(ContentVector(model, c.author, c.created_at, now, found[digests[key]])),
            )
            for key, c in contents.items()
        ]

    def _vectors(self, texts: Mapping[bytes, str]) -> dict[bytes, NDArray[np.float16]]:
        """Vectors by digest: remembered ones, and new ones encoded together."""
        found = {}
        missing = {}
        for digest, text in texts.items():
            if (vector := self._remembered.get(digest)) is None:
                missing[digest] = text
            else:
                found[digest] = vector
                self._remembered.move_to_end(digest)
        if missing:
            with metrics.ENCODE_SECONDS.time():
                encoded = self._encoder.encode(list(missing.values())).astype(np.float16)
            metrics.CONTENT_ENCODED.inc(len(missing))
            for digest, vector in zip(missing, encoded, strict=True):
                found[digest] = vector
                self._remembered[digest] = vector.copy()  # a view would keep the whole batch alive
        while len(self._remembered) > self._capacity:
            self._remembered.popitem(last=False)
        return found


def _digest(text: str) -> bytes:
    """128 bits of a cryptographic hash: nobody can write a text that is taken for another."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
