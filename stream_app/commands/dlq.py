"""``stream-app dlq``: look at the dead letters, and give them a second chance."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec

from stream_app.commands.dlq_letters import Selection, no_letter, read_letters, read_marks
from stream_app.commands.dlq_redrive import Summary, redrive
from stream_app.errors import ConfigurationError
from stream_app.events.dead_letters import our_headers, written_ms
from stream_app.events.reasons import Reason
from stream_app.events.redrive import Refusal, mark_of, reason_of
from stream_app.replay.progress import Progress
from stream_app.settings import Settings

HELP = "list, show, count and redrive dead letters"

SHOWN_BYTES = 4_000
SHOWN_REFUSALS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=argparse.ArgumentParser
    )
    listing = actions.add_parser("list", help="one line a dead letter, oldest first")
    count = actions.add_parser("count", help="number of dead letters by reason")
    show = actions.add_parser("show", help="one dead letter with all its headers and its value")
    again = actions.add_parser(
        "redrive", help="give dead letters a second chance, each at most once; it can be interrupted"
    )
    for one in (listing, count):
        one.add_argument("--redriven", action="store_true", help="those too that had a second chance")
    for one in (listing, count, again):
        _add_filters(one)
        one.add_argument("--json", action="store_true", help="JSON instead of text")
    listing.add_argument(
        "--limit", type=_count_of, default=100, metavar="N", help="at most this many (default: %(default)s)"
    )
    show.add_argument("partition", type=int, metavar="PARTITION", help="of `events-dlq`")
    show.add_argument("offset", type=int, metavar="OFFSET", help="in that partition")
    again.add_argument(
        "letters",
        type=int,
        nargs="*",
        metavar="PARTITION OFFSET",
        help="only these letters, by their places as `dlq list` shows them",
    )
    again.add_argument("--all", action="store_true", help="all letters; needed when nothing else says which")
    again.add_argument("--limit", type=_count_of, metavar="N", help="redrive at most this many")
    again.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reason",
        action="append",
        default=[],
        choices=[r.value for r in Reason],
        metavar="R",
        help="only this reason code; may be given several times",
    )
    parser.add_argument("--topic", metavar="T", help="only records that first arrived on this topic")
    for option, words in (("--since", "since"), ("--until", "before")):
        parser.add_argument(
            option,
            type=_moment,
            metavar="T",
            help=f"only those written {words}: RFC 3339, or 90s, 15m, 12h, 7d ago",
        )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0; 1 when a letter that was named by its place is refused. Raises StreamAppError."""
    if args.action == "show":
        _show(settings, args.partition, args.offset)
        return 0
    selection = _selection(args, settings)
    if args.action == "redrive":
        return _redrive(args, settings, selection)
    marks = read_marks(settings)
    letters = (r for r in read_letters(settings, selection) if args.redriven or mark_of(r) not in marks)
    if args.action == "count":
        _count(letters, as_json=args.json)
    else:
        for record in islice(letters, args.limit):
            redriven = mark_of(record) in marks
            print(json.dumps(_summary(record, redriven)) if args.json else _line(record, redriven))
    return 0


def printable(raw: bytes | None, limit: int = SHOWN_BYTES) -> str:
    """Bytes for a terminal: text as it is, everything else escaped; nothing can move the cursor.

    >>> printable(b"caf\\xc3\\xa9 \\x1b[2J \\xff")
    'café \\\\x1b[2J \\\\xff'
    """
    if raw is None:
        return "null"
    text = raw[:limit].decode(errors="backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(raw) <= limit else f"{shown}… ({len(raw):,} bytes)"


def _ours(record: Any) -> dict[str, str]:
    """Our headers of a dead letter, without the prefix."""
    return {name: printable(value) for name, value in our_headers(record).items()}


def _summary(record: Any, redriven: bool) -> dict[str, object]:
    ours = _ours(record)
    return {
        "partition": record.partition,
        "offset": record.offset,
        "bytes": None if record.value is None else len(record.value),
        "origin": {name: ours.pop(name, None) for name in ("topic", "partition", "offset", "timestamp")},
        "redriven": redriven,
        **ours,
    }


def _line(record: Any, redriven: bool) -> str:
    ours = _ours(record)
    when = _rfc3339(written_ms(record))
    place = f"{ours.get('topic', '?')}/{ours.get('partition', '?')}/{ours.get('offset', '?')}"
    detail = ours.get("detail", "") + (" (redriven)" if redriven else "")
    return f"{record.partition} {record.offset}  {when}  {reason_of(record):<19}  from {place}  {detail}"


def _rfc3339(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        return f"{time_ms} ms"


def _count(letters: Iterator[Any], *, as_json: bool) -> None:
    counts = Counter(reason_of(record) for record in letters)
    if as_json:
        print(json.dumps(dict(counts.most_common())))
        return
    for reason, number in counts.most_common():
        print(f"{number:>12,}  {reason}")
    print(f"{counts.total():>12,}  in all")


def _show(settings: Settings, partition: int, offset: int) -> None:
    for record in read_letters(settings, Selection(places=frozenset({(partition, offset)}))):
        print(f"key    {printable(record.key)}")
        for name, value in record.headers or ():
            print(f"header {printable(name.encode())} = {printable(value)}")
        print(f"value  {printable(record.value)}")
        return
    raise no_letter(settings, partition, offset)


def _redrive(args: argparse.Namespace, settings: Settings, selection: Selection) -> int:
    if selection.everything and not args.all:
        raise ConfigurationError(
            "dlq redrive: say which letters: PARTITION OFFSET, --reason, --topic, --since, --until, or --all"
        )
    shown = 0

    def refused(letter: Any, refusal: Refusal) -> None:
        nonlocal shown
        shown += 1
        if shown <= SHOWN_REFUSALS:
            print(f"{letter.partition} {letter.offset}  refused: {refusal.meaning}", file=sys.stderr)
        elif shown == SHOWN_REFUSALS + 1:
            print("… and more are refused", file=sys.stderr)

    summary = redrive(
        settings,
        selection,
        limit=args.limit,
        dry_run=args.dry_run,
        refused=refused,
        progress=Progress().show,
    )
    if args.json:
        print(msgspec.json.encode(summary).decode())
    else:
        _print_summary(summary)
    return 1 if selection.places and summary.refused else 0


def _print_summary(summary: Summary) -> None:
    print(f"{summary.redriven:>12,}  {'would be redriven' if summary.dry_run else 'redriven'}")
    if summary.redriven_before:
        print(f"{summary.redriven_before:>12,}  redriven before: left alone")
    for code, number in sorted(summary.refused.items()):
        print(f"{number:>12,}  refused: {code}")


def _selection(args: argparse.Namespace, settings: Settings) -> Selection:
    """Raises ConfigurationError when an offset is missing."""
    numbers: list[int] = getattr(args, "letters", [])
    if len(numbers) % 2:
        raise ConfigurationError(f"dlq redrive: {numbers[-1]}: a letter is named by PARTITION OFFSET")
    topic = args.topic
    if topic is not None and not topic.startswith(settings.kafka.topic_prefix):
        topic = settings.topic_name(topic)
    return Selection(
        reasons=frozenset(args.reason),
        topic=topic,
        since_ms=args.since,
        until_ms=args.until,
        places=frozenset(zip(numbers[::2], numbers[1::2], strict=True)),
    )


def _count_of(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is no number of letters")
    return int(text)


def _moment(text: str) -> int:
    """Unix ms of an RFC 3339 time, or of so long ago."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    try:
        if text[-1:] in units:
            return int((datetime.now(UTC).timestamp() - float(text[:-1]) * units[text[-1]]) * 1000)
        moment = datetime.fromisoformat(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text} is neither a time nor a span such as 90s, 15m, 12h, 7d"
        ) from None
