"""Where an aiokafka consumer reads on, without asking its event loop or the broker."""

from __future__ import annotations

from collections.abc import Container

from aiokafka import AIOKafkaConsumer

from stream_app.kafka.records import Partition


def positions(consumer: AIOKafkaConsumer, topics: Container[str]) -> dict[Partition, int]:
    """The next offset of each assigned partition of ``topics``; 0 where that is not known yet."""
    subscription = consumer._subscription.subscription
    assignment = None if subscription is None else subscription.assignment
    if assignment is None:
        return {}
    states = {tp: assignment.state_value(tp) for tp in assignment.tps if tp.topic in topics}
    return {
        Partition(tp.topic, tp.partition): int(state.position) if state.has_valid_position else 0
        for tp, state in states.items()
        if state is not None
    }
