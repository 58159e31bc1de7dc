"""A worker that does not look at its consumer group before it joins, as if the others had started at the
same moment: ``python -m tests.supervision.blind_worker worker interests``."""

from __future__ import annotations

import sys
from collections.abc import Callable

from stream_app import cli, worker
from stream_app.kafka.deployments import refuse_others
from stream_app.observability.health import Health
from stream_app.settings import Settings

asks = worker._once_the_broker_answers


async def blind(settings: Settings, health: Health, check: Callable[[], None]) -> None:
    if getattr(check, "func", None) is not refuse_others:
        await asks(settings, health, check)


if __name__ == "__main__":
    worker._once_the_broker_answers = blind
    sys.exit(cli.run(sys.argv[1:]))
