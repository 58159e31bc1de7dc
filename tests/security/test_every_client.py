"""Nobody opens a client past the one place that knows how the connection is secured."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "AIOKafkaProducer": "aiokafka_options(",
    "AIOKafkaConsumer": "aiokafka_options(",
    "AIOKafkaAdminClient": "aiokafka_options(",
    "AIOKafkaClient": "aiokafka_options(",
    "AIOKafkaConnection": "single_connection_options(",
    "create_conn": "single_connection_options(",
    "KafkaProducer": "kafka_python_options(",
    "KafkaConsumer": "kafka_python_options(",
    "KafkaAdminClient": "kafka_python_options(",
    "App": "faust_options(",
    "RoleApp": "faust_options(",
}
"""What makes connections, and the options that each must be given."""

FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("stream_app", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "idiomatic_faust.py"  # what anyone would write, to compare with
)


def unsecured(source: str) -> list[str]:
    """Calls in a module that make a client without its options."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and (wanted := OPTIONS.get(ast.unparse(node.func).rpartition(".")[2]))
        and not any(kw.arg is None and wanted in ast.unparse(kw.value) for kw in node.keywords)
    ]


def test_every_client_is_given_the_connection_options() -> None:
    assert {file: found for file in FILES if (found := unsecured((ROOT / file).read_text()))} == {}


def test_every_client_that_reads_is_told_what_a_batch_may_unpack_to() -> None:
    readers = {file for file in FILES if "max_partition_fetch_bytes" in (ROOT / file).read_text()}
    assert len(readers) >= 4
    assert {file for file in readers if "batch_max_bytes" not in (ROOT / file).read_text()} == set()


def test_addresses_become_clients_where_connections_are_secured() -> None:
    users = {
        file
        for file in FILES
        if "bootstrap_servers" in (ROOT / file).read_text() or "aiokafka://" in (ROOT / file).read_text()
    }
    assert users == {"stream_app/kafka/connection.py", "stream_app/kafka/faust/connection.py"}


@pytest.mark.parametrize(
    "call",
    [
        "AIOKafkaConsumer('t', bootstrap_servers=b)",
        "aiokafka.AIOKafkaProducer(**options)",
        "kafka.KafkaAdminClient()",
        "faust.App('x', broker=b)",
    ],
)
def test_the_check_finds_a_client_of_its_own(call: str) -> None:
    assert unsecured(call) == [ast.unparse(ast.parse(call))]


def test_the_check_accepts_the_options() -> None:
    assert not unsecured("AIOKafkaConsumer('t', **aiokafka_options(s, 'c'), x=1)")
