"""``stream-app broker``: Apache Kafka on this machine, in the foreground."""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

from stream_app.errors import BrokerUnavailableError
from stream_app.kafka.broker import LocalBroker
from stream_app.settings import Settings

HELP = "run Apache Kafka on this machine, in the foreground"

DEFAULT_PORT = 9092
KEPT_DIRECTORY = Path(".stream-app/broker")
POLL_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help=f"port on 127.0.0.1 (default {DEFAULT_PORT}); 0: a free one",
    )
    parser.add_argument("--directory", type=Path, metavar="DIR", help="keep topics and records in DIR")
    parser.add_argument("--keep", action="store_true", help=f"the same as --directory {KEPT_DIRECTORY}")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the address, then serve until SIGINT or SIGTERM."""
    directory: Path | None = args.directory or (KEPT_DIRECTORY if args.keep else None)
    # noted rather than raised: a signal that comes while Kafka starts must not leave it half started
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: signals.append(received))
    with LocalBroker(directory and directory.resolve(), port=args.port or None) as broker:
        print(broker.address, flush=True)
        while not signals:
            if not broker.running:
                raise BrokerUnavailableError(
                    f"the local Kafka at {broker.address} has ended by itself; see {broker.log_path}"
                )
            time.sleep(POLL_S)
    return 0
