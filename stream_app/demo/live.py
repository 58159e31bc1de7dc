"""What the demo shows while it runs: rates, freshness, and one user's story."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter, deque
from typing import TextIO

import msgspec
import numpy as np
from kafka import TopicPartition

from stream_app.kafka import clients
from stream_app.recommendations import slate as slates
from stream_app.recommendations.readable import Titles, lines, printable
from stream_app.recommendations.slate import Slate, milliseconds
from stream_app.settings import Settings

POLL_MS = 100
RATE_WINDOW_S = 5.0
RECENT_SLATES = 2_000
ENGAGEMENTS = 6
ITEMS = 4
# a recorded log names no protagonist: the first user with this many events becomes it
PROTAGONIST_EVENTS = 8
CANDIDATE_PROTAGONISTS = 10_000


class Live:
    """Follows events as they are sent and slates as they arrive. Slates are read in a thread of its own."""

    def __init__(self, settings: Settings, protagonist: str | None) -> None:
        """``protagonist`` is whose story is told; None chooses one by their activity."""
        self._settings = settings
        self._protagonist = protagonist
        self._activity: Counter[str] = Counter()
        self._titles = Titles()
        self._engaged: deque[tuple[str, str]] = deque(maxlen=ENGAGEMENTS)
        self._slate: Slate | None = None
        self._events = self._slates = 0
        self._fresh_ms: deque[float] = deque(maxlen=RECENT_SLATES)
        self._samples: deque[tuple[float, int, int]] = deque()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._consumer = clients.consumer(settings)
        topic = settings.topic_name("recommendations")
        partitions = [TopicPartition(topic, p) for p in self._consumer.partitions_for_topic(topic) or ()]
        self._consumer.assign(partitions)
        self._consumer.seek_to_end(*partitions)
        for partition in partitions:
            self._consumer.position(partition)  # fixes "the end" now
        self._thread = threading.Thread(target=self._follow, name="live", daemon=True)
        self._thread.start()

    def content_sent(self, key: bytes | None, value: bytes | None) -> None:
        """A content goes out."""
        with self._lock:
            self._titles.learn(key, value)

    def event_sent(self, action: str, user_id: str, content_id: str) -> None:
        """An event goes out; ``content_id`` is empty when the record does not say."""
        with self._lock:
            self._events += 1
            if self._protagonist is None:
                if user_id in self._activity or len(self._activity) < CANDIDATE_PROTAGONISTS:
                    self._activity[user_id] += 1
                if self._activity[user_id] >= PROTAGONIST_EVENTS:
                    self._protagonist = user_id
                    self._activity.clear()
            if user_id == self._protagonist and content_id:
                self._engaged.append((action, content_id))

    def figures(self) -> str:
        """One line: rates over the last seconds, freshness of the latest slates."""
        with self._lock:
            now = time.monotonic()
            self._samples.append((now, self._events, self._slates))
            while len(self._samples) > 1 and self._samples[0][0] < now - RATE_WINDOW_S:
                self._samples.popleft()
            then, events, published = self._samples[0]
            seconds = max(now - then, 1e-3)
            fresh = list(self._fresh_ms)
            text = (
                f"{self._events:,} events, {(self._events - events) / seconds:,.0f}/s   "
                f"{self._slates:,} slates, {(self._slates - published) / seconds:,.0f}/s   "
            )
        if not fresh:
            return text + "freshness -"
        p50, p99 = np.percentile(fresh, (50, 99))
        return text + f"freshness p50 {p50:,.0f} ms, p99 {p99:,.0f} ms"

    def story(self) -> list[str]:
        """What the protagonist engaged with, what they now get, and why."""
        with self._lock:
            if self._protagonist is None or not self._engaged:
                return []
            shown = [f"{printable(self._protagonist)} engaged with (newest last)"]
            shown += [
                f"       {action:8} {self._titles.of(content_id)}" for action, content_id in self._engaged
            ]
            if self._slate is not None:
                shown += ["and now gets", *lines(self._slate, self._titles, ITEMS)]
            return shown

    def check(self) -> None:
        """Raise what ended the reading of slates, if anything did."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the thread and the connection."""
        self._stopping.set()
        self._thread.join(10.0)
        self._consumer.close()

    def _follow(self) -> None:
        try:
            with clients.naming_the_broker(self._settings):
                while not self._stopping.is_set():
                    for records in self._consumer.poll(timeout_ms=POLL_MS).values():
                        for record in records:
                            self._arrived(record.key, record.value, record.timestamp)
        except Exception as error:  # noqa: BLE001  # check() raises it in the main thread
            self._failure = error

    def _arrived(self, key: bytes | None, value: bytes | None, timestamp_ms: int) -> None:
        if key is None or value is None or key.startswith(b"\x00"):
            return  # the slate for users whom nobody knows belongs to no event
        with contextlib.suppress(msgspec.DecodeError):
            slate = slates.decode(value)
            with self._lock:
                self._slates += 1
                if slate.caused_by is not None:
                    self._fresh_ms.append(timestamp_ms - milliseconds(slate.caused_by.received_at))
                if slate.user_id == self._protagonist:
                    self._slate = slate


class Screen:
    """Shows lines: redrawn in place on a terminal, a line every two seconds elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """``stream``: stdout unless given."""
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._interval = 0.25 if self._terminal else 2.0
        self._shown = 0.0
        self._drawn = 0

    def say(self, text: str) -> None:
        """A line that stays."""
        self._erase()
        print(text, file=self._stream, flush=True)

    def show(self, live: Live) -> None:
        """The newest figures, and on a terminal the story; at most every so often."""
        if time.monotonic() - self._shown < self._interval:
            return
        self._shown = time.monotonic()
        if not self._terminal:
            self.say(live.figures())
            return
        frame = [live.figures(), "", *live.story()]
        self._erase()
        # no line may wrap, or the redraw loses count of its lines
        width, height = _terminal_size(self._stream)
        frame = [line[: width - 1] for line in frame[: height - 1]]
        print("\n".join(frame), file=self._stream, flush=True)
        self._drawn = len(frame)

    def _erase(self) -> None:
        """Take back what was drawn last: cursor up, clear to the end."""
        if self._drawn:
            self._stream.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0


def _terminal_size(stream: TextIO) -> tuple[int, int]:
    try:
        size = os.get_terminal_size(stream.fileno())
    except OSError:
        return 80, 24
    return size.columns or 80, size.lines or 24
