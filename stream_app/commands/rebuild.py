"""``stream-app rebuild``: the interests made anew from the events that are still there."""

from __future__ import annotations

import argparse
import asyncio

from stream_app.errors import BrokerUnavailableError, StreamAppError
from stream_app.interests.rebuild import Loss, loss, rebuild
from stream_app.kafka.admin import check_partitions, group_members, topic_states
from stream_app.kafka.errors import KafkaError
from stream_app.settings import Settings

HELP = "make the interests anew from the events that the topics still hold; says first what would be lost"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--yes", action="store_true", help="do it; without this it is only said what would be lost"
    )
    how.add_argument("--dry-run", action="store_true", help="say what would be lost, and exit with status 0")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0 when it is done (with ``--dry-run``: known); 1 when ``--yes`` was missing, or workers run."""
    group = settings.group("interests")
    check_partitions(settings, topic_states(settings))
    if not args.dry_run and (members := group_members(settings, group)):
        raise StreamAppError(
            f"{members} workers are in the group {group}: end all interests workers first (one that was "
            f"killed leaves it after {settings.kafka.session_timeout_s:.0f} s)"
        )
    try:
        print(_text(asyncio.run(loss(settings, _say)), settings))
        if not args.yes:
            if not args.dry_run:
                print("nothing was done: give --yes to do it")
            return 0 if args.dry_run else 1
        asyncio.run(_rebuild(settings))
    except KafkaError as error:
        raise BrokerUnavailableError(f"the broker at {settings.kafka.broker} fails: {error!r}") from error
    print("done: start the interests workers, and they read the events from the beginning")
    return 0


async def _rebuild(settings: Settings) -> None:
    for partition in range(settings.kafka.partitions):
        await rebuild(settings, partition, _say)


def _say(what: str) -> None:
    print(what, flush=True)


def _text(found: Loss, settings: Settings) -> str:
    days = settings.kafka.event_retention_days
    return (
        f"the state has {found.users:,} users with {found.interactions:,} interactions\n"
        f"the event topics still hold {found.events:,} records (kept for {days} days); {found.expired:,} "
        "have left them\n"
        f"lost would be {found.users_lost:,} users, of whom no event is left, and at least "
        f"{found.interactions_lost:,} interactions\n"
        f"{found.retries:,} waiting retries are skipped: their events are read again. So are those that "
        "became dead letters, and become some once more\n"
        "receipts of erasures and their fences stay"
    )
