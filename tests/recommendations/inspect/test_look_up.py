"""Who is not remembered is found on the topics, as long as something stands there."""

from __future__ import annotations

import pytest

from stream_app.kafka import clients
from stream_app.recommendations.inspect import remembered
from stream_app.recommendations.inspect.remembered import SlowError, look_up
from stream_app.settings import Settings
from tests.commands.records import interest_record, slate


def test_a_user_is_looked_up_on_the_topics(
    settings: Settings, topics: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {
        "interests": [("ana", interest_record()), ("gone", interest_record()), ("gone", None)],
        "recommendations": [
            *(
                (user, slate(user, *contents))
                for user in ("ana", "gone")
                for contents in (["c1"], ["c2", "c3"])
            ),
            ("gone", None),
        ],
    }
    with clients.producer(settings) as producer:
        for topic, records in sent.items():
            for user, value in records:
                producer.send(settings.topic_name(topic), key=user.encode(), value=value)
        producer.flush()
    ana = look_up(settings, b"ana")
    assert ana is not None
    assert ana.record == interest_record()
    assert ana.slate is not None
    assert ana.before is not None
    contents = [[item.content_id for item in one.items] for one in (ana.slate, ana.before)]
    assert contents == [["c2", "c3"], ["c1"]]
    assert look_up(settings, b"gone") is None, "what an erased user was shown is not shown again"
    assert look_up(settings, b"nobody") is None
    monkeypatch.setattr(remembered, "LOOK_UP_S", -1.0)
    with pytest.raises(SlowError):
        look_up(settings, b"ana")
