"""What the broker, or the way to it, may raise: aiokafka's tree of errors, by one name for the stages."""

from aiokafka.errors import (
    IllegalGenerationError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

__all__ = ["OUT_OF_DATE", "KafkaError"]

OUT_OF_DATE = (IllegalGenerationError, UnknownMemberIdError, RebalanceInProgressError)
"""A group coordinator's words to a member whose assignment is not the group's any more."""
