"""Publish a few posts and engage with them: python examples/produce.py [USER]

Needs kafka-python. The broker is STREAM_APP_BROKER, or 127.0.0.1:9092.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid

from kafka import KafkaProducer

POSTS = {
    "example-soup": ("A soup from leftovers", "Half a cabbage, a soft leek, a handful of beans, two hours."),
    "example-dal": ("Dal in twenty minutes", "Red lentils, turmeric, and cumin fried in butter at the end."),
    "example-comet": ("How a comet gets two tails", "Dust lags behind, ions follow the solar wind."),
}


def main(user: str) -> None:
    """Send posts, a like, a comment, a share, and take the like back."""
    producer = KafkaProducer(
        bootstrap_servers=os.environ.get("STREAM_APP_BROKER", "127.0.0.1:9092"), acks="all"
    )

    def send(topic: str, key: str, value: dict[str, object]) -> None:
        producer.send(topic, key=key.encode(), value=json.dumps(value).encode())

    for content_id, (title, text) in POSTS.items():
        send("content", content_id, {"title": title, "text": text, "author": "example"})
    like = event(user, "example-comet")
    send("likes", user, like)
    send("comments", user, event(user, "example-soup") | {"text": "Made it, loved it."})
    send("shares", user, event(user, "example-dal"))
    send("likes", user, like | {"undo": True})  # the same event_id: unlike
    producer.flush()
    print(f"sent {len(POSTS)} posts and 4 events of {user}")


def event(user: str, content_id: str) -> dict[str, object]:
    """An event now. A new id each time: sending the same id twice counts once."""
    return {
        "event_id": str(uuid.uuid4()),
        "user_id": user,
        "content_id": content_id,
        "occurred_at": int(time.time() * 1000),
    }


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "example-user")
