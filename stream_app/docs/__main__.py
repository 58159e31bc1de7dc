"""``python -m stream_app.docs``: write the reference pages under ``docs/``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from stream_app.docs import contracts, pages
from stream_app.serving import openapi

ROOT = Path(__file__).parents[2] / "docs"

PAGES: dict[str, Callable[[], str]] = {
    "CONFIG.md": pages.config,
    "METRICS.md": pages.metric_page,
    "REASONS.md": pages.reasons,
    "COMMANDS.md": pages.commands,
    "asyncapi.yaml": contracts.asyncapi,
    "openapi.json": openapi.document,
    "schemas/event.json": lambda: contracts.schema("event"),
    "schemas/impression.json": lambda: contracts.schema("impression"),
    "schemas/content.json": lambda: contracts.schema("content"),
    "schemas/slate.json": lambda: contracts.schema("slate"),
    "schemas/erasure.json": lambda: contracts.schema("erasure"),
    "schemas/receipt.json": lambda: contracts.schema("receipt"),
}
"""Path under ``docs/`` → its text."""


def main() -> int:
    """Write every page that differs."""
    for name, make in PAGES.items():
        path, text = ROOT / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
