"""``stream-app worker``: one role in this process, or the four that make slates in processes of their own."""

from __future__ import annotations

import argparse
import asyncio

from stream_app.kafka.faust.current import current_batch
from stream_app.observability.logging import configure
from stream_app.processes import end_with_parent
from stream_app.settings import Settings
from stream_app.supervisor import run_all
from stream_app.worker import ROLES, run_worker

HELP = "run a role: interests, content, ranker, trainer, or these four (all); or answer over HTTP (serve)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("role", choices=[*ROLES, "all"], help="what this worker does")
    parser.add_argument(
        "--end-with-parent",
        nargs="?",
        type=int,
        const=0,
        metavar="PID",
        help="end when the process that started this worker is gone (Linux)",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; 0 after a clean end."""
    if args.end_with_parent is not None:
        end_with_parent(args.end_with_parent or None)
    if args.role == "all":
        options = ["--config", args.config] if args.config else []
        return run_all(settings, [*options, "--log-level", settings.observability.log_level])
    shown = settings.observability
    configure(args.role, shown.log_level, form=shown.log_format, place=current_batch)
    return asyncio.run(run_worker(settings, args.role))
