"""A second text encoder for runs that change the model: the default one with other word vectors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from stream_app.content.model import model_source
from stream_app.settings import Settings

WEIGHTS = "model.safetensors"
WORDS = "embeddings.word_embeddings.weight"


def other_model(directory: Path) -> Path:
    """Write it to ``directory``, which must not exist yet. Every token has its neighbour's vector, so that
    no text keeps its own. Raises ModelError when the default model is not installed."""
    shutil.copytree(model_source(Settings()), directory)
    weights = load_file(directory / WEIGHTS)
    weights[WORDS] = np.roll(weights[WORDS], 1, axis=0)
    save_file(weights, directory / WEIGHTS, {"format": "pt"})
    return directory
