"""``stream-app topics``: every topic, and whether the broker has it as declared."""

from __future__ import annotations

import argparse
import sys

import msgspec

from stream_app.errors import ConfigurationError
from stream_app.kafka import admin
from stream_app.kafka.topic_state import TopicState
from stream_app.settings import Settings
from stream_app.topics import DAY_MS, FOREVER

HELP = (
    "list all topics and check them on the broker; --create creates what is missing, --alter mends the rest"
)

COLUMNS = ("TOPIC", "KEY", "VALUE", "PARTITIONS", "CLEANUP", "RETENTION", "STATE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--create", action="store_true", help="create the topics that are missing")
    parser.add_argument(
        "--alter", action="store_true", help="give topics their declared configuration where theirs differs"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="with --alter: only say what would be altered, and change nothing",
    )
    parser.add_argument("--json", action="store_true", help="a JSON list instead of the table")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the topics; 1 when one is missing or a worker would refuse it, 2 when partition counts cannot
    work together."""
    if args.dry_run and not args.alter:
        raise ConfigurationError("--dry-run says what --alter would do: give both")
    created = admin.create_topics(settings) if args.create else []
    altered = admin.alter_topics(settings, dry_run=args.dry_run) if args.alter else []
    for line in altered:
        print(f"stream-app: {'would alter' if args.dry_run else 'altered'} {line}", file=sys.stderr)
    states = admin.topic_states(settings)
    if args.json:
        sys.stdout.write(_json(states).decode() + "\n")
    else:
        _print_table(states, created)
    admin.check_partitions(settings, states)
    refused = [line for s in states for line in (*([s.missing] if s.missing else []), *s.refusals)]
    for line in refused:
        print(f"stream-app: {line}", file=sys.stderr)
    for line in (line for state in states for line in state.warnings):
        print(f"stream-app: warning: {line}", file=sys.stderr)
    return 1 if refused else 0


def _json(states: list[TopicState]) -> bytes:
    rows = [
        {
            "name": s.topic.name,
            "key": s.topic.key,
            "value": s.topic.value,
            "partitions": s.topic.partitions,
            "cleanup": s.topic.cleanup,
            "retention_ms": s.topic.retention_ms,
            "exists": s.partitions > 0,
            "partitions_found": s.partitions,
            "problem": "; ".join(([s.missing] if s.missing else []) + s.refusals + s.warnings) or None,
        }
        for s in states
    ]
    return msgspec.json.format(msgspec.json.encode(rows))


def _print_table(states: list[TopicState], created: list[str]) -> None:
    rows = [COLUMNS] + [
        (
            s.topic.name,
            s.topic.key,
            s.topic.value,
            str(s.topic.partitions),
            s.topic.cleanup,
            "for ever" if s.topic.retention_ms == FOREVER else f"{s.topic.retention_ms // DAY_MS} days",
            _state(s, created),
        )
        for s in states
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _state(state: TopicState, created: list[str]) -> str:
    if not state.partitions:
        return "missing"
    if state.partitions != state.topic.partitions:
        return f"has {state.partitions} partitions"
    if state.refusals:
        return "refused"
    if state.warnings:
        return "differs"
    return "created" if state.topic.name in created else "ok"
