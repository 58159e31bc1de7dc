"""``stream-app models``: the encoders whose vectors stand on ``content-vectors``, and the end of one."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field

import msgspec

from stream_app.content import vectors
from stream_app.content.coverage import Mark, split_mark
from stream_app.content.model import model_id, role_of
from stream_app.content.vectors import split_key
from stream_app.errors import ConfigurationError, RecordFormatError
from stream_app.hashing import model_code
from stream_app.kafka import admin, clients
from stream_app.settings import Settings

HELP = "list the encoders that contents have vectors of; --retire MODEL deletes those of one"

COLUMNS = ("MODEL", "CODE", "CONTENTS", "FORMER", "ENCODED", "GROUP", "WORKERS", "CONFIGURED")


@dataclass(slots=True)
class Encoder:
    """What stands on the topic of one encoder."""

    model: str
    records: list[tuple[int, bytes]] = field(default_factory=list)
    """Partition and key of everything that is its"""
    contents: set[bytes] = field(default_factory=set)
    former: int = 0
    marks: list[Mark] = field(default_factory=list)

    @property
    def caught_up(self) -> bool:
        """Whether its workers have once encoded all that there was."""
        done = sum(mark.at > 0 for mark in self.marks)
        return done > 0 and done >= max(mark.partitions for mark in self.marks)


class Row(msgspec.Struct, frozen=True):
    """One line of the list."""

    model: str
    code: str
    contents: int
    former: int
    """Former vectors"""
    encoded: bool
    """Whether the contents that stood there when its workers last looked are encoded"""
    group: str
    """Consumer group of its content workers"""
    workers: int
    configured: bool
    """Whether `content.model` names it here"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--retire", metavar="MODEL", help="delete this model's vectors and consumer group")
    parser.add_argument("--yes", action="store_true", help="do it: else --retire only says what it would do")
    parser.add_argument("--json", action="store_true", help="a JSON list instead of the table")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the models, or retire one; 1 when it was not retired for want of --yes."""
    found = read(settings)
    if args.retire is not None:
        return _retire(args.retire, args.yes, settings, found)
    rows = [_row(settings, one) for one in sorted(found.values(), key=lambda one: one.model)]
    if args.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows)).decode() + "\n")
    else:
        _print_table(rows)
    return 0


def read(settings: Settings) -> dict[int, Encoder]:
    """Encoders by code, the configured one among them."""
    model = model_id(settings)
    found = {model_code(model): Encoder(model)}
    newest: dict[bytes, tuple[int, str, Mark | None]] = {}
    for record in clients.read_topic(settings, settings.topic_name("content-vectors")):
        named = None if record.value is None else _named(record.key or b"", record.value)
        if named is not None:
            newest[record.key] = (record.partition, *named)
        else:
            newest.pop(record.key, None)
    for key, (partition, name, mark) in newest.items():
        one = found.setdefault(model_code(name), Encoder(name))
        one.records.append((partition, key))
        if mark is not None:
            one.marks.append(mark)
        elif (place := split_key(key)) is not None and place.former is None:
            one.contents.add(place.content_id)
        else:
            one.former += 1
    return found


def _named(key: bytes, value: bytes) -> tuple[str, Mark | None] | None:
    """The encoder that a record is of, and its mark; None where it cannot be read."""
    try:
        if split_mark(key) is not None:
            mark = msgspec.json.decode(value, type=Mark)
            return mark.model, mark
        return None if split_key(key) is None else (vectors.decode(value).model, None)
    except (RecordFormatError, msgspec.MsgspecError):
        return None


def _row(settings: Settings, one: Encoder) -> Row:
    group = settings.group(role_of(one.model))
    return Row(
        one.model,
        f"{model_code(one.model):08x}",
        len(one.contents),
        one.former,
        one.caught_up,
        group,
        admin.group_members(settings, group),
        one.model == model_id(settings),
    )


def _retire(model: str, really: bool, settings: Settings, found: dict[int, Encoder]) -> int:
    """Delete all that a model has. Raises ConfigurationError when it may be in use, or is not there."""
    mine, one = found[model_code(model_id(settings))], found.get(model_code(model))
    if one is None or one.model != model:
        raise ConfigurationError(f"--retire {model}: there is no such model; `stream-app models` lists them")
    if one is mine:
        raise ConfigurationError(f"--retire {model}: it is the configured one (content.model)")
    group = settings.group(role_of(model))
    if workers := admin.group_members(settings, group):
        raise ConfigurationError(f"--retire {model}: {workers} of its content workers run: stop them first")
    alone = len(one.contents - mine.contents)
    if alone and not mine.caught_up:
        raise ConfigurationError(
            f"--retire {model}: {alone} contents have no vector of {mine.model} yet: its content workers "
            "must have caught up first"
        )
    counted = f"the vectors of {len(one.contents)} contents and {one.former} former ones"
    what = f"{counted} of {model}, and the group {group}"
    if not really:
        print(f"would delete {what}; say --yes to do it")
        return 1
    topic = settings.topic_name("content-vectors")
    with clients.producer(settings) as producer, clients.naming_the_broker(settings):
        sent = [producer.send(topic, key=key, value=None, partition=at) for at, key in one.records]
        for each in sent:
            each.get(settings.kafka.request_timeout_s)
    admin.delete_group(settings, group)
    print(f"deleted {what}")
    return 0


def _print_table(rows: list[Row]) -> None:
    lines = [COLUMNS] + [
        (
            row.model,
            row.code,
            str(row.contents),
            str(row.former),
            "all" if row.encoded else "not yet",
            row.group,
            str(row.workers),
            "yes" if row.configured else "",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
