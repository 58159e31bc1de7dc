"""``stream-app dlq``: look at the dead letters."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from stream_app.errors import StreamAppError
from stream_app.events.dead_letters import PREFIX
from stream_app.events.reasons import Reason
from stream_app.kafka import clients
from stream_app.settings import Settings

HELP = "list, show and count dead letters"

TOPIC = "events-dlq"
SHOWN_BYTES = 4_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=argparse.ArgumentParser
    )
    listing = actions.add_parser("list", help="one line a dead letter, oldest first")
    count = actions.add_parser("count", help="number of dead letters by reason")
    for one in (listing, count):
        one.add_argument(
            "--reason", choices=[r.value for r in Reason], metavar="R", help="only this reason code"
        )
        one.add_argument(
            "--since",
            type=_moment,
            metavar="T",
            help="only those written since: RFC 3339, or 90s, 15m, 12h, 7d ago",
        )
        one.add_argument("--json", action="store_true", help="JSON instead of text")
    listing.add_argument(
        "--limit", type=int, default=100, metavar="N", help="at most this many (default: %(default)s)"
    )
    show = actions.add_parser("show", help="one dead letter with all its headers and its value")
    show.add_argument("partition", type=int, metavar="PARTITION", help="of `events-dlq`")
    show.add_argument("offset", type=int, metavar="OFFSET", help="in that partition")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0; a dead letter that is not there raises StreamAppError."""
    if args.action == "show":
        _show(settings, args.partition, args.offset)
        return 0
    letters = _letters(settings, args.reason, args.since)
    if args.action == "count":
        _count(letters, as_json=args.json)
    else:
        for record in islice(letters, args.limit):
            print(json.dumps(_summary(record)) if args.json else _line(record))
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


def _letters(settings: Settings, reason: str | None, since_ms: int | None) -> Iterator[Any]:
    """Dead letters (kafka-python's records), filtered."""
    for record in clients.read_topic(settings, settings.topic_name(TOPIC)):
        if since_ms is not None and record.timestamp < since_ms:
            continue
        if reason is None or _ours(record).get("reason") == reason:
            yield record


def _ours(record: Any) -> dict[str, str]:
    """Our headers of a dead letter, without the prefix."""
    headers = record.headers or ()
    return {n.removeprefix(PREFIX): printable(v) for n, v in headers if n.startswith(PREFIX)}


def _summary(record: Any) -> dict[str, object]:
    return {
        "partition": record.partition,
        "offset": record.offset,
        "bytes": None if record.value is None else len(record.value),
        **_ours(record),
    }


def _line(record: Any) -> str:
    ours = _ours(record)
    when = datetime.fromtimestamp(record.timestamp / 1000, UTC).isoformat(timespec="milliseconds")
    place = f"{ours.get('topic', '?')}/{ours.get('partition', '?')}/{ours.get('offset', '?')}"
    reason, detail = ours.get("reason", "?"), ours.get("detail", "")
    return f"{record.partition} {record.offset}  {when}  {reason:<19}  from {place}  {detail}"


def _count(letters: Iterator[Any], *, as_json: bool) -> None:
    counts = Counter(_ours(record).get("reason", "?") for record in letters)
    if as_json:
        print(json.dumps(dict(counts.most_common())))
        return
    for reason, number in counts.most_common():
        print(f"{number:>12,}  {reason}")
    print(f"{counts.total():>12,}  in all")


def _show(settings: Settings, partition: int, offset: int) -> None:
    record = _at(settings, partition, offset)
    print(f"key    {printable(record.key)}")
    for name, value in record.headers or ():
        print(f"header {printable(name.encode())} = {printable(value)}")
    print(f"value  {printable(record.value)}")


def _at(settings: Settings, partition: int, offset: int) -> Any:
    """One dead letter. Raises StreamAppError when it is not there."""
    topic = settings.topic_name(TOPIC)
    for record in clients.read_topic(settings, topic):
        if (record.partition, record.offset) == (partition, offset):
            return record
    raise StreamAppError(
        f"{topic} has no dead letter at partition {partition}, offset {offset}: see `dlq list`"
    )


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
