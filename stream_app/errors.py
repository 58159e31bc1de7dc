"""Every error the product raises on purpose: one tree, each with a short stable code.

A *reason* (see :mod:`stream_app.events.reasons`) belongs to one bad record, which is counted and
dead-lettered. An *error* belongs to the process: it is shown to a person and ends the command.
"""

from __future__ import annotations


class StreamAppError(Exception):
    """Root of the tree. ``code`` is stable and documented; ``exit_status`` is the process's."""

    code = "error"
    exit_status = 1


class ConfigurationError(StreamAppError):
    """A setting is missing, unknown or out of range. Names setting, value and what is allowed."""

    code = "configuration"
    exit_status = 2


class TopicMismatchError(ConfigurationError):
    """Topics that must share their partition count do not, or a topic is missing or would lose data."""

    code = "topic_mismatch"


class BrokerUnavailableError(StreamAppError):
    """No Kafka broker answers at the configured address, or the local one cannot be had."""

    code = "broker_unavailable"


class DeliveryError(StreamAppError):
    """Records that a client has sent may not stand on Kafka."""

    code = "delivery"


class AccessError(StreamAppError):
    """Broker and client do not accept each other: protocol, certificate, user and password, or rights."""

    code = "access"


class RecordFormatError(StreamAppError):
    """A binary record on one of our own topics has an unknown version or an impossible length."""

    code = "record_format"


class StateDirectoryError(StreamAppError):
    """The state directory is locked by another worker, full, or not writable."""

    code = "state_directory"


class UnreadableStateError(StreamAppError):
    """Record batches of a topic that state is rebuilt from cannot be read."""

    code = "unreadable_state"


class StateDamagedError(StateDirectoryError):
    """Files of the state directory cannot be read; they are rebuilt from the changelog."""

    code = "state_damaged"


class RebuildUnfinishedError(StreamAppError):
    """A rebuild of the interests was begun and did not come to its end: half of them may be gone."""

    code = "rebuild_unfinished"


class FencedError(StreamAppError):
    """Another worker owns this partition now; what we still hold of it is void."""

    code = "fenced"


class TransactionError(StreamAppError):
    """A Kafka transaction failed and was aborted: the partition must be recovered and re-read."""

    code = "transaction"


class ModelError(StreamAppError):
    """The text encoder cannot be loaded, or two models' vectors would be mixed."""

    code = "model"


class LearningError(StreamAppError):
    """A step of the learned ranker is not finite, or a checkpoint is not one of this ranker's."""

    code = "learning"


class DeviceError(StreamAppError):
    """The ranking device fails again and again; the worker stops so that an orchestrator restarts it."""

    code = "device"


class StalledError(StreamAppError):
    """The worker cannot make progress or come to rest; it ends so that an orchestrator restarts it."""

    code = "stalled"
    exit_status = 3
