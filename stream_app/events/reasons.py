"""The closed list of reasons for which one record is dead-lettered; ``docs/REASONS.md`` is made from it."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a record was not applied. The value is the code in headers and metrics."""

    meaning: str

    def __new__(cls, code: str, meaning: str) -> Reason:
        """A member: its value is ``code``, ``meaning`` says in one line what a producer did wrong."""
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.meaning = meaning
        return reason

    EMPTY = "empty", "The value is null or has no bytes; an event topic knows no tombstones."
    OVERSIZED = (
        "oversized",
        "The value is longer than `events.max_bytes`, a content's longer than `content.max_bytes`; or an "
        "impression lists more than `impressions.max_contents`.",
    )
    INVALID_UTF8 = "invalid_utf8", "The value is not valid UTF-8."
    MALFORMED_JSON = "malformed_json", "The value is not one JSON text (NaN and Infinity are not JSON)."
    TOO_DEEP = "too_deep", "The JSON is nested more deeply than the decoder reads."
    MISSING_FIELD = (
        "missing_field",
        "`user_id` or `content_id` is missing (a content may name itself by its key alone), or an "
        "impression's `items` are.",
    )
    BAD_TYPE = "bad_type", "The value is not an object, or a field has another type than the schema says."
    INVALID_ID = (
        "invalid_id",
        "An id is empty (an empty `event_id` is none), longer than `events.max_id_bytes`, has control "
        "characters (U+0000 to U+001F, U+007F to U+009F) or half a surrogate pair; ids that start with "
        "U+0000 are the product's own.",
    )
    KEY_MISMATCH = (
        "key_mismatch",
        "A content's key is not its `content_id` in UTF-8, or an impression's not its `user_id`. The keys of "
        "events are not looked at.",
    )
    BAD_TIMESTAMP = (
        "bad_timestamp",
        "`occurred_at` (`created_at`) is no RFC 3339 date and time with an offset (`Z` or `+hh:mm`), or no "
        "point in time that can be represented; or it is missing and the record has no Kafka timestamp "
        "either. A content created before 1971 ends here too: seconds in place of milliseconds.",
    )
    TIMESTAMP_IN_FUTURE = (
        "timestamp_in_future",
        "The event time is more than `events.max_future_s` after the Kafka timestamp, or after now by the "
        "clocks of worker and broker, or after 2200-01-01. An event without `occurred_at` whose Kafka "
        "timestamp is of a wrong clock ends here too.",
    )
    TOO_OLD = (
        "too_old",
        "The event time is more than `events.max_age_days` before stream time, or before the year 2000 "
        "(seconds in place of milliseconds end here).",
    )
    BAD_ORIGIN = (
        "bad_origin",
        "A record on a retry topic or on `events-routed` does not say where it came from, or its topic is no "
        "action's.",
    )
    UNKNOWN_CONTENT = (
        "unknown_content",
        "The content was still not known after the last of `events.retry_delays_s`.",
    )
    UNDO_TARGET_GONE = (
        "undo_target_gone",
        "The event to undo is not among the interactions that the user's record remembers "
        "(`interests.recent`, `interests.kept`).",
    )
    UNREADABLE_BATCH = (
        "unreadable_batch",
        "A record batch is damaged, or compressed in a way that Kafka does not know. One letter without key "
        "and value stands for its offsets, from `stream-app-offset` to `stream-app-last-offset`.",
    )
    OVERSIZED_BATCH = (
        "oversized_batch",
        "A compressed record batch unpacks to more than `kafka.batch_max_bytes`. One letter stands for its "
        "offsets, likewise.",
    )
    ERASED = (
        "erased",
        "The user was erased, and the event is of the time before (its event time is not after the receipt's "
        "`fence`). Its key, value and headers are not kept.",
    )
