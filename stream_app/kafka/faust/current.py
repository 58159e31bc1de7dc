"""Which batch is being worked on: for the log."""

from __future__ import annotations

from faust import current_event


def current_batch() -> dict[str, str | int]:
    """Topic, partition and offset of the batch (its last record's) that the running task, or the one that
    started it, has taken from its stream last; empty outside of agents."""
    event = current_event()
    if event is None:
        return {}
    message = event.message
    return {"topic": message.topic, "partition": message.partition, "offset": message.offset}
