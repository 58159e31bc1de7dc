"""Encoding's part of the suite: our encoder and sentence-transformers, same weights, texts and threads."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import alternatives
import numpy as np
from alternatives import say, skipping
from figures import ratio, spread
from sizes import Sizes

from stream_app.content.model import model_source
from stream_app.demo.world import read_posts
from stream_app.settings import build

OURS, THEIRS = "stream-app", "sentence-transformers"
SAME = 0.999
"""Cosine of two vectors of one text below which the two do not do the same work."""
BOUND_S = 600.0


def texts(count: int) -> list[str]:
    """Texts of 5 to 60 words out of the demo's posts, seeded: no two alike, so that nothing can be kept."""
    words = [word for post in read_posts() for word in post.text.split()]
    draw = random.Random(4)  # noqa: S311  # texts to measure with, no secret
    return [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(count)]


def measure(sizes: Sizes, skipped: dict[str, str]) -> dict[str, Any]:
    """The summary's ``encoding``; the alternative is added to ``skipped`` where it cannot be had."""
    pythons = {OURS: Path(sys.executable)}
    with skipping(skipped, THEIRS):
        pythons[THEIRS] = alternatives.python_with(THEIRS, alternatives.sentence_transformers())
    threads = os.cpu_count() or 1
    runs: dict[str, list[float]] = {name: [] for name in pythons}
    vectors = {}
    with tempfile.TemporaryDirectory(prefix="stream-app-encoding-") as folder:
        file = Path(folder) / "texts.json"
        file.write_text(json.dumps(texts(sizes.texts)), encoding="utf-8")
        # in turn, so that what else the machine does hits both
        for name, python in itertools.chain.from_iterable([pythons.items()] * sizes.repeats):
            found = encoded(name, python, file, threads)
            runs[name] += found["texts_per_s"]
            vectors[name] = np.array(found["vectors"])
            say(f"{name:24} {found['texts_per_s'][-1]:8,.0f} texts/s")
    spreads = {name: spread(of) for name, of in runs.items()}
    if THEIRS in vectors and (cosine := float((vectors[OURS] * vectors[THEIRS]).sum(1).min())) < SAME:
        raise SystemExit(f"the two encoders disagree (cosine {cosine:.4f}): they cannot be compared")
    medians = {name: of["median"] for name, of in spreads.items()}
    return {
        "vs_sentence_transformers": ratio(medians[OURS], medians.get(THEIRS)),
        "texts_per_s": medians[OURS],
        "threads": threads,
        "spread": spreads,
    }


def encoded(name: str, python: Path, file: Path, threads: int) -> dict[str, Any]:
    """What ``encode_texts.py`` printed for one encoder."""
    script = Path(__file__).with_name("encode_texts.py")
    command = [python, script, name, model_source(build({})), file, threads, 1]
    done = subprocess.run(  # noqa: S603  # our own command
        list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True, timeout=BOUND_S
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
