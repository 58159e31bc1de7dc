"""``stream-app doctor``: what stands between this configuration and a running pipeline, and what to do."""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import msgspec

from stream_app.content.model import DEFAULT, model_source
from stream_app.errors import (
    AccessError,
    BrokerUnavailableError,
    ConfigurationError,
    ModelError,
    TopicMismatchError,
)
from stream_app.kafka import admin, distribution
from stream_app.kafka.clients import admin_client, naming_the_broker
from stream_app.kafka.deployments import refuse_others
from stream_app.kafka.topic_state import TopicState
from stream_app.replay.accounting import read_outcomes
from stream_app.secret import secret_of
from stream_app.settings import Inspect, Kafka, Observability, Serving, Settings

HELP = "check broker, topics, model, device and data directory, and say what to do about each fault"

GIB = 1 << 30
SCARCE_BYTES = 2 * GIB
FULL_BYTES = GIB // 4
PARTITIONERS = (
    "all is right; to save the detour give user_id as the key, and have it placed by murmur2: librdkafka "
    "(confluent-kafka, node-rdkafka, …) with partitioner=murmur2_random, kafka-go with Murmur2Balancer, "
    "sarama with a partitioner of your own; Java, kafka-python, aiokafka and KafkaJS 2 do so by default"
)
WEIGHTS = ("*.safetensors", "*.bin")
GPU_EXTRA = "install stream-app[gpu]"


class Finding(msgspec.Struct, frozen=True):
    """One line of the report."""

    check: str
    state: Literal["ok", "warn", "fault"]
    detail: str
    advice: str = ""
    """What to do; empty when nothing has to be done."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", action="store_true", help="a JSON list instead of lines")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Report every check; 1 when one of them found a fault."""
    findings = [finding for check in CHECKS for finding in check(settings)]
    if args.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(findings)).decode() + "\n")
    else:
        for finding in findings:
            print(f"{finding.state:<6} {finding.check:<15} {finding.detail}")
            if finding.advice:
                print(f"{'':<22} → {finding.advice}")
    return 1 if any(finding.state == "fault" for finding in findings) else 0


def check_broker(settings: Settings) -> Iterator[Finding]:
    """The broker answers, and there are enough of them for the replication; then the topics."""
    try:
        with closing(admin_client(settings)) as client, naming_the_broker(settings):
            brokers = len(client.describe_cluster()["brokers"])
    except (BrokerUnavailableError, AccessError) as error:
        what, _, advice = str(error).partition(": ")
        yield Finding("broker", "fault", what, advice)
        return
    except ConfigurationError as error:  # a certificate or a password file
        what, _, advice = str(error).rpartition("; ")
        yield Finding("broker", "fault", what, advice)
        return
    if settings.kafka.security_protocol != "PLAINTEXT":
        yield Finding("connection", "ok", _security(settings.kafka))
    wanted = settings.kafka.replication_factor
    if brokers < wanted:
        yield Finding(
            "broker",
            "fault",
            f"{settings.kafka.broker}: {brokers} brokers, fewer than kafka.replication_factor = {wanted}",
            f"set kafka.replication_factor to at most {brokers}",
        )
    else:
        yield Finding("broker", "ok", f"{settings.kafka.broker} answers, brokers: {brokers}")
    yield from _check_topics(settings)
    yield from _check_groups(settings)


def _security(kafka: Kafka) -> str:
    """How the connection is secured; a password shows as ``***``."""
    parts = [kafka.security_protocol]
    if kafka.uses_tls:
        parts.append(f"trusting {kafka.ssl_ca_file or 'the authorities of the system'}")
        if not kafka.ssl_check_hostname:
            parts.append("whatever host name the certificate has")
        if kafka.ssl_certificate_file:
            parts.append(f"with the certificate {kafka.ssl_certificate_file}")
    if kafka.uses_sasl:
        password = kafka.sasl_password or f"from {kafka.sasl_password_file}"
        parts.append(f"{kafka.sasl_mechanism} as {kafka.sasl_username}, password {password}")
    return ", ".join(parts)


def _check_topics(settings: Settings) -> Iterator[Finding]:
    states = admin.topic_states(settings)
    missing = [s.topic.name for s in states if not s.partitions]
    if missing:
        advice = "`stream-app topics --create` (a worker creates them, too, when it starts)"
        yield Finding("topics", "fault", f"missing: {', '.join(missing)}", advice)
    else:
        yield Finding("topics", "ok", f"all {len(states)} exist")
    for state in states:
        for line in state.refusals:
            what, _, advice = line.partition("; ")
            yield Finding("topics", "fault", what, advice)
        for line in state.warnings:
            what, _, advice = line.partition("; ")
            yield Finding("topics", "warn", what, advice)
    try:
        admin.check_partitions(settings, states)
    except TopicMismatchError as error:
        what, _, advice = str(error).partition(": ")
        yield Finding("partitions", "fault", what, advice)
    else:
        yield Finding("partitions", "ok", f"kafka.partitions = {settings.kafka.partitions} fits the topics")
        yield from _check_placement(settings, states)


def _check_placement(settings: Settings, states: list[TopicState]) -> Iterator[Finding]:
    """Whether events stand in their users' partitions; those that do not are routed, which is a detour."""
    events, wanted = (
        {settings.topic_name(a.topic) for a in settings.events.actions},
        settings.kafka.partitions,
    )
    for state in states:
        name, found = state.topic.name, state.partitions
        if name in events and found not in (0, wanted):
            advice = f"all is right; a topic of {wanted} partitions in its place would save the detour"
            yield Finding("placement", "warn", f"{name} has {found} partitions: all of it is routed", advice)
    if not all(state.partitions for state in states):
        return
    outcomes = read_outcomes(settings)
    if outcomes.routed:
        share = outcomes.routed / max(outcomes.accounted, outcomes.routed)
        detail = f"{share:.1%} of all events so far were routed: not in their users' partitions"
        yield Finding("placement", "warn", detail, PARTITIONERS)
    elif outcomes.accounted:
        yield Finding("placement", "ok", "all events so far stood in their users' partitions")


def _check_groups(settings: Settings) -> Iterator[Finding]:
    try:
        for role in ("interests", "ranker", "trainer"):
            refuse_others(settings, settings.group(role))
    except ConfigurationError as error:
        what, _, advice = str(error).partition("; ")
        yield Finding("app_id", "fault", what, advice)
    except (AccessError, BrokerUnavailableError) as error:
        yield Finding("app_id", "warn", f"whether another deployment has it is not known: {error}")


def check_model(settings: Settings) -> Iterator[Finding]:
    """The encoder's files are there; they are not loaded."""
    name = settings.content.model
    try:
        source = Path(model_source(settings))
    except ModelError as error:
        yield Finding("model", "fault", *str(error).split("; ", 1))
        return
    if source.is_dir():
        if (lacks := _lacks(source)) is None:
            yield Finding("model", "ok", "all-MiniLM-L6-v2 from its package" if name == DEFAULT else name)
        else:
            advice = "content.model must be a directory of a Hugging Face model"
            yield Finding("model", "fault", f"{name}: {lacks}", advice)
    elif source.is_absolute() or name.startswith("."):
        yield Finding("model", "fault", f"{name}: no such directory", "correct content.model")
    else:
        advice = "start a content worker once with a network, or set content.model to a local path"
        yield Finding("model", "warn", f"{name} is a hub id: whether it can be loaded is not checked", advice)


def _lacks(model: Path) -> str | None:
    """What a directory would need to be a model's; None when it looks like one."""
    try:
        config = msgspec.json.decode((model / "config.json").read_bytes())
    except OSError:
        return "has no config.json"
    except msgspec.DecodeError:
        return "its config.json is not JSON"
    if not isinstance(config, dict) or "model_type" not in config:
        return "its config.json has no model_type"
    return None if any(any(model.glob(name)) for name in WEIGHTS) else "has no weights"


def check_device(settings: Settings) -> Iterator[Finding]:
    """The configured devices exist, and the packages that use them."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding(
            "device",
            "warn",
            f"not installed: {', '.join(missing)}; an interests worker runs without, the others do not",
            GPU_EXTRA,
        )
        return
    # seconds to import, and only this check needs it
    from stream_app.ranking.device import choose_device

    for setting, name in (
        ("content.device", settings.content.device),
        ("ranking.device", settings.ranking.device),
    ):
        try:
            yield Finding("device", "ok", f"{setting} = {name}: {choose_device(name)}")
        except ConfigurationError:
            advice = f"set {setting} to `auto` or `cpu`, or install a torch that sees the device"
            yield Finding("device", "fault", f"{setting} = {name}: torch has no such device", advice)


def check_data_directory(settings: Settings) -> Iterator[Finding]:
    """The interests worker's state can be written, and nobody else has it open."""
    directory = Path(settings.interests.data_dir)
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        advice = "make it writable or set interests.data_dir"
        yield Finding("data directory", "fault", f"{existing}: {error.strerror}", advice)
        return
    free = shutil.disk_usage(existing).free
    detail = f"{directory}: {free / GIB:.1f} GiB free"
    if free < FULL_BYTES:
        yield Finding("data directory", "fault", detail, "free some space or set interests.data_dir")
    elif free < SCARCE_BYTES:
        yield Finding("data directory", "warn", detail, "the state of many users needs more")
    else:
        yield Finding("data directory", "ok", detail)
    locked = sorted({str(path.parent) for path in directory.rglob("LOCK") if _is_locked(path)})
    if locked:
        advice = "that is well if it is this worker; another one needs an interests.data_dir of its own"
        yield Finding(
            "data directory", "warn", f"a running worker has it open ({len(locked)} stores)", advice
        )


def _is_locked(path: Path) -> bool:
    """Whether another process holds RocksDB's lock; asking does not keep it."""
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def check_pages(settings: Settings) -> Iterator[Finding]:
    """The pages can be served: their ports are free, and their tokens can be read."""
    pages: dict[str, Observability | Serving | Inspect] = {
        "observability": settings.observability,
        "serving": settings.serving,
    }
    if settings.inspect.enabled:
        pages["inspect"] = settings.inspect
    for name, page in pages.items():
        setting = f"{name}.port = {page.port}"
        try:
            with socket.socket(socket.AF_INET6 if ":" in page.host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((page.host, page.port))
        except OSError as error:
            advice = f"that is well if it is this worker; another one needs another {name}.port (0: any)"
            yield Finding("pages", "warn", f"{setting}: cannot listen ({error.strerror})", advice)
        else:
            yield Finding("pages", "ok", f"{setting}: free")
        if isinstance(page, Observability):
            continue
        try:
            secret_of(f"{name}.token", page.token, page.token_file)
        except ConfigurationError as error:
            what, _, advice = str(error).partition("; ")
            yield Finding("pages", "fault", what, advice or "write the token into it, and nothing else")


def check_local_broker(settings: Settings) -> Iterable[Finding]:
    """Whether a broker can be started on this machine; optional, hence never a fault."""
    try:
        distribution.java_executable()
    except BrokerUnavailableError as error:
        return [Finding("local broker", "warn", "cannot be started here", str(error))]
    jars = distribution.jar_directory()
    if not jars.is_dir():
        detail = f"Apache Kafka {distribution.VERSION} is not in {jars.parent} yet"
        return [Finding("local broker", "warn", detail, "`stream-app broker` fetches it the first time")]
    return [Finding("local broker", "ok", f"Apache Kafka {distribution.VERSION} and its Java are here")]


CHECKS: tuple[Callable[[Settings], Iterable[Finding]], ...] = (
    check_broker,
    check_model,
    check_device,
    check_data_directory,
    check_pages,
    check_local_broker,
)
