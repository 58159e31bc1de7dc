"""The text encoder: a Hugging Face model, mean-pooled and L2-normalised. The only torch of this stage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from stream_app.content.model import model_id, model_source
from stream_app.errors import ConfigurationError, ModelError
from stream_app.settings import Settings

# Most tokenizers make a token of at most a few characters: what is further behind cannot be among the
# first max_tokens, and a megabyte need not be tokenized to find out.
CHARACTERS_PER_TOKEN = 32


class TextEncoder:
    """Turns texts into unit vectors of ``dimensions``; the same text gives the same vector whatever it is
    encoded together with, within 1e-5. A text in which the encoder knows no token gives zeros."""

    def __init__(self, settings: Settings) -> None:
        """Load the model and try it on one text. Raises ModelError or ConfigurationError naming the setting
        at fault."""
        content = settings.content
        self.model = model_id(settings)
        self.dimensions = content.dimensions
        self._batch_size = content.batch_size
        self._device = _device(content.device)
        source = model_source(settings)
        # a directory is all there is: nothing is looked for elsewhere; and no weights that are pickles
        local = Path(source).is_dir()
        if not local and (source.startswith((".", "/", "~")) or "\\" in source):
            raise ModelError(f"content.model = {source!r}: no such directory")
        transformers.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=local)
            network = transformers.AutoModel.from_pretrained(
                source, local_files_only=local, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(
                f"content.model = {content.model!r}: cannot be loaded: {_first_line(error)}"
            ) from None
        if self._device.type == "cpu":
            # one core stays free for the event loop and the clients' threads
            torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
        self._network = network.to(self._device).eval()
        # [CLS], [PAD] and their like, and [UNK]: what no text is known by
        self._empty = frozenset(self._tokenizer.all_special_ids)
        longest = getattr(network.config, "max_position_embeddings", content.max_tokens)
        self._max_tokens = min(content.max_tokens, self._tokenizer.model_max_length, longest)
        found = self.encode(["stream"]).shape[1]
        if found != content.dimensions:
            raise ModelError(
                f"content.dimensions = {content.dimensions}: {self.model} makes vectors of {found} dimensions"
            )

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[T, D] unit vectors of T texts, in their order; texts are cut after ``content.max_tokens``.

        Zeros where no token is known: of an empty text, of emoji alone, in a script that the encoder has
        never seen. All of these would have one vector, and be taken for the same. Raises ModelError when
        the model gives something that cannot be normalised.
        """
        if not texts:
            return np.zeros((0, self.dimensions), np.float32)
        characters = self._max_tokens * CHARACTERS_PER_TOKEN
        tokens = self._tokenizer(
            [text[:characters] for text in texts], truncation=True, max_length=self._max_tokens
        )["input_ids"]
        told = [i for i in range(len(texts)) if not self._empty.issuperset(tokens[i])]
        if not told:
            return np.zeros((len(texts), self.dimensions), np.float32)
        # texts of like length together: little padding
        order = sorted(told, key=lambda i: len(tokens[i]))
        batches = [order[i : i + self._batch_size] for i in range(0, len(order), self._batch_size)]
        vectors = np.concatenate([self._encode([tokens[i] for i in batch]) for batch in batches])
        if not np.allclose(np.einsum("td,td->t", vectors, vectors), 1, atol=1e-3):
            raise ModelError(f"content.model: {self.model} gave a vector that has no direction")
        result = np.zeros((len(texts), vectors.shape[1]), np.float32)
        result[order] = vectors
        return result

    @torch.inference_mode()
    def _encode(self, tokens: list[list[int]]) -> NDArray[np.float32]:
        """[T, D] unit vectors of T token sequences, padded to the longest of them."""
        padded = self._tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self._device)
        states = self._network(**padded).last_hidden_state  # [T, L, D]
        mask = padded["attention_mask"].unsqueeze(-1).to(states.dtype)  # [T, L, 1]
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)  # [T, D]
        unit: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=1).float().cpu().numpy()
        return unit


def _device(setting: str) -> torch.device:
    """The device that ``content.device`` names. Raises ConfigurationError."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"content.device = {setting!r}: expected `auto`, `cpu`, `cuda` or `cuda:N`")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        known = torch.cuda.device_count()
        raise ConfigurationError(
            f"content.device = {setting!r}: torch sees {known} CUDA devices; use `auto` or `cpu`"
        )
    return device


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
