"""A small untrained encoder in a directory: it loads in an instant and needs no package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from stream_app.content.model import model_source
from stream_app.settings import build

TINY_DIMENSIONS = 16


@pytest.fixture
def untrained() -> transformers.BertModel:
    """A model of TINY_DIMENSIONS and 64 positions."""
    torch.manual_seed(1)
    return transformers.BertModel(
        transformers.BertConfig(
            hidden_size=TINY_DIMENSIONS,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
        )
    )


@pytest.fixture
def tokenizer_only(tmp_path: Path) -> Path:
    """A directory with a tokenizer and nothing else."""
    path = tmp_path / "model"
    transformers.AutoTokenizer.from_pretrained(model_source(build({}))).save_pretrained(path)
    return path


@pytest.fixture
def tiny(tokenizer_only: Path, untrained: transformers.BertModel) -> Path:
    """The directory of a complete model."""
    untrained.save_pretrained(tokenizer_only)
    return tokenizer_only
