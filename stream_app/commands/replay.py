"""``stream-app replay``: produce a recorded log into the topics, then account for every event."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from stream_app.errors import ConfigurationError, StreamAppError
from stream_app.kafka.admin import ensure_topics
from stream_app.replay import contents_first
from stream_app.replay.accounting import Accounts, Summary
from stream_app.replay.formats import Log, LogRecord, detect, open_log
from stream_app.replay.producer import Produced, produce
from stream_app.replay.progress import Progress
from stream_app.replay.verify import TOLERANCE, verify
from stream_app.settings import Settings

HELP = "produce a recorded log into the topics and account for every event"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "--log", type=Path, required=True, help="JSON lines (.jsonl, .jsonl.gz), or the Deskdrop directory"
    )
    parser.add_argument(
        "--format",
        choices=("auto", "jsonl", "deskdrop"),
        default="auto",
        help="format of the log (default: %(default)s)",
    )
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--speed",
        type=_positive,
        metavar="N",
        help="log seconds a second, by the records' own times; contents and events stay in the log's order",
    )
    pace.add_argument(
        "--as-fast-as-possible",
        action="store_true",
        help="without a pace (default): all contents first; the events once those are indexed",
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="at most this many events")
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait for the contents to be indexed, then until every event is accounted for and every "
        "active user has a slate (default: yes)",
    )
    parser.add_argument(
        "--timeout",
        type=_positive,
        default=180.0,
        metavar="S",
        help="stop waiting after this many seconds without any change (default: %(default)g)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="in the end compute every user's state from the log alone and compare it with the interests "
        "topic; the topics must have had no events before",
    )
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the summary as JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0; or 1 when the wait ended before every event had its outcome, or the states are not the log's."""
    if args.verify and not args.wait:
        raise ConfigurationError(
            "--verify compares the states once all events are settled: not with --no-wait"
        )
    log_format = detect(args.log) if args.format == "auto" else args.format
    ensure_topics(settings)
    replay = _Replay(args, settings, lambda: open_log(args.log, log_format, args.limit))
    with contextlib.closing(Accounts(settings)) as accounts:
        produced = replay.in_time_order() if args.speed else replay.contents_first()
        if args.wait:
            began = time.monotonic()
            summary = accounts.wait(produced.events, produced.users, args.timeout, replay.waiting)
            took = time.monotonic() - began
            replay.progress.finish(f"{summary.accounted:,} events accounted for after another {took:.1f} s")
        else:
            summary = accounts.summary(produced.events, produced.users)
        earlier = accounts.earlier
    if args.verify and summary.settled:
        began = time.monotonic()
        found = verify(settings, replay.opened().records)
        took = time.monotonic() - began
        replay.progress.finish(f"{found.users:,} users' states recomputed from the log in {took:.1f} s")
        summary = msgspec.structs.replace(summary, verified=found)
    if not args.speed:
        replay.deletions(produced)
    if args.summary:
        _write(args.summary, summary)
    print(describe(summary))
    return _faults(args, summary, earlier)


def _faults(args: argparse.Namespace, summary: Summary, earlier: int) -> int:
    """Say what is wrong; the exit status."""
    if args.wait and not summary.settled:
        open_events = summary.produced - summary.accounted + summary.retrying
        print(
            f"nothing changed for {args.timeout:g} s and {open_events:,} events have no final outcome: are "
            "the workers running, with the same settings? `stream-app doctor` tells"
            + ("; the states were not verified" if args.verify else ""),
            file=sys.stderr,
        )
        return 1
    found = summary.verified
    if found is None:
        return 0
    if earlier:
        print(
            f"the topics held {earlier:,} events before this replay: states that those events left differ "
            "from what the log alone says; --verify needs topics without events",
            file=sys.stderr,
        )
    if found.equal:
        return 0
    print(
        f"the states are not what the log says: {found.differing:,} of {found.users:,} users differ, "
        f"{found.missing:,} are missing, {found.surplus:,} are surplus; the largest relative error is "
        f"{found.max_relative_error:.2g}, at most {TOLERANCE:g} is allowed",
        file=sys.stderr,
    )
    return 1


class _Replay:
    """Sends the log and shows how far it is."""

    def __init__(self, args: argparse.Namespace, settings: Settings, opened: Callable[[], Log]) -> None:
        """``opened`` opens the log, each time from its beginning."""
        self._args, self._settings, self.opened = args, settings, opened
        self.progress = Progress()

    def in_time_order(self) -> Produced:
        """Everything as it comes in the log, paced."""
        return self._send(lambda records: records)

    def contents_first(self) -> Produced:
        """Contents, then, when they are indexed, the events."""
        with contextlib.closing(contents_first.Indexing(self._settings)) as indexing:
            produced = self._send(contents_first.contents)
            if self._args.wait:
                began = time.monotonic()
                indexing.wait(produced.content_keys, self._args.timeout, self.progress.show)
                took = time.monotonic() - began
                self.progress.finish(f"{len(produced.content_keys):,} contents indexed in {took:.1f} s")
        return self._send(contents_first.events, produced)

    def deletions(self, produced: Produced) -> None:
        """What follows the events when contents went first."""
        before = produced.contents
        produce(self._settings, contents_first.deletions(self.opened().records), so_far=produced)
        if produced.contents > before:
            self.progress.finish(f"{produced.contents - before:,} deletions of contents sent")

    def waiting(self, so_far: Summary) -> None:
        """Show what is still open."""
        self.progress.show(
            f"{so_far.accounted:,} of {so_far.produced:,} events accounted for ({so_far.retrying:,} wait for "
            f"their content), {so_far.users_with_slate:,} of {so_far.active_users:,} users have a slate",
            so_far.accounted / max(so_far.produced, 1),
        )

    def _send(
        self,
        part: Callable[[Iterator[LogRecord]], Iterator[LogRecord]],
        earlier: Produced | None = None,
    ) -> Produced:
        """Send one part of the log."""
        log, began, produced = self.opened(), time.monotonic(), earlier or Produced()
        contents, events = produced.contents, produced.events

        def sent() -> str:
            counts = ((produced.events - events, "events"), (produced.contents - contents, "contents"))
            return " and ".join(f"{count:,} {name}" for count, name in counts if count) or "nothing"

        def sending(_: Produced) -> None:
            count = produced.events - events + produced.contents - contents
            rate = count / max(time.monotonic() - began, 1e-9)
            self.progress.show(f"{sent()} sent, {rate:,.0f}/s", log.fraction())

        produce(self._settings, part(log.records), speed=self._args.speed, so_far=produced, progress=sending)
        self.progress.finish(f"{sent()} sent in {time.monotonic() - began:.1f} s")
        return produced


def describe(summary: Summary) -> str:
    """The summary, one figure a line."""
    fresh = summary.freshness_ms
    counts = [name for name in Summary.__struct_fields__ if name not in ("freshness_ms", "verified")]
    rows = [(name, f"{getattr(summary, name):,}") for name in counts]
    rows += [("freshness p50", "-" if fresh.p50 is None else f"{fresh.p50:,.0f} ms")]
    rows += [("freshness p99", "-" if fresh.p99 is None else f"{fresh.p99:,.0f} ms")]
    if (found := summary.verified) is not None:
        rows += [("verified users", f"{found.users:,}"), ("largest error", f"{found.max_relative_error:.1e}")]
    return "\n".join(f"{name.replace('_', ' '):<18}{figure:>14}" for name, figure in rows)


def _write(path: Path, summary: Summary) -> None:
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
    except OSError as error:
        raise StreamAppError(f"--summary {path}: {error.strerror}") from None


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
