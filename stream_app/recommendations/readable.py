"""Slates for people to read: titles instead of ids, reasons with their shares."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from stream_app.content.schema import Content
from stream_app.recommendations.slate import COLD_START_USER, Slate

WIDTH = 72
"""Characters of a title or of the words that stand for it."""

_read = msgspec.json.Decoder(Content).decode


class Titles:
    """Titles of contents, at most ``limit`` of them: the one unused for longest gives way."""

    def __init__(self, limit: int = 20_000) -> None:
        self._limit = limit
        self._titles: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._titles)

    def learn(self, key: bytes | None, value: bytes | None) -> None:
        """Take note of one record of ``content``; one that is no content is left to the content worker."""
        if key is None:
            return
        content_id = key.decode(errors="replace")
        if value is None:
            self._titles.pop(content_id, None)
            return
        try:
            content = _read(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        words = " ".join((content.title or content.text or "").split())
        if not words:
            return
        self._titles[content_id] = words if len(words) <= WIDTH else words[: WIDTH - 1].rstrip() + "…"
        self._titles.move_to_end(content_id)
        if len(self._titles) > self._limit:
            self._titles.popitem(last=False)

    def of(self, content_id: str) -> str:
        """Printable title, or the first words of the text; the id when neither is known."""
        title = self._titles.get(content_id)
        if title is None:
            return printable(content_id)
        self._titles.move_to_end(content_id)
        return printable(f"“{title}”")


def lines(slate: Slate, titles: Titles, limit: int | None = None) -> list[str]:
    """A slate's contents, best first, each with what speaks for it; ``limit`` takes the first few."""
    shown = []
    for place, item in enumerate(slate.items[:limit], 1):
        shown.append(f"{place:3}. {titles.of(item.content_id)}  {item.score:.3f}")
        shown.extend(
            f"       {reason.share:4.0%} for your {reason.action} of {titles.of(reason.content_id)}"
            for reason in item.reasons
        )
    return shown


def heading(slate: Slate) -> str:
    """One line: whose slate, of what kind, from when, and which event caused it."""
    user = "everybody unknown" if slate.user_id == COLD_START_USER.decode() else printable(slate.user_id)
    cause = slate.caused_by
    why = f", caused by {cause.topic} {cause.partition}/{cause.offset}" if cause else ""
    return f"{user}  ({slate.kind}, {slate.generated_at}{why})"


def printable(text: str) -> str:
    """Text without the control characters that could steer a terminal: ids and titles are others' input."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
