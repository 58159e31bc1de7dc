"""What a broker would not take: slates are cut, settings and topics that cannot work are refused by name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from stream_app.errors import ConfigurationError, TopicMismatchError
from stream_app.interests.app import create_app
from stream_app.kafka import clients
from stream_app.kafka.admin import ensure_topics
from stream_app.learning.app import create_app as create_trainer
from stream_app.observability.health import Health
from stream_app.ranking.ranked import Item, Parts, Reason
from stream_app.recommendations.slate import Slate, content_keys, cut, encode
from stream_app.settings import Settings, build


def slate(items: int, reasons: int, id_bytes: int) -> Slate:
    named = [f"{n:06d}".ljust(id_bytes, "x") for n in range(items)]
    return Slate(
        "ana",
        "2026-01-01T00:00:00.000Z",
        "model",
        None,
        "personal",
        [
            Item(
                one,
                1.0,
                Parts(0.1, 0.2, 0.3, 0.4),
                [Reason(named[n % items], "like", 0.5) for n in range(reasons)],
            )
            for one in named
        ],
        slate_id="whole",
    )


@pytest.mark.parametrize(("items", "reasons", "id_bytes"), [(1_000, 8, 256), (1_000, 0, 256), (3, 8, 256)])
@pytest.mark.parametrize("most", [200_000, 900_000])
def test_a_slate_loses_reasons_first_and_then_its_last_items(
    items: int, reasons: int, id_bytes: int, most: int
) -> None:
    whole = slate(items, reasons, id_bytes)
    fitting = cut(whole, most)
    assert len(encode(fitting)) <= most
    kept = len(fitting.items)
    assert content_keys(fitting) == content_keys(whole)[:kept]
    if kept < items:
        assert not any(item.reasons for item in fitting.items)
        assert len(encode(fitting)) > 0.9 * most  # not more than need be
    assert all(
        c.reasons == w.reasons[: len(c.reasons)] for c, w in zip(fitting.items, whole.items, strict=False)
    )
    assert (fitting.slate_id == cut(whole, 1 << 30).slate_id) == (kept == items)


def test_settings_whose_records_no_broker_takes_are_refused(settings: Settings, tmp_path: Path) -> None:
    health = Health(settings)
    interests = msgspec.structs.replace(settings.interests, recent=1024, seen=65_536)
    create_app(msgspec.structs.replace(settings, interests=interests), health)  # 560 kB
    tight = msgspec.structs.replace(settings.kafka, max_record_bytes=500_000)
    with pytest.raises(ConfigurationError, match=r"interests.seen = 65536.*kafka.max_record_bytes is 500000"):
        create_app(msgspec.structs.replace(settings, interests=interests, kafka=tight), health)
    learning = msgspec.structs.replace(settings.learning, neighbours=65_535)
    with pytest.raises(ConfigurationError, match=r"learning.neighbours = 65535"):
        create_trainer(msgspec.structs.replace(settings, learning=learning), health)
    with pytest.raises(ConfigurationError, match=r"events.max_bytes = 300000.*kafka.max_record_bytes"):
        build({"events": {"max_bytes": 300_000}, "kafka": {"max_record_bytes": 310_000}})


def test_a_topic_that_takes_less_is_refused_by_name(settings: Settings, topics: list[str]) -> None:
    ensure_topics(settings)
    for name, refused in (("likes", False), ("recommendations", True)):  # what others write is theirs
        full = settings.topic_name(name)
        with clients.admin_client(settings) as admin:
            admin.alter_configs(
                [ConfigResource(ConfigResourceType.TOPIC, full, {"max.message.bytes": "300000"})]
            )
        if not refused:
            ensure_topics(settings)
            continue
        with pytest.raises(TopicMismatchError, match=f"{full}: max.message.bytes is 300000"):
            ensure_topics(settings)
    fitting = msgspec.structs.replace(settings.kafka, max_record_bytes=299_000)
    ensure_topics(msgspec.structs.replace(settings, kafka=fitting))
