"""docker-compose.yml as it stands comes up, is scraped, and fills every panel of every dashboard."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from stream_app.kafka.broker import LocalBroker
from tests.deploy.alerts import ROOT, queries
from tests.deploy.deployment import Deployment, composition, in_order, prometheus

pytestmark = pytest.mark.deploy
DATA_S = 400.0
OURS = ("listener", "node.id", "process.roles", "quorum", "log.dirs")
"""Parts of the names of properties that say where this broker is: ours has its own."""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, str]]:
    """All services up, and Prometheus' address."""
    directory = tmp_path_factory.mktemp("deployed")
    services = composition()
    properties = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in services["kafka"]["environment"].items()
    }
    ours = {name: value for name, value in properties.items() if not any(part in name for part in OURS)}
    assert len(ours) > 5
    with LocalBroker(directory / "kafka", properties=ours) as broker:
        deployment = Deployment(services, directory, broker.address)
        try:
            with prometheus(deployment, directory, _free_port()) as address:
                for name in in_order(services):
                    if name in deployment.services:
                        deployment.start(name)
                deployment.wait_until_up()
                yield deployment, address
        finally:
            deployment.stop()


def test_every_panel_has_data(deployed: tuple[Deployment, str]) -> None:
    deployment, address = deployed
    begun, missing = time.time(), [(p, q.replace("$__rate_interval", "30s")) for p, q in queries(ROOT)]
    while missing and time.time() < begun + DATA_S:
        ask_for_a_slate(deployment)
        time.sleep(2)
        missing = [(panel, query) for panel, query in missing if not has_data(address, query, begun)]
    for name in deployment.services:
        deployment.check(name)
    assert missing == []
    assert not has_data(address, "sum(rate(stream_app_events[30s]))", begun)  # what is misnamed has none
    up = ask(address, "query", query='count(up{job="stream-app"} == 1)')
    workers = sum(service["command"][0] == "worker" for service in deployment.services.values())
    assert int(up[0]["value"][1]) == workers


def test_no_alert_fires_in_a_sound_deployment(deployed: tuple[Deployment, str]) -> None:
    _, address = deployed
    speed = "Freshness.*|LagGrowing|RankerSaturated"  # a busy machine is slow
    firing = f'ALERTS{{alertstate="firing", severity="page", alertname!~"{speed}"}}'
    assert ask(address, "query", query=firing) == []


def test_series_that_were_there_from_the_start_are_all_that_there_are(
    deployed: tuple[Deployment, str],
) -> None:
    """What begins to be counted later on is missed by rates, and has no line in the dashboards."""
    deployment, address = deployed
    counted = "dead_letters|transactions|slates|fallbacks|ranked_users|events|trainer_verdicts"
    series = f'{{__name__=~"stream_app_({counted})_total"}}'
    assert len(ask(address, "query", query=series)) > 50
    assert ask(address, "query", query=f"{series} unless {series} @ {deployment.up_at}") == []


def test_logs_are_json_and_say_who_and_where(deployed: tuple[Deployment, str]) -> None:
    deployment, _ = deployed
    for name, service in deployment.services.items():
        if service["command"][0] == "worker":
            lines = [json.loads(line) for line in deployment.log(name).splitlines()]
            assert {line["role"] for line in lines if "role" in line} >= {service["command"][1]}, name


def ask(address: str, what: str, **parameters: Any) -> list[dict[str, Any]]:
    """Prometheus' answer. Raises AssertionError when it refuses the query."""
    try:
        with urllib.request.urlopen(
            f"{address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=30
        ) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
            return found
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{parameters}: {error.read().decode()}") from None


def ask_for_a_slate(deployment: Deployment) -> None:
    """As a platform does, of whoever; raises when there is no answer."""
    serve = deployment.services["serve"]["environment"]
    request = urllib.request.Request(
        f"http://{deployment.hosts['serve']}:8700/v1/users/nobody/slate",
        headers={"Authorization": f"Bearer {serve['STREAM_APP_SERVING_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def has_data(address: str, query: str, since: float) -> bool:
    found = ask(address, "query_range", query=query, start=since, end=time.time(), step=2)
    return any(value != "NaN" for series in found for _, value in series["values"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
