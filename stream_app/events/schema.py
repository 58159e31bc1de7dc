"""The event as producers send it; ``docs/schemas/event.json`` is made from this."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta


class Event(msgspec.Struct, gc=False):
    """One engagement of one user with one content; the topic says which action it is.

    Unknown fields are ignored, and null counts as missing. The record's key should be `user_id` in UTF-8: it
    saves a detour, and nothing else is read from it."""

    user_id: Annotated[str, Meta(description="Who; should also be the record's key.", min_length=1)]
    content_id: Annotated[str, Meta(description="With what.", min_length=1)]
    event_id: Annotated[
        str | None,
        Meta(
            description="Unique name of the event: it lets repeated sends be recognised and an undo name its "
            "original. Missing: topic-partition-offset-timestamp."
        ),
    ] = None
    occurred_at: Annotated[
        Annotated[datetime, Meta(tz=True)] | int | None,
        Meta(
            description="When: RFC 3339 with an offset, or Unix milliseconds. Missing: the Kafka timestamp."
        ),
    ] = None
    undo: Annotated[
        bool | None,
        Meta(description="True takes back the event of this `event_id` (unlike, deleted comment)."),
    ] = None
    text: Annotated[str | None, Meta(description="A comment's text; not used yet.")] = None
