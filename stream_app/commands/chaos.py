"""``stream-app chaos``: break real workers and a real Kafka on purpose, then check that nothing was lost."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

from stream_app.chaos.archive import Archive
from stream_app.chaos.run import Run
from stream_app.chaos.schedule import KINDS, schedule
from stream_app.chaos.summary import Summary, describe, problems, summarize, write
from stream_app.chaos.world import world
from stream_app.errors import StreamAppError
from stream_app.processes import unwind_on_sigterm
from stream_app.settings import Settings

HELP = (
    "break workers, broker, network and disks on purpose; an oracle then looks for what was lost or doubled"
)

EVENTS_A_FAULT = 1_500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--faults", type=_count, default=34, metavar="N", help="how many (default %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="S", help="of schedule and events (default %(default)s)"
    )
    parser.add_argument(
        "--events",
        type=_count,
        metavar="N",
        help=f"send at least so many events (default: {EVENTS_A_FAULT} a fault)",
    )
    parser.add_argument("--kinds", metavar="A,B", help=f"only these kinds of faults: {', '.join(KINDS)}")
    parser.add_argument(
        "--workers",
        type=_count,
        default=2,
        metavar="N",
        help="interests workers at the start (default %(default)s)",
    )
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the summary as JSON")
    parser.add_argument("--directory", type=Path, metavar="D", help="keep logs, state and records there")
    parser.add_argument(
        "--worker-command",
        default=f"{shlex.quote(sys.executable)} -m stream_app",
        metavar="COMMAND",
        help="what stands for `stream-app` when workers are started: for tests with workers that are broken "
        "on purpose (default: this installation)",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0 when every fault was recovered from and the oracle found nothing; else 1."""
    unwind_on_sigterm()
    kinds = args.kinds.split(",") if args.kinds else tuple(KINDS)
    faults = schedule(args.seed, args.faults, kinds)
    events = args.events or EVENTS_A_FAULT * args.faults
    print(f"seed {args.seed}; the same again: {_again(args, events)}", flush=True)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = _directory(args.directory)
        if args.directory is None:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        _say(f"starting Kafka and workers (files in {directory})")
        around = stack.enter_context(world(settings, directory))
        archive = stack.enter_context(Archive(around.direct))
        command = shlex.split(args.worker_command)
        a_run = Run(around, archive, directory, faults, events, command, args.workers, _say)
        summary = asyncio.run(_play(a_run, args.seed, began))
    if args.summary:
        write(args.summary, summary)
    print(describe(summary))
    found = problems(summary)
    for problem in found:
        print(f"stream-app: {problem}", file=sys.stderr)
    return 1 if found else 0


async def _play(a_run: Run, seed: int, began: float) -> Summary:
    try:
        await a_run.play(seed)
        return await summarize(a_run, seed, began)
    finally:
        a_run.close()


def _again(args: argparse.Namespace, events: int) -> str:
    kinds = f" --kinds {args.kinds}" if args.kinds else ""
    counts = f"--faults {args.faults} --events {events} --workers {args.workers}"
    return f"stream-app chaos --seed {args.seed} {counts}{kinds}"


def _directory(wanted: Path | None) -> Path:
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="stream-app-chaos-"))
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        if any(wanted.iterdir()):
            raise StreamAppError(f"--directory {wanted}: is not empty; give a new one")
    except OSError as error:
        raise StreamAppError(f"--directory {wanted}: {error.strerror}") from None
    return wanted.resolve()


def _say(text: str) -> None:
    print(text, flush=True)


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 100 million")
    return number
