"""Publish a few posts and engage with them: python examples/produce.py [USER]

Needs stream-app. The broker is STREAM_APP_BROKER, or 127.0.0.1:9092.
"""

from __future__ import annotations

import sys
import time

from stream_app.client import EventProducer
from stream_app.content.schema import Content

POSTS = {
    "example-soup": ("A soup from leftovers", "Half a cabbage, a soft leek, a handful of beans, two hours."),
    "example-dal": ("Dal in twenty minutes", "Red lentils, turmeric, and cumin fried in butter at the end."),
    "example-comet": ("How a comet gets two tails", "Dust lags behind, ions follow the solar wind."),
}


def main(user: str) -> None:
    """Send posts, a like, a comment, a share, and take the like back."""
    now = int(time.time() * 1000)
    with EventProducer() as producer:
        for content_id, (title, text) in POSTS.items():
            producer.publish(content_id, Content(title=title, text=text, author="example", created_at=now))
        like = producer.like(user, "example-comet")
        producer.comment(user, "example-soup", text="Made it, loved it.")
        producer.share(user, "example-dal")
        producer.undo(like)
    print(f"sent {len(POSTS)} posts and 4 events of {user}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "example-user")
