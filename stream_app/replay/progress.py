"""One line of progress on stderr: redrawn in place on a terminal, now and then a new line elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

BAR = 30


class Progress:
    """Shows the newest state at a bounded rate."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """``stream``: stderr unless given."""
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._interval = 0.1 if self._terminal else 5.0
        self._shown = time.monotonic()
        self._width = 0
        self._last = ""

    def show(self, text: str, fraction: float | None = None, *, now: bool = False) -> None:
        """Show ``text``, with a bar if it is known how much is done; at once if ``now``."""
        if not now and time.monotonic() - self._shown < self._interval:
            return
        self._shown = time.monotonic()
        if fraction is not None:
            filled = round(BAR * min(max(fraction, 0.0), 1.0))
            bar = f"[{'█' * filled}{'·' * (BAR - filled)}] " if self._terminal else ""
            text = f"{bar}{100 * fraction:3.0f} %  {text}"
        if self._terminal:
            self._stream.write(f"\r{text.ljust(self._width)}")
            self._width = len(text)
        elif text != self._last:
            self._stream.write(f"{text}\n")
        self._last = text
        self._stream.flush()

    def finish(self, text: str) -> None:
        """Leave ``text`` as the last word and start a new line."""
        self.show(text, now=True)
        if self._terminal:
            self._stream.write("\n")
        self._width = 0
