"""The demo from start to end: broker, topics, workers, feeding, draining, summary, clean shutdown."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from stream_app.demo.live import Live, Screen
from stream_app.demo.roles import Roles, free_port
from stream_app.demo.world import Step, World
from stream_app.hashing import key64
from stream_app.kafka import clients
from stream_app.kafka.admin import delete_topics, ensure_topics
from stream_app.kafka.broker import broker_address
from stream_app.recommendations.inspect.page import PATH
from stream_app.replay import contents_first
from stream_app.replay.accounting import Accounts, Summary
from stream_app.replay.contents_first import Indexing
from stream_app.replay.formats import CONTENT_TOPIC, LogRecord, detect, open_log, with_actions_of
from stream_app.replay.producer import Produced, produce
from stream_app.settings import Events, Interests, Learning, Settings, external_broker

SEED = 20
ENCODING_TIMEOUT_S = 120.0
"""Longest wait for the first contents without any of them being encoded."""
DRAIN_TIMEOUT_S = 20.0
"""Longest wait without any change in the accounts after a world; a log gets LOG_DRAIN_TIMEOUT_S."""
LOG_DRAIN_TIMEOUT_S = 120.0
CHECK_INTERVAL_S = 1.0
# A demo minute stands for weeks: interests fade and unknown contents are given up that much sooner.
HALF_LIVES_IN_A_RUN = 3.0
SHORTEST_HALF_LIFE_S = 15.0
PUBLICATIONS_IN_A_RUN = 15.0
RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Plan:
    """What to run."""

    seconds: float
    """How long the world is fed."""
    users: int
    rate: float
    """Events a second."""
    log: Path | None = None
    """A recorded log instead of the world, as fast as possible."""
    keep: bool = False
    """Leave records, state and logs where they are."""


def run(plan: Plan, settings: Settings, screen: Screen) -> Summary:
    """Run the demo and return its account. Whatever happens, nothing is left running.

    Raises StreamAppError: no broker, a worker that does not come up or ends, a log that cannot be read.
    """
    with contextlib.ExitStack() as stack:
        directory = _directory(plan.keep)
        if not plan.keep:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        screen.say(f"starting Kafka (files in {directory})")
        kept = directory / "broker" if plan.keep else None
        address = stack.enter_context(broker_address(kept))
        settings = configure(plan, settings, address)
        ensure_topics(settings)
        if external_broker() and not plan.keep:
            stack.callback(delete_topics, settings)
        screen.say(f"Kafka is at {address}, topics are there; starting the four workers")
        roles = Roles(settings, directory, keep=plan.keep)
        stack.callback(roles.stop)
        stack.callback(_ignore_signals)  # the first thing to be undone: the clean-up is not interrupted
        roles.start()
        roles.wait_until_ready(screen.say)
        screen.say(f"what speaks for a slate: http://{settings.inspect.host}:{settings.inspect.port}{PATH}")
        accounts = stack.enter_context(contextlib.closing(Accounts(settings)))
        world = None if plan.log else World(SEED, users=plan.users, rate=plan.rate, seconds=plan.seconds)
        live = stack.enter_context(
            contextlib.closing(Live(settings, world.protagonist.user_id if world else None))
        )
        pulse = _Pulse(roles, live, screen)
        if world is not None:
            produced = _feed_world(settings, world, live, pulse)
        else:
            assert plan.log is not None  # noqa: S101  # for the type checker
            produced = _feed_log(settings, plan.log, live, pulse)
        screen.say(f"{produced.events:,} events sent; waiting until each is accounted for")
        summary = _drain(plan, settings, accounts, produced, pulse)
        for line in ("", *live.story(), ""):
            screen.say(line)
        if plan.keep:
            screen.say(f"kept: {directory} (worker logs, state, Kafka's records)")
        return summary


def feed(plan: Plan, settings: Settings, screen: Screen) -> Produced:
    """Feed the world to workers that run elsewhere, with the settings and topics that they have.

    Event ids go on where no earlier world can have been: they are no repeats of its events.
    """
    ensure_topics(settings)
    world = World(SEED, users=plan.users, rate=plan.rate, seconds=plan.seconds, first_event=_now_ms())
    with contextlib.closing(Live(settings, world.protagonist.user_id)) as live:
        return _feed_world(settings, world, live, _Pulse(None, live, screen))


def configure(plan: Plan, settings: Settings, address: str) -> Settings:
    """The demo's settings: what the user has set stays, time runs faster in the world."""
    replace = msgspec.structs.replace
    kafka = replace(settings.kafka, broker=address)
    if external_broker():
        # somebody else's broker: topics and groups of our own on it
        name = f"demo-{uuid.uuid4().hex[:8]}"
        kafka = replace(kafka, topic_prefix=f"{name}.", app_id=name)
    inspect = settings.inspect
    inspect = replace(inspect, enabled=True, port=free_port(inspect.host, inspect.port))
    settings = replace(settings, kafka=kafka, inspect=inspect)
    if plan.log is not None:
        return with_actions_of(settings, detect(plan.log))
    events = replace(settings.events, actions=Events().actions)
    if events.retry_delays_s == Events().retry_delays_s:
        events = replace(events, retry_delays_s=RETRY_DELAYS_S)
    interests = settings.interests
    if interests.half_life_days == Interests().half_life_days:
        half_life_s = max(SHORTEST_HALF_LIFE_S, plan.seconds / HALF_LIVES_IN_A_RUN)
        interests = replace(interests, half_life_days=half_life_s / 86_400)
    learning = settings.learning
    if learning.publish_interval_s == Learning().publish_interval_s:
        learning = replace(learning, publish_interval_s=max(1.0, plan.seconds / PUBLICATIONS_IN_A_RUN))
    return replace(settings, events=events, interests=interests, learning=learning)


def missing(summary: Summary) -> list[str]:
    """What keeps a run from being complete, in words; empty when nothing does."""
    found = []
    if (open_events := summary.produced - summary.accounted) != 0:
        found.append(
            f"{open_events:,} of {summary.produced:,} events are not accounted for"
            if open_events > 0
            else f"{-open_events:,} events are accounted for more than once"
        )
    if (without := summary.active_users - summary.users_with_slate) > 0:
        found.append(f"{without:,} of {summary.active_users:,} active users have no slate")
    return found


class _Pulse:
    """Called all the time: shows what there is to show, and notices a worker that has died."""

    def __init__(self, roles: Roles | None, live: Live, screen: Screen) -> None:
        """``roles`` is None where the workers are somebody else's."""
        self._roles, self._live, self.screen = roles, live, screen
        self._checked = time.monotonic()

    def __call__(self, *_: object) -> None:
        self.screen.show(self._live)
        if time.monotonic() - self._checked > CHECK_INTERVAL_S:
            self._checked = time.monotonic()
            if self._roles is not None:
                self._roles.check()
            self._live.check()


def _feed_world(settings: Settings, world: World, live: Live, pulse: _Pulse) -> Produced:
    topics = {action.name: action.topic for action in settings.events.actions}

    def records(steps: Iterable[Step]) -> Iterator[LogRecord]:
        for step in steps:
            key = step.key.encode()
            if step.kind == "content":
                live.content_sent(key, step.value)
            else:
                live.event_sent(step.action, step.key, step.content_id if step.kind == "event" else "")
            yield LogRecord(topics.get(step.action, CONTENT_TOPIC), key, step.value, step.at_ms)

    # the story starts with recommendations, not with retries
    with contextlib.closing(Indexing(settings)) as indexing:
        first = produce(settings, records(world.first_posts(_now_ms())), progress=pulse)
        pulse.screen.say(f"{first.contents} posts sent; waiting until they are encoded")
        indexing.wait(first.content_keys, ENCODING_TIMEOUT_S, pulse)
    pulse.screen.say("people start to like, comment and share")
    return produce(settings, records(world.steps(_now_ms())), speed=1.0, progress=pulse)


def _feed_log(settings: Settings, path: Path, live: Live, pulse: _Pulse) -> Produced:
    """Contents first, then the events; deletions would come last of all, when the demo is over."""
    names = {action.topic: action.name for action in settings.events.actions}
    log_format = detect(path)

    def noted(records: Iterable[LogRecord]) -> Iterator[LogRecord]:
        for record in records:
            if record.is_event:
                user_id = (record.key or b"").decode(errors="replace")
                live.event_sent(names.get(record.topic, ""), user_id, _content_id(record.value))
            else:
                live.content_sent(record.key, record.value)
            yield record

    with contextlib.closing(Indexing(settings)) as indexing:
        first = contents_first.contents(open_log(path, log_format).records)
        produced = produce(settings, noted(first), progress=pulse)
        pulse.screen.say(f"{produced.contents:,} contents sent; waiting until they are encoded")
        indexing.wait(produced.content_keys, ENCODING_TIMEOUT_S, pulse)
    then = contents_first.events(open_log(path, log_format).records)
    return produce(settings, noted(then), so_far=produced, progress=pulse)


class _About(msgspec.Struct):
    content_id: str


def _content_id(value: bytes | None) -> str:
    """Which content an event of a log is about; empty when it does not say."""
    try:
        return msgspec.json.decode(value or b"", type=_About).content_id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _drain(
    plan: Plan, settings: Settings, accounts: Accounts, produced: Produced, pulse: Callable[[object], None]
) -> Summary:
    """Wait until all events are settled and all active users have a slate, or nothing changes any more."""
    patience_s = DRAIN_TIMEOUT_S if plan.log is None else LOG_DRAIN_TIMEOUT_S
    accounts.wait(produced.events, set(), patience_s, pulse)
    active = _active_users(settings) & produced.users
    return accounts.wait(produced.events, active, patience_s, pulse)


def _active_users(settings: Settings) -> set[int]:
    """key64 of the users who have an interest record: those with an applied event, unless erased since."""
    newest: dict[bytes, bool] = {}
    for record in clients.read_topic(settings, settings.topic_name("interests")):
        if record.key is not None:
            newest[record.key] = record.value is not None
    return {key64(user) for user, known in newest.items() if known}


def _directory(keep: bool) -> Path:
    if not keep:
        return Path(tempfile.mkdtemp(prefix="stream-app-demo-"))
    directory = Path(".demo") / time.strftime("%Y%m%d-%H%M%S")
    directory.mkdir(parents=True)
    return directory.resolve()


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _now_ms() -> int:
    return int(time.time() * 1000)
