"""From decoded contents to ``content-vectors`` records. Knows neither Faust nor torch."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream_app.content import vectors
from stream_app.content.published import PublishedContents, Standing
from stream_app.content.schema import Text, first_known
from stream_app.content.vectors import NOTHING, ContentVector, tag, vector_key
from stream_app.hashing import model_code
from stream_app.observability import metrics
from stream_app.settings import Settings


class Encoder(Protocol):
    """What turns texts into unit vectors (:class:`stream_app.content.encoder.TextEncoder`)."""

    @property
    def model(self) -> str:
        """Id stored with every vector."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[T, D] unit vectors of T texts, in their order; zeros where a text says nothing to the encoder."""


Record = tuple[bytes, bytes, bytes | None]
"""content_id, by which the record is placed; key; value"""


class ContentPipeline:
    """Makes the records of contents, encoding each text only once as long as it is remembered.

    Vectors are remembered by text, not by content: a record is made again for every version that arrives,
    because after a rebalance only the topic knows which version another worker published last.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: Encoder,
        published: PublishedContents,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """``published`` says what stands on the topic by now."""
        self._encoder = encoder
        self._published = published
        self._code = model_code(encoder.model)
        self._now_ms = now_ms
        self._capacity = settings.content.remembered_texts
        # digest of a text → its vector, float16 [D]; the one used longest ago first
        self._remembered: OrderedDict[bytes, NDArray[np.float16]] = OrderedDict()

    def records(self, contents: Mapping[bytes, Text | None]) -> list[Record]:
        """What these contents, None where one was deleted, cause on the topic."""
        texts = {_digest(c.text): c.text for c in contents.values() if c is not None and c.text}
        found = self._vectors(texts)
        records: list[Record] = []
        for content_id, content in contents.items():
            standing = self._published.get(content_id)
            made = (
                self._deletion(content_id, standing)
                if content is None
                else self._version(content_id, content, found.get(_digest(content.text), NOTHING), standing)
            )
            records += ((content_id, key, value) for key, value in made)
        return records

    def _version(
        self, content_id: bytes, content: Text, vector: NDArray[np.float16], standing: Standing | None
    ) -> Iterator[tuple[bytes, bytes | None]]:
        """The record, after what it replaces."""
        if not content.known:
            content = first_known(content, standing)
        keys = {} if standing is None else dict(standing.keys)  # which are followed meanwhile
        mine = [key for key, code in keys.items() if code == self._code]
        own = vector_key(content_id, self._code)
        if mine:  # the earlier version's key counts no more where there is ours
            yield from self._former(content_id, own if own in keys else mine[0], self._code, besides=vector)
        now, model = self._now_ms(), self._encoder.model
        yield (
            own,
            vectors.encode(
                ContentVector(model, content.author, content.created_at, now, vector, content.known)
            ),
        )
        yield from ((key, None) for key in mine if key != own)

    def _deletion(self, content_id: bytes, standing: Standing | None) -> Iterator[tuple[bytes, bytes | None]]:
        """The end of all encoders' records of a content."""
        keys = {} if standing is None else dict(standing.keys)  # which are followed meanwhile
        for key, code in keys.items():
            yield from self._former(content_id, key, code)
        yield vector_key(content_id, self._code), None
        yield from ((key, None) for key in keys if key != vector_key(content_id, self._code))

    def _former(
        self, content_id: bytes, key: bytes, code: int, besides: NDArray[np.float16] | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """The vector that stands under this key, to be kept; nothing where it is ``besides``."""
        before = self._published.record(key)
        if before is not None and (besides is None or tag(besides) != tag(before.vector)):
            gone = replace(before, author="", encoded_at=self._now_ms())
            yield vector_key(content_id, code, tag(before.vector)), vectors.encode(gone)

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
                # a view would keep the whole batch alive
                found[digest] = self._remembered[digest] = vector.copy() if vector.any() else NOTHING
        while len(self._remembered) > self._capacity:
            self._remembered.popitem(last=False)
        return found


def _digest(text: str) -> bytes:
    """128 bits of a cryptographic hash: nobody can write a text that is taken for another."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
