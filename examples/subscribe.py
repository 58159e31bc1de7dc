"""Keep every user's newest slate and print it as it changes: python examples/subscribe.py [USER]

Needs kafka-python. The broker is STREAM_APP_BROKER, or 127.0.0.1:9092. Ends with Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

from kafka import KafkaConsumer

COLD_START = "\u0000cold-start"  # the slate for users whom nobody knows yet


def main(only: str | None) -> None:
    """Follow `recommendations` from its beginning: it is compacted, so that is everybody's newest slate."""
    consumer = KafkaConsumer(
        "recommendations",
        bootstrap_servers=os.environ.get("STREAM_APP_BROKER", "127.0.0.1:9092"),
        auto_offset_reset="earliest",
        isolation_level="read_committed",  # slates come in transactions; one that was aborted never counted
        enable_auto_commit=False,
    )
    slates: dict[str, dict[str, Any]] = {}
    for record in consumer:
        user = record.key.decode()
        if record.value is None:
            slates.pop(user, None)  # erased, or faded: show them the cold-start slate again
            continue
        slates[user] = slate = json.loads(record.value)
        if only in (None, user):
            show("everybody else" if user == COLD_START else user, slate)


def show(user: str, slate: dict[str, Any]) -> None:
    """A slate with what speaks for each content."""
    print(f"{user} ({slate['kind']}, {slate['generated_at']})")
    for item in slate["items"]:
        because = ", ".join(f"{r['share']:.0%} {r['action']} of {r['content_id']}" for r in item["reasons"])
        print(f"  {item['score']:6.3f}  {item['content_id']}" + (f"  ({because})" if because else ""))
    sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1] if len(sys.argv) > 1 else None)
