"""The contents' vectors by the product's own encoder, kept on disk between runs."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream_app import settings as configuration
from stream_app.content.model import model_id
from stream_app.errors import StreamAppError
from stream_app.evaluation.log import Catalogue
from stream_app.settings import Settings

TEXTS_AT_A_TIME = 128


def encoded(
    settings: Settings, catalogue: Catalogue, progress: Callable[[float], None] = lambda _: None
) -> NDArray[np.float32]:
    """[N, D] vectors as ``content-vectors`` would carry them: unit length, rounded to float16; zeros of
    texts that say nothing to the encoder.

    Raises ModelError when the encoder cannot be loaded.
    """
    kept = _place(settings, catalogue)
    if (found := _kept(kept, (len(catalogue), settings.content.dimensions))) is not None:
        return found.astype(np.float32)
    from stream_app.content.encoder import TextEncoder  # torch is needed only now

    encoder = TextEncoder(settings)
    texts = [content.text for content in catalogue.texts]
    parts = [np.zeros((0, settings.content.dimensions), np.float16)]
    for start in range(0, len(texts), TEXTS_AT_A_TIME):
        progress(start / len(texts))
        parts.append(encoder.encode(texts[start : start + TEXTS_AT_A_TIME]).astype(np.float16))
    vectors: NDArray[np.float16] = np.concatenate(parts)
    _keep(kept, vectors)
    return vectors.astype(np.float32)


def _place(settings: Settings, catalogue: Catalogue) -> Path:
    """A file for exactly these texts and this encoder."""
    digest = hashlib.blake2b(digest_size=16)
    content = settings.content
    texts = (text.text for text in catalogue.texts)
    for part in (model_id(settings), f"{content.dimensions}/{content.max_tokens}", *texts):
        digest.update(len(part.encode()).to_bytes(8, "little") + part.encode())
    return configuration.cache_directory() / "evaluation" / f"vectors-{digest.hexdigest()}.npy"


def _kept(path: Path, shape: tuple[int, int]) -> NDArray[np.float16] | None:
    """What stands in the file; None when there is none, or it is not what was written there."""
    try:
        vectors: NDArray[np.float16] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vectors if vectors.shape == shape and vectors.dtype == np.float16 else None


def _keep(path: Path, vectors: NDArray[np.float16]) -> None:
    """Write the file whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.save(file, vectors, allow_pickle=False)
        os.replace(file.name, path)
    except OSError as error:
        raise StreamAppError(f"cannot write to {path.parent}: {error.strerror}") from None
