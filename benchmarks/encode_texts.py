"""Texts/s of one encoder, in a process and an environment of its own; ``suite.py`` runs it.

    python encode_texts.py stream-app|sentence-transformers MODEL TEXTS THREADS REPEATS

MODEL is a directory, TEXTS a JSON file with a list. Prints one line of JSON: ``texts_per_s`` of each
repeat after one that warms up, and ``vectors`` of the first few texts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SHOWN = 5


def encoder(which: str, model: str) -> Callable[[list[str]], Any]:
    """Texts → [T, D] unit vectors on the processor, with everything else as it is by default."""
    if which == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        transformer = SentenceTransformer(model, device="cpu")
        return lambda texts: transformer.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    from stream_app.content.encoder import TextEncoder
    from stream_app.settings import build

    return TextEncoder(build({"content": {"device": "cpu"}})).encode


def main(which: str, model: str, texts_file: str, threads: str, repeats: str) -> None:
    texts = json.loads(Path(texts_file).read_text(encoding="utf-8"))
    encode = encoder(which, model)
    torch.set_num_threads(int(threads))  # afterwards: ours leaves a core to the worker's event loop
    vectors = encode(texts)
    found = []
    for _ in range(int(repeats)):
        begun = time.perf_counter()
        encode(texts)
        found.append(len(texts) / (time.perf_counter() - begun))
    print(json.dumps({"texts_per_s": found, "vectors": vectors[:SHOWN].tolist()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
