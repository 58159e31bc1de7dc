"""What the broker, or the way to it, may raise: aiokafka's tree of errors, by one name for the stages."""

from aiokafka.errors import KafkaError

__all__ = ["KafkaError"]
