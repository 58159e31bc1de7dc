"""Traces: events through two roles on a real broker, spans to a collector of ours; what must not happen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client import REGISTRY

from stream_app.content import vectors
from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector
from stream_app.errors import ConfigurationError
from stream_app.interests import app as interests
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.records import RecordBatch
from stream_app.observability.health import Health
from stream_app.observability.tracing import FLUSH_S, ROOM, Tracing, context_of
from stream_app.recommendations import app as ranker
from stream_app.recommendations.pipeline import Change
from stream_app.recommendations.traces import SlateTraces
from stream_app.recommendations.waiting import Waiting
from stream_app.settings import Settings, build
from stream_app.worker import run_worker
from tests.ranking import ranking_world as world

TRACE, PRODUCER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = ("traceparent", f"00-{TRACE}-{PRODUCER}-01".encode())
UNSAMPLED = ("traceparent", f"00-{TRACE[::-1]}-{PRODUCER}-00".encode())
STATE = ("tracestate", b"vendor=opaque")
EVENTS = {
    "user-1": [SAMPLED, STATE, ("other", b"x")],
    "user-2": [UNSAMPLED, STATE],
    "user-3": [],
    "user-4": [("traceparent", b"00-\xff-no-context"), ("tracestate", b"left=alone")],
}


class Collector:
    """Takes spans over HTTP as OTLP collectors do."""

    def __init__(self) -> None:
        self.status = 200
        self.spans: dict[str, list[Span]] = {}
        """By trace id"""
        self.services: set[str] = set()
        outer = self

        class Request(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the library's name
                outer.take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.services.add(named["service.name"])
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.setdefault(span.trace_id.hex(), []).append(span)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def traced(settings: Settings, endpoint: str, ratio: float = 1.0) -> Settings:
    on = {"tracing": True, "tracing_endpoint": endpoint, "tracing_ratio": ratio}
    return msgspec.structs.replace(
        settings, observability=msgspec.structs.replace(settings.observability, **on)
    )


def event(headers: list[tuple[str, bytes]], offset: int = 0, user: bytes = b"u") -> ConsumerRecord:
    return ConsumerRecord("likes", 0, offset, 1_000, 0, user, b"", 0, 1, 1, tuple(headers))


@contextlib.contextmanager
def tracing_of(settings: Settings, role: str = "interests") -> Iterator[Tracing]:
    tracing = Tracing(settings, role)
    try:
        yield tracing
    finally:
        tracing.close()
        for thread in threading.enumerate():
            if thread.name == "last spans":  # the end is not waited for: what it says is not the next test's
                thread.join(30)


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("stream_app_spans_total", {"outcome": outcome}) or 0.0


# -- through the roles


async def slates_of(config: Settings, **tracing: Tracing) -> dict[str, dict[str, bytes]]:
    """The headers of the users' slates, each after one event."""
    index = world.filled_index(config, 30, model=model_id(config))
    apps = [role.create_app(config, Health(config), tracing.get(role.ROLE)) for role in (interests, ranker)]
    found: dict[str, dict[str, bytes]] = {}
    grown = asyncio.Event()

    def note(records: list[ConsumerRecord]) -> None:
        found.update({r.key.decode(): dict(r.headers) for r in records if r.key.startswith(b"user")})
        grown.set()

    slates = TopicReader(config, config.topic_name("recommendations"), note, label="test")
    async with contextlib.AsyncExitStack() as stack:
        producer = await stack.enter_async_context(AIOKafkaProducer(bootstrap_servers=config.kafka.broker))
        for id_, row in index.rows.items():
            vector = ContentVector(index.model, "", world.NOW, 0, index.vectors[row].astype("float16"))
            topic = config.topic_name("content-vectors")
            await producer.send(topic, vectors.encode(vector), key=id_)
        await producer.flush()
        for app in apps:
            stack.push_async_callback(app.stop)
        await asyncio.gather(*(app.start() for app in apps))
        await slates.start()
        stack.push_async_callback(slates.stop)
        for user, headers in EVENTS.items():
            liked = {"user_id": user, "content_id": "content-1", "occurred_at": world.NOW}
            await producer.send(
                config.topic_name("likes"), json.dumps(liked).encode(), key=user.encode(), headers=headers
            )
        while found.keys() < EVENTS.keys():
            grown.clear()
            await asyncio.wait_for(grown.wait(), 60)
    return found


@pytest.fixture
def small(settings: Settings, topics: list[str], tmp_path: Path) -> Settings:
    """Topics that exist, short vectors, the CPU."""
    names = ("broker", "app_id", "topic_prefix", "partitions", "shared_partitions")
    return build(
        {
            "kafka": {name: getattr(settings.kafka, name) for name in names},
            "content": {"dimensions": world.D, "capacity": 500},
            "ranking": {"device": "cpu"},
            "interests": {"data_dir": str(tmp_path / "state")},
        }
    )


def test_an_event_is_one_trace_from_its_producer_to_the_slate(small: Settings, collector: Collector) -> None:
    config = traced(small, collector.endpoint)
    with tracing_of(config) as first, tracing_of(config, "ranker") as second:
        headers = asyncio.run(asyncio.wait_for(slates_of(config, interests=first, ranker=second), 120))
    likes, changelog = config.topic_name("likes"), config.topic_name("interests")

    def check(trace: str, origin: str) -> None:
        """All spans of a trace: who is below whom, and in which order their times are."""
        spans = {span.name: span for span in collector.spans[trace]}
        assert len(spans) == len(collector.spans[trace])
        ids = {name: span.span_id.hex() for name, span in spans.items()}
        event_, slate = f"process {likes}", f"process {changelog}"
        above = {event_: origin, slate: ids[event_]}
        above |= dict.fromkeys(("waiting", "state", "transaction"), ids[event_])
        above |= dict.fromkeys(("queue", "ranking", "publishing"), ids[slate])
        assert {name: span.parent_span_id.hex() for name, span in spans.items()} == above
        for whole, steps in (
            (event_, ("waiting", "state", "transaction")),
            (slate, ("queue", "ranking", "publishing")),
        ):
            assert spans[whole].kind == Span.SPAN_KIND_CONSUMER
            times = [spans[whole].start_time_unix_nano]
            for step in steps:  # without gaps: all of the time is accounted for
                assert spans[step].start_time_unix_nano == times[-1]
                times.append(spans[step].end_time_unix_nano)
            assert times == sorted(times)
            assert times[-1] == spans[whole].end_time_unix_nano
        told = {a.key: a.value for a in spans[event_].attributes}
        assert told["messaging.destination.name"].string_value == likes
        assert told["messaging.consumer.group.name"].string_value == config.group("interests")
        assert told["messaging.kafka.offset"].int_value >= 0
        assert not any(word in str(span) for span in spans.values() for word in ("user-", "content-1"))

    # the producer's trace, and the subscriber's parent
    check(TRACE, PRODUCER)
    (slate,) = (s for s in collector.spans[TRACE] if s.name == f"process {changelog}")
    assert headers["user-1"] == {
        "traceparent": f"00-{TRACE}-{slate.span_id.hex()}-01".encode(),
        "tracestate": STATE[1],
    }
    # not recorded, and handed on
    assert headers["user-2"] == dict(EVENTS["user-2"])
    # traces of our own; what is no context has no part in them
    began = {user: headers[user]["traceparent"].decode().split("-")[1] for user in ("user-3", "user-4")}
    for trace in began.values():
        check(trace, "")
    assert collector.spans.keys() == {TRACE, *began.values()}
    assert collector.services == {config.group("interests"), config.group("ranker")}


def test_without_tracing_records_are_as_they_were(small: Settings) -> None:
    headers = asyncio.run(asyncio.wait_for(slates_of(small), 120))
    assert headers == {user: {} for user in EVENTS}


OFF = """
import sys
import stream_app.client, stream_app.worker, stream_app.interests.app, stream_app.recommendations.app
from stream_app.observability.health import Health
from stream_app.settings import Settings
for role in (stream_app.interests.app, stream_app.recommendations.app):
    assert stream_app.worker._tracing(Settings(), role.ROLE) is None
    role.create_app(Settings(), Health(Settings()))
sys.exit("opentelemetry" in sys.modules)
"""


def test_without_tracing_opentelemetry_is_not_loaded(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OFF], cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stream_app.observability.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[tracing\]'"):
        asyncio.run(run_worker(traced(Settings(), "http://127.0.0.1:1"), "interests"))


# -- bounds


def test_a_backlog_is_traced_in_part_and_handed_on_whole() -> None:
    records = [event([SAMPLED], n, b"u%d" % n) for n in range(2 * ROOM)]
    with tracing_of(traced(Settings(), "http://127.0.0.1:1")) as tracing:
        batch = tracing.events(records, 10)
        assert len(batch.passages) == ROOM - 10
        assert len(batch.contexts) == len(records)
        assert batch.contexts[records[-1].key] == (SAMPLED,)
        passages, contexts = tracing.slates(records)
        assert len(passages) == ROOM
        assert contexts.keys() == batch.contexts.keys()


def test_a_user_who_waited_with_several_events_has_the_newest_one_s_trace() -> None:
    newest = ("traceparent", SAMPLED[1].replace(TRACE.encode(), TRACE[::-1].encode()))

    async def nothing() -> None:
        """Of no interest here"""

    waiting = Waiting(10, 10)
    waiting.add(RecordBatch("interests", 0, 0, [event([SAMPLED], 0), event([SAMPLED], 1)]), nothing)
    waiting.add(RecordBatch("interests", 0, 2, [event([newest], 2), event([], 3)]), nothing)
    with tracing_of(traced(Settings(), "http://127.0.0.1:1")) as tracing:
        traces = SlateTraces(tracing)
        with traces.round(waiting.take().records):
            sent = traces.headers(Change(0, b"u", None))
            assert TRACE[::-1].encode() in sent[0][1]
            assert traces.headers(Change(0, b"u", None, timely=False)) == ()
        assert traces.headers(Change(0, b"u", None)) == ()  # nothing outlives its round


@pytest.mark.parametrize(
    "parent",
    [
        None,
        b"",
        b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
        SAMPLED[1] + b"-more",
        SAMPLED[1].upper(),
        b"\xff" * 55,
    ],
)
def test_what_is_no_context_is_none(parent: bytes | None) -> None:
    assert context_of(event([("traceparent", parent), STATE])) == ()  # type: ignore[list-item]
    assert context_of(event([SAMPLED, ("tracestate", b"s" * 513)])) == (SAMPLED,)


# -- collectors that are not well


def test_spans_that_are_refused_are_counted_and_said_once(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stream_app")
    collector.status = 400
    before = {outcome: counted(outcome) for outcome in ("made", "failed", "exported")}
    with tracing_of(traced(Settings(), collector.endpoint)) as tracing:
        for _ in range(2):
            tracing.events([event([])], 0)
            tracing._provider.force_flush()
        collector.status = 200
        tracing.events([event([])], 0)
        tracing._provider.force_flush()
    assert {outcome: counted(outcome) - n for outcome, n in before.items()} == {
        "made": 3,
        "failed": 2,
        "exported": 1,
    }
    assert [r.levelname for r in caplog.records if "tracing_endpoint" in r.message] == ["WARNING", "INFO"]


def test_a_collector_that_does_not_answer_does_not_keep_a_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tracing = Tracing(traced(Settings(), endpoint), "interests")
        for _ in range(35):  # seven exports, each of which waits for an answer
            tracing.events([event([])] * ROOM, 0)
        ending = threading.Thread(target=tracing.close, daemon=True)
        ending.start()
        ending.join(FLUSH_S + 15)  # the library would wait for 30 s
        assert not ending.is_alive()
