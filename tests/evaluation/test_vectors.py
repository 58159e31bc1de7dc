"""The contents' vectors are made once for the same texts and encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.content import encoder
from stream_app.evaluation.vectors import encoded
from stream_app.settings import Content, Settings
from tests.evaluation.small_logs import content, read

SETTINGS = Settings(content=Content(dimensions=8))


@pytest.fixture
def encoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Texts that were encoded; the cache is empty."""
    texts_seen: list[str] = []

    class Lengths:
        def __init__(self, settings: Settings) -> None:
            pass

        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            texts_seen.extend(texts)
            vectors = np.zeros((len(texts), 8), np.float32)
            vectors[np.arange(len(texts)), [len(text) % 8 for text in texts]] = 1
            return vectors

    monkeypatch.setattr(encoder, "TextEncoder", Lengths)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return texts_seen


def test_texts_are_encoded_once(encoding: list[str], tmp_path: Path) -> None:
    log = read([content("a"), content("bb"), content("ccc")])
    first = encoded(SETTINGS, log.catalogue)
    assert first.dtype == np.float32
    assert encoding == ["about a", "about bb", "about ccc"]
    assert np.array_equal(encoded(SETTINGS, log.catalogue), first)
    assert len(encoding) == 3

    # another text, another encoder, or a file that is not what was written: encoded anew
    encoded(SETTINGS, read([content("a"), content("bb"), content("ddd")]).catalogue)
    assert len(encoding) == 6
    other = msgspec.structs.replace(SETTINGS, content=Content(dimensions=8, model="another"))
    encoded(other, log.catalogue)
    assert len(encoding) == 9
    for kept in (tmp_path / "stream-app" / "evaluation").iterdir():
        kept.write_bytes(kept.read_bytes()[:50])
    assert np.array_equal(encoded(SETTINGS, log.catalogue), first)
    assert len(encoding) == 12
