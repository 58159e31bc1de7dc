"""Keep every user's newest slate and print it as it changes: python examples/subscribe.py [USER]

Needs stream-app. The broker is STREAM_APP_BROKER, or 127.0.0.1:9092. Ends with Ctrl-C.
"""

from __future__ import annotations

import contextlib
import sys

from stream_app.client import COLD_START_USER_ID, Subscriber
from stream_app.recommendations.slate import Slate


def main(only: str | None) -> None:
    """Follow `recommendations` from its beginning: it is compacted, so that is everybody's newest slate."""
    slates: dict[str, Slate] = {}
    with Subscriber() as subscriber:
        for update in subscriber:
            if update.slate is None:
                slates.pop(update.user_id, None)  # erased, or faded: show them the cold-start slate again
                continue
            slates[update.user_id] = update.slate
            if only in (None, update.user_id):
                everybody = update.user_id == COLD_START_USER_ID
                show("everybody else" if everybody else update.user_id, update.slate)


def show(user: str, slate: Slate) -> None:
    """A slate with what speaks for each content."""
    print(f"{user} ({slate.kind}, {slate.generated_at})")
    for item in slate.items:
        because = ", ".join(f"{r.share:.0%} {r.action} of {r.content_id}" for r in item.reasons)
        print(f"  {item.score:6.3f}  {item.content_id}" + (f"  ({because})" if because else ""))
    sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1] if len(sys.argv) > 1 else None)
