"""The event as producers send it; ``docs/schemas/event.json`` is made from this."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from stream_app.events.times import EARLIEST_MS, LATEST_MS

IDS = ("user_id", "content_id", "event_id")

# What a schema can say and a type cannot, for free; the decoder's own checks are quicker than a pattern's.
# Bytes of UTF-8 it cannot count: an id of 256 characters may be too long.
ID = {"maxLength": 256, "not": {"pattern": r"[\u0000-\u001f\u007f-\u009f]"}}
Moment = Annotated[
    datetime, Meta(tz=True, extra_json_schema={"pattern": "^2(00[1-9]|0[1-9][0-9]|1[0-9]{2})-"})
]
"""RFC 3339, of a year that is taken whatever its offset: after 2000 and before 2200."""
Milliseconds = Annotated[int, Meta(extra_json_schema={"minimum": EARLIEST_MS, "maximum": LATEST_MS})]
"""Unix milliseconds from 2000 to 2200."""


class Event(msgspec.Struct, gc=False):
    """One engagement of one user with one content; the topic says which action it is.

    Unknown fields are ignored, and null counts as missing. The record's key should be `user_id` in UTF-8: it
    saves a detour, and nothing else is read from it."""

    user_id: Annotated[
        str, Meta(description="Who; should also be the record's key.", min_length=1, extra_json_schema=ID)
    ]
    content_id: Annotated[str, Meta(description="With what.", min_length=1, extra_json_schema=ID)]
    event_id: Annotated[
        Annotated[str, Meta(extra_json_schema=ID)] | None,
        Meta(
            description="Name of the event, unique for its action: it lets repeated sends be recognised and "
            "an undo name its original. Missing or empty: topic-partition-offset-timestamp."
        ),
    ] = None
    occurred_at: Annotated[
        Moment | Milliseconds | None,
        Meta(
            description="When: RFC 3339 with an offset, or Unix milliseconds. Missing: the Kafka timestamp."
        ),
    ] = None
    undo: Annotated[
        bool | None,
        Meta(description="True takes back the event of this `event_id` (unlike, deleted comment)."),
    ] = None
    text: Annotated[str | None, Meta(description="A comment's text; not used yet.")] = None
