"""Traces: where the time of events went, in OpenTelemetry spans. Imported only by workers that make them.

A trace begins with the producer (W3C headers ``traceparent`` and ``tracestate`` of its event), or here, for
``observability.tracing_ratio`` of the events that come without. It goes on in the headers of the user's
record on ``interests`` and of their slate. Whoever begins it decides whether it is recorded: contexts that
are not, or for which there is no room, are handed on as they came.

Nothing here waits for anybody: spans go into a bounded queue, whose oldest ones give way, and leave it by a
thread of the library's. They carry topics and positions, never keys or values.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stream_app.kafka.records import Record
from stream_app.kafka.transactions import Output
from stream_app.observability import metrics
from stream_app.settings import Settings

log = logging.getLogger(__name__)

ROOM = 100
"""Records in hand at a time that get spans, some 0.1 ms of processor time each. So a backlog, which comes in
large batches, is hardly slower for being traced, whatever its producer asks for."""
QUEUE_SPANS = 4_096
"""Spans that may wait for their export, about a kilobyte each."""
EXPORT_INTERVAL_MS = 1_000
EXPORT_TIMEOUT_S = 5.0
FLUSH_S = 2.0
"""How long the end of a worker may wait for its last spans to be exported."""

PARENT, STATE = "traceparent", "tracestate"
STATE_BYTES = 512
"""The longest ``tracestate`` that W3C asks anybody to hand on."""
_PARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_PROPAGATOR = TraceContextTextMapPropagator()

Context = tuple[tuple[str, bytes], ...]
"""Headers of a record that name its trace; empty: none."""


def context_of(record: Record) -> Context:
    """The trace context that a record's headers carry; none unless it is well-formed."""
    found = {name: value for name, value in record.headers if name in (PARENT, STATE)}
    if not (parent := found.get(PARENT)) or not _PARENT.fullmatch(parent):
        return ()
    state = found.get(STATE)
    if not state or len(state) > STATE_BYTES or not state.isascii():
        return ((PARENT, parent),)
    return ((PARENT, parent), (STATE, state))


def _sampled(context: Context) -> bool:
    """Whether spans of this trace are to be recorded: the lowest bit of the flags."""
    return bool(context) and int(context[0][1][-2:], 16) & 1 == 1


class Passage:
    """One record on its way through a worker: a span, and one below it for each step."""

    __slots__ = ("_context", "_since", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, since: int) -> None:
        """``since``: when the first step began, Unix ns."""
        self._tracer, self._span, self._since = tracer, span, since
        self._context = set_span_in_context(span)

    @property
    def context(self) -> Context:
        """What goes on with the record that this one causes."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, self._context)
        return tuple((name, value.encode()) for name, value in carrier.items())

    def step(self, name: str) -> None:
        """A step has ended; the next one begins."""
        now = max(time.time_ns(), self._since)
        self._tracer.start_span(name, self._context, start_time=self._since).end(now)
        self._since = now

    def end(self, error: str = "") -> None:
        """With the last step."""
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(self._since)


@dataclass(frozen=True, slots=True)
class Traced:
    """A batch of events in hand."""

    passages: list[Passage]
    """Of those events that get spans"""
    contexts: dict[bytes, Context]
    """User → the newest context of their events"""

    def computed(self, outputs: list[Output], topic: str) -> list[Output]:
        """The outputs, those onto ``topic`` with their users' contexts."""
        for passage in self.passages:
            passage.step("state")
        if not self.contexts:
            return outputs
        return [
            replace(out, headers=context)
            if out.topic == topic and out.key is not None and (context := self.contexts.get(out.key))
            else out
            for out in outputs
        ]


class Tracing:
    """Makes one worker's spans, and sends them to ``observability.tracing_endpoint``."""

    def __init__(self, settings: Settings, role: str) -> None:
        """Starts the exporting thread; connects to nothing yet."""
        # what they say is said once by us; some of it repeats what clients put into headers
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        self._ratio = settings.observability.tracing_ratio
        self._group = settings.group(role)
        endpoint = settings.observability.tracing_endpoint
        self._sender = _Sender(OTLPSpanExporter(endpoint, timeout=EXPORT_TIMEOUT_S))
        self._provider = TracerProvider(
            sampler=ParentBased(ALWAYS_ON),  # we have drawn already
            resource=Resource.create({"service.name": self._group}),
            shutdown_on_exit=False,  # that would wait for half a minute
        )
        self._provider.add_span_processor(_Queue(self._sender))
        self._tracer = self._provider.get_tracer("stream_app")

    def events(self, records: Iterable[Record], in_hand: int) -> Traced:
        """Take events in hand, beside so many that have spans; their time of waiting is over."""
        passages: list[Passage] = []
        contexts: dict[bytes, Context] = {}
        for record in records:
            context = context_of(record)
            recorded = _sampled(context) if context else random.random() < self._ratio  # noqa: S311  # a sample
            if recorded and len(passages) + in_hand < ROOM:
                passage = self._passage(record, context)
                passage.step("waiting")
                passages.append(passage)
                context = passage.context
            if context and record.key is not None:
                contexts[record.key] = context
        return Traced(passages, contexts)

    def slates(self, records: Iterable[Record]) -> tuple[dict[bytes, Passage], dict[bytes, Context]]:
        """Take records of ``interests`` in hand that are ranked together: by user, of their newest context,
        the passage, where it gets spans, and what goes on."""
        newest = {r.key: (r, context) for r in records if r.key is not None and (context := context_of(r))}
        passages: dict[bytes, Passage] = {}
        contexts: dict[bytes, Context] = {}
        for user, (record, context) in newest.items():
            contexts[user] = context
            if _sampled(context) and len(passages) < ROOM:
                passages[user] = self._passage(record, context)
                contexts[user] = passages[user].context
        return passages, contexts

    def _passage(self, record: Record, context: Context) -> Passage:
        """From the record's Kafka timestamp on: it has waited since then."""
        since = min(max(record.timestamp, 0) * 1_000_000, time.time_ns())
        span = self._tracer.start_span(
            f"process {record.topic}",
            _PROPAGATOR.extract({name: value.decode() for name, value in context}),
            SpanKind.CONSUMER,
            {
                "messaging.system": "kafka",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": record.topic,
                "messaging.destination.partition.id": str(record.partition),
                "messaging.kafka.offset": record.offset,
                "messaging.consumer.group.name": self._group,
            },
            start_time=since,
        )
        return Passage(self._tracer, span, since)

    def close(self) -> None:
        """Export what waits, for ``FLUSH_S`` at most; what is left then is dropped."""
        ending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(FLUSH_S)
        self._sender.shutdown()  # ends its tries


class _Queue(BatchSpanProcessor):
    """Spans that wait for the exporting thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        super().__init__(exporter, QUEUE_SPANS, EXPORT_INTERVAL_MS)

    def on_end(self, span: ReadableSpan) -> None:
        metrics.SPANS.labels("made").inc()
        super().on_end(span)


class _Sender(SpanExporter):
    """Counts what is sent, and says once when it cannot be."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        metrics.SPANS.labels("failed" if failed else "exported").inc(len(spans))
        if failed and not self._failing:
            log.warning("observability.tracing_endpoint does not take spans: they are dropped until it does")
        elif self._failing and not failed:
            log.info("observability.tracing_endpoint takes spans again")
        self._failing = failed
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
