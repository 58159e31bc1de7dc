"""``stream-app tail``: slates as they arrive."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

import msgspec
from kafka import KafkaConsumer, TopicPartition

from stream_app.errors import TopicMismatchError
from stream_app.kafka import clients
from stream_app.recommendations.readable import Titles, heading, lines
from stream_app.recommendations.slate import Slate, decode
from stream_app.settings import Settings

HELP = "print slates as they arrive, with titles and reasons"

POLL_MS = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--user", metavar="U", help="only this user's slates")
    parser.add_argument("--from-beginning", action="store_true", help="also those already on the topic")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N slates")
    parser.add_argument(
        "--json", action="store_true", help="one JSON slate a line, as it stands on the topic"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print slates until ``--limit`` or Ctrl-C."""
    titles = Titles()
    wanted = None if args.user is None else args.user.encode(errors="surrogateescape")
    printed = 0
    if args.limit is not None and args.limit < 1:
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        for key, value in follow(settings, titles, from_beginning=args.from_beginning):
            if wanted is not None and key != wanted:
                continue
            try:
                slate = decode(value)
            except msgspec.DecodeError as error:
                print(f"a record of recommendations is no slate: {error}", file=sys.stderr)
                continue
            _show(slate, value, titles, as_json=args.json)
            printed += 1
            if printed == args.limit:
                break
    return 0


def follow(
    settings: Settings, titles: Titles, *, from_beginning: bool
) -> Iterator[tuple[bytes | None, bytes]]:
    """Keys and values of ``recommendations`` without end, while ``titles`` learns from ``content``.

    All contents known at the start are read first, so that the first slate has its titles.
    Raises TopicMismatchError when a topic is missing, BrokerUnavailableError.
    """
    content, slates = settings.topic_name("content"), settings.topic_name("recommendations")
    with contextlib.closing(clients.consumer(settings)) as consumer, clients.naming_the_broker(settings):
        contents, wanted = _partitions(consumer, content), _partitions(consumer, slates)
        consumer.assign(contents + wanted)
        if from_beginning:
            consumer.seek_to_beginning(*wanted)
        else:
            consumer.seek_to_end(*wanted)
            for partition in wanted:
                consumer.position(partition)  # fixes "the end" now, before the contents are read
        consumer.seek_to_beginning(*contents)
        ends = consumer.end_offsets(contents)
        consumer.pause(*wanted)
        while True:
            if consumer.paused() and all(consumer.position(tp) >= ends[tp] for tp in contents):
                consumer.resume(*wanted)
            for tp, records in consumer.poll(timeout_ms=POLL_MS).items():
                for record in records:
                    if tp.topic == content:
                        titles.learn(record.key, record.value)
                    elif record.value is not None:
                        yield record.key, record.value


def _partitions(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        raise TopicMismatchError(f"topic {topic} does not exist: create it with `stream-app topics --create`")
    return [TopicPartition(topic, number) for number in sorted(numbers)]


def _show(slate: Slate, value: bytes, titles: Titles, *, as_json: bool) -> None:
    if as_json:
        print(value.decode(), flush=True)
    else:
        print("\n".join((heading(slate), *lines(slate, titles), "")), flush=True)
