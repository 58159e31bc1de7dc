"""Where inputs are read on: the state's own word counts, then the group's, then the beginning."""

from __future__ import annotations

import logging

from stream_app.interests.statistics_record import Outcomes
from stream_app.kafka.records import Partition
from stream_app.kafka.topic_ids import Bounds, CommittedOffset, same_topic
from stream_app.observability import metrics

log = logging.getLogger(__name__)


def goes_on(state: Outcomes, tp: Partition, group: CommittedOffset, there: Bounds) -> int:
    """The offset from which the owner of a state reads an input that exists."""
    known, topic = state.positions.get(tp.topic), group.topic_id or ""
    assert group.offset is not None  # noqa: S101  # for the type checker: the topic exists
    if known is None or not same_topic(known[1], topic) or (not topic and known[0] > there.end):
        if state == Outcomes() and group.offset > there.first:
            log.warning(
                "%s[%d]: the group stands at %d, but there is no account of what was taken before: the "
                "state's topics were emptied, or the group was set by hand; `stream-app rebuild` makes the "
                "state from the events that are still there",
                *(*tp, group.offset),
            )
        return group.offset  # a state of before positions were kept, or another topic of that name
    at = known[0]
    if at < there.first:
        log.warning("%s[%d]: %d offsets have left the topic unread", *tp, there.first - at)
        metrics.RECORDS_EXPIRED.labels(tp.topic).inc(there.first - at)
        return there.first
    if at > there.end:
        log.error("%s[%d] was cut off at %d: all up to %d had been taken", *tp, there.end, at)
        return there.end
    if at != group.offset:
        log.warning(
            "%s[%d]: the group stands at %d, the state has taken all before %d and goes on there; "
            "`stream-app rebuild` begins anew",
            *(*tp, group.offset, at),
        )
    return at
