"""``stream-app erase``: what is kept of a user goes, and a receipt says what it was."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from stream_app.commands.dlq import printable
from stream_app.errors import ConfigurationError
from stream_app.events.faults import UnfitError, check_id
from stream_app.hashing import key64
from stream_app.interests.erasure import TOPIC
from stream_app.interests.receipts import Receipt, receipt_key
from stream_app.kafka import clients
from stream_app.replay.follower import Follower
from stream_app.settings import Settings

HELP = "erase users: state, slate, and copies of their events; prints a receipt for each"

POLL_S = 0.2
UNCONFIRMED = (
    "requested, but not confirmed within {:.0f} s: the request stands, and an interests worker carries it "
    "out (is one running?)"
)


@dataclass(slots=True)
class Requested:
    """A request on its way."""

    user: str
    partition: int
    offset: int
    receipt: Receipt | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("users", nargs="*", metavar="USER", help="ids of the users")
    parser.add_argument("--file", metavar="FILE", help="more of them, one a line; `-` reads standard input")
    parser.add_argument(
        "--as-of",
        type=_moment,
        metavar="T",
        help="refuse events of up to this time, RFC 3339 or Unix ms (default: now; in a replay give a time "
        "of the log)",
    )
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until everything is gone, copies included, and print the receipts",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=180.0,
        metavar="SECONDS",
        help="wait at most this long (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of text")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0 when all is gone (with ``--no-wait``: requested); 1 when that is not confirmed in time."""
    users = list(dict.fromkeys(_checked(user, settings) for user in _given(args)))
    if not users:
        raise ConfigurationError("nobody to erase: give user ids, or --file")
    receipts = Follower(settings, settings.topic_name("erasure-receipts"), from_now=True)
    with contextlib.closing(receipts):
        requests = _request(settings, users, args.as_of)
        if args.wait:
            _wait(requests, receipts, args.timeout)
    for request in requests:
        print(_json(request) if args.json else _text(request, args))
    done = all(r.receipt is not None and r.receipt.swept_at is not None for r in requests)
    return 0 if done or not args.wait else 1


def _given(args: argparse.Namespace) -> Iterator[str]:
    yield from map(_typed, args.users)
    if args.file is None:
        return
    try:
        text = sys.stdin.read() if args.file == "-" else Path(args.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--file {args.file}: {error}; give a text file, one user id a line"
        ) from None
    yield from (line for line in text.split("\n") if line)


def _typed(user: str) -> str:
    """The id as it was typed, whatever the locale knows. What is no UTF-8 stays, to be refused."""
    try:
        return user.encode(errors="surrogateescape").decode()
    except UnicodeError:
        return user


def _checked(user: str, settings: Settings) -> str:
    try:
        check_id("the user id", user, settings.events.max_id_bytes)
    except (UnfitError, UnicodeEncodeError) as error:
        raise ConfigurationError(f"USER {printable(user.encode(errors='replace'))}: {error}") from None
    return user


def _request(settings: Settings, users: list[str], as_of_ms: int | None) -> list[Requested]:
    """Produce the requests; the broker has them when this returns."""
    with clients.producer(settings) as producer, clients.naming_the_broker(settings):
        sent = []
        for user in users:
            erasure = {"user_id": user} | ({} if as_of_ms is None else {"requested_at": as_of_ms})
            value = json.dumps(erasure).encode()
            sent.append((user, producer.send(settings.topic_name(TOPIC), key=user.encode(), value=value)))
        patience = 2 * settings.kafka.request_timeout_s
        places = [(user, future.get(patience)) for user, future in sent]
    return [Requested(user, place.partition, place.offset) for user, place in places]


def _wait(requests: list[Requested], receipts: Follower, timeout_s: float) -> None:
    """Until everybody has a receipt that says all copies are gone, or the time is over."""
    missing = {(r.partition, receipt_key(key64(r.user))): r for r in requests}
    deadline = time.monotonic() + timeout_s
    while missing and time.monotonic() < deadline:
        for record in receipts.read():
            request = missing.get((record.partition, record.key))
            if request is None or record.value is None:
                continue
            receipt = msgspec.json.decode(record.value, type=Receipt)
            if receipt.request_offset >= request.offset:
                request.receipt = receipt
                if receipt.swept_at is not None:
                    del missing[record.partition, record.key]
        time.sleep(POLL_S)


def _json(request: Requested) -> str:
    return msgspec.json.encode(
        {
            "user_id": request.user,
            "partition": request.partition,
            "offset": request.offset,
            "receipt": request.receipt,
        }
    ).decode()


def _text(request: Requested, args: argparse.Namespace) -> str:
    user, receipt = printable(request.user.encode()), request.receipt
    if receipt is None:
        return f"{user}: {UNCONFIRMED.format(args.timeout) if args.wait else 'requested'}"
    removed = receipt.removed
    what = (
        f"a record of {removed.interactions:,} engagements with its slate"
        if removed.records
        else "there was no record"
    )
    copies = (
        f"{removed.retries:,} retries, {removed.dead_letters:,} dead letters"
        if receipt.swept_at is not None
        else f"copies on other topics are still there after {args.timeout:.0f} s, and will go"
    )
    return (
        f"{user}: erased at {_time(receipt.erased_at)}: {what}, {copies}\n"
        f"  events of up to {_time(receipt.fence)} are refused from now on\n"
        f"  not ours to erase: {', '.join(receipt.remains)} keep what was sent until their retention"
    )


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def _moment(text: str) -> int:
    """Unix ms."""
    try:
        if text.isdigit():
            return int(text)
        moment = datetime.fromisoformat(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text} is neither RFC 3339 nor Unix milliseconds") from None
