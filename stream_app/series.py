"""Series that exist from a worker's start on, at zero.

A counter with labels has no series before its first event: a rate would miss that first one, and nobody
could tell "none so far" from "not measured". So every combination that is known beforehand is there from
the start; a test compares them with what the code counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

from stream_app.events.reasons import Reason
from stream_app.observability import metrics
from stream_app.settings import Settings
from stream_app.topics import copy_topics

Values = Iterable[str]
"""What one label can be."""

OUTCOMES = ("applied", "duplicate", "dead_lettered", "retrying", "routed")
REASONS = tuple(reason.value for reason in Reason)
INDEX_REASONS = ("missing_key", "record_format", "other_model", "wrong_dimensions", "not_a_unit_vector")

FIXED: dict[str, tuple[tuple[Any, tuple[Values, ...]], ...]] = {
    "interests": (
        (metrics.DEAD_LETTERS, (REASONS,)),
        (
            metrics.STATE_SECONDS,
            (("decode", "load", "apply", "statistics", "encode", "transaction", "flush"),),
        ),
        (metrics.TRANSACTIONS, (("committed", "failed", "fenced"),)),
        (metrics.RECOVERY_RECORDS, (("recovery", "standby"),)),
        (metrics.ERASURES, (("erased", "rejected", "routed"),)),
        (metrics.CONTENT_REJECTED, (INDEX_REASONS,)),
        (metrics.CONTENT_EVICTED, (("age", "capacity"),)),
    ),
    "content": (
        (metrics.DEAD_LETTERS, (REASONS,)),
        (metrics.CONTENT_REJECTED, (REASONS,)),
        (metrics.TRANSACTIONS, (("committed", "failed", "fenced"),)),
    ),
    "ranker": (
        (metrics.RANKED_USERS, (("personal", "cold_start", "fallback"),)),
        (
            metrics.RANK_SECONDS,
            (("priors", "gather", "retrieve", "blend", "score", "diversify", "explain", "assemble"),),
        ),
        (metrics.SLATES, (("published", "unchanged", "withdrawn"),)),
        (metrics.FALLBACKS, (("no_model", "queue_full", "out_of_memory", "device"),)),
        (metrics.DEVICE_FAILURES, (("out_of_memory", "device"),)),
        (metrics.DEVICE_MEMORY, (("reserved", "total"),)),
        (
            metrics.RANKER_REJECTED,
            (("interests", "content-stats", "models", "co-engagement", "recommendations"),),
        ),
        (metrics.QUEUE_DEPTH, (("ranking",),)),
        (metrics.TRANSACTIONS, (("committed", "failed", "fenced"),)),
        (metrics.CONTENT_REJECTED, (INDEX_REASONS,)),
        (metrics.CONTENT_EVICTED, (("age", "capacity"),)),
    ),
    "trainer": (
        (
            metrics.TRAINER_VERDICTS,
            (("kept", "published", "rolled_back", "restarted", "not_finite"),),
        ),
        (metrics.TRAINER_REJECTED, (("interests", "content-stats", "models", "co-engagement"),)),
        (metrics.TRANSACTIONS, (("committed", "failed", "fenced"),)),
        (metrics.CONTENT_REJECTED, (INDEX_REASONS,)),
        (metrics.CONTENT_EVICTED, (("age", "capacity"),)),
    ),
}
"""Role → metrics and what each of their labels can be."""


def _by_settings(settings: Settings, role: str) -> Iterator[tuple[Any, tuple[Values, ...]]]:
    """What settings name."""
    yield metrics.REBALANCES, ((role,),)
    yield metrics.BATCH_RECORDS, ((role,),)
    if settings.observability.tracing:
        yield metrics.SPANS, (("made", "exported", "failed"),)
    if role == "interests":
        yield metrics.EVENTS, ([action.name for action in settings.events.actions], OUTCOMES)
        swept = [*copy_topics(settings), settings.topic_name("events-dlq")]
        yield metrics.ERASED_COPIES, (swept,)
    if role == "ranker":
        arms = [arm.name for arm in settings.ranking.arms]
        yield metrics.ARM_USERS, (arms, ("blend", "learned"))
        yield metrics.ARM_ENGAGEMENTS, (arms, ("shown", "other"))


def begin(settings: Settings, role: str) -> None:
    """Make the role's series."""
    for metric, labels in (*FIXED.get(role, ()), *_by_settings(settings, role)):
        make: Callable[..., Any] = metric.labels
        for values in product(*labels):
            make(*values)
