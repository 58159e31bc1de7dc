"""Slates for people to read: titles instead of ids, reasons with their shares."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from stream_app.content.schema import Content
from stream_app.ranking.ranked import BLEND, PARTS, Parts
from stream_app.recommendations.slate import COLD_START_USER, Slate

MOST_PARTS = 3
"""Parts of a learned score that are named."""
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
    """A slate's contents, best first, each with what speaks for it; ``limit`` takes the first few.

    Shares are of closeness to the user's interests, which is what the blend is mostly about. The learned
    ranker may have weighed other things more: its slates name the parts that raised the score most.
    """
    shown = []
    for place, item in enumerate(slate.items[:limit], 1):
        why = f"{item.score:.3f}" + ("" if slate.ranker == BLEND else _most(item.parts))
        if item.propensity is not None:
            why = f"(drawn by lot, probability {item.propensity:.2g})"
        shown.append(f"{place:3}. {titles.of(item.content_id)}  {why}")
        shown.extend(
            f"       {reason.share:4.0%} for your {reason.action} of {titles.of(reason.content_id)}"
            for reason in item.reasons
        )
    return shown


def _most(parts: Parts) -> str:
    """The parts that raise a score most, if any do.

    >>> _most(Parts(interest=0.2, recency=-1.0, popularity=1.5, match=0.0, together=0.4, habit=0.1))
    '  (popularity +1.50, together +0.40, interest +0.20)'
    """
    by_size = sorted(((getattr(parts, name), name) for name in PARTS), reverse=True)
    most = ", ".join(f"{name} {value:+.2f}" for value, name in by_size[:MOST_PARTS] if value > 0)
    return f"  ({most})" if most else ""


def heading(slate: Slate) -> str:
    """One line: whose slate, of what kind and by which ranker, from when, and which event caused it."""
    user = "everybody unknown" if slate.user_id == COLD_START_USER.decode() else printable(slate.user_id)
    cause = slate.caused_by
    why = f", caused by {cause.topic} {cause.partition}/{cause.offset}" if cause else ""
    by = "" if slate.ranker == BLEND else f" by {printable(slate.ranker)}"
    return f"{user}  ({slate.kind}{by}, {slate.generated_at}{why})"


def printable(text: str) -> str:
    """Text without the control characters that could steer a terminal: ids and titles are others' input."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
