"""``stream-app demo``: the whole pipeline on this machine, fed and shown live."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from stream_app.commands.replay import describe
from stream_app.demo.live import Screen
from stream_app.demo.run import Plan, feed, missing
from stream_app.demo.run import run as run_demo
from stream_app.errors import StreamAppError
from stream_app.processes import unwind_on_sigterm
from stream_app.settings import Settings

HELP = "run Kafka and all four workers on this machine, feed a small world, show it live"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=45.0,
        metavar="S",
        help="feed for S seconds (default %(default)g)",
    )
    parser.add_argument(
        "--users", type=_count, default=300, metavar="N", help="people in the world (default %(default)s)"
    )
    parser.add_argument(
        "--rate", type=_positive, default=80.0, metavar="R", help="events a second (default %(default)g)"
    )
    parser.add_argument(
        "--log",
        type=Path,
        metavar="PATH",
        help="a recorded log instead: .jsonl, .jsonl.gz or Deskdrop directory",
    )
    parser.add_argument(
        "--feed-only",
        action="store_true",
        help="only feed the world, as kafka.broker and topics are set: the workers run elsewhere",
    )
    parser.add_argument("--keep", action="store_true", help="keep worker logs, state and records in .demo/")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the summary as JSON")
    parser.add_argument("--json", action="store_true", help="print only the summary, as JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0 when every event is accounted for and each active user has a slate; else 1."""
    unwind_on_sigterm()
    plan = Plan(args.seconds, args.users, args.rate, args.log, args.keep)
    screen = Screen(sys.stderr if args.json else sys.stdout)
    if args.feed_only:
        if args.log or args.keep or args.summary or args.json:
            raise StreamAppError("--feed-only keeps and counts nothing; `stream-app replay` sends a log")
        screen.say(f"{feed(plan, settings, screen).events:,} events sent")
        return 0
    summary = run_demo(plan, settings, screen)
    text = msgspec.json.format(msgspec.json.encode(summary)) + b"\n"
    if args.summary:
        try:
            args.summary.write_bytes(text)
        except OSError as error:
            raise StreamAppError(f"--summary {args.summary}: {error.strerror}") from None
    print(text.decode() if args.json else describe(summary), flush=True)
    for fault in (faults := missing(summary)):
        print(f"stream-app: {fault}: --keep keeps the workers' logs, which say why", file=sys.stderr)
    return 1 if faults else 0


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and a million")
    return number


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and a million")
    return number
