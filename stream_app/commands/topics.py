"""``stream-app topics``: every topic, and whether the broker has it as declared."""

from __future__ import annotations

import argparse
import sys

import msgspec

from stream_app.kafka import admin
from stream_app.settings import Settings
from stream_app.topics import DAY_MS, FOREVER

HELP = "list all topics and check them on the broker; --create creates what is missing"

COLUMNS = ("TOPIC", "KEY", "VALUE", "PARTITIONS", "CLEANUP", "RETENTION", "STATE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--create", action="store_true", help="create the topics that are missing")
    parser.add_argument("--json", action="store_true", help="a JSON list instead of the table")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the topics; 1 when one is missing or differs, 2 when partition counts cannot work together."""
    created = admin.create_topics(settings) if args.create else []
    states = admin.topic_states(settings)
    if args.json:
        sys.stdout.write(_json(states).decode() + "\n")
    else:
        _print_table(states, created)
    admin.check_partitions(settings, states)
    problems = [state.problem for state in states if state.problem]
    for problem in problems:
        print(f"stream-app: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _json(states: list[admin.TopicState]) -> bytes:
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
            "problem": s.problem,
        }
        for s in states
    ]
    return msgspec.json.format(msgspec.json.encode(rows))


def _print_table(states: list[admin.TopicState], created: list[str]) -> None:
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


def _state(state: admin.TopicState, created: list[str]) -> str:
    if not state.partitions:
        return "missing"
    if state.partitions != state.topic.partitions:
        return f"has {state.partitions} partitions"
    if state.problem:
        return "differs"
    return "created" if state.topic.name in created else "ok"
