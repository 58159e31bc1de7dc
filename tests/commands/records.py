"""Records for the commands' tests, written as the workers write them."""

from __future__ import annotations

import numpy as np

from stream_app.hashing import action_code, key64, model_code
from stream_app.interests.record import APPLIED, HEADER, INTERACTION, UNDONE, VERSION
from stream_app.ranking.ranked import Item, Parts, Reason
from stream_app.recommendations import slate as slates
from stream_app.recommendations.slate import Cause, Slate, rfc3339

T_REF = 1_700_000_000_000
HALF_LIFE_MS = 7 * 86_400_000
VECTOR = np.array([3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0], np.float32)


def interest_record() -> bytes:
    """A like one half-life old, a share at t_ref, and a comment that was undone; norm 5."""
    header = np.zeros(1, HEADER)
    header["version"], header["dimensions"], header["recent"] = VERSION, VECTOR.size, 4
    header["model"], header["action"] = model_code("test"), action_code("share")
    header["partition"], header["offset"] = 1, 42
    header["occurred_at"], header["received_at"], header["t_ref"] = T_REF, T_REF + 5, T_REF
    header["mass"], header["live"], header["total"], header["interactions"] = 3.5, 2, 3, 3
    header["seen"], header["seen_stored"], header["seen_total"] = 8, 2, 2
    ring = np.zeros(3, INTERACTION)
    for slot, (content, action, weight, age, state) in enumerate(
        (
            ("c1", "like", 1.0, HALF_LIFE_MS, APPLIED),
            ("c2", "comment", 2.0, 1000, UNDONE),
            ("gone", "share", 3.0, 0, APPLIED),
        )
    ):
        ring[slot]["content"], ring[slot]["event"] = key64(content), key64(f"e{slot}")
        ring[slot]["time"], ring[slot]["weight"] = T_REF - age, weight
        ring[slot]["action"], ring[slot]["state"] = action_code(action), state
    seen = np.array([key64("c1"), key64("gone")], "<u8")
    return header.tobytes() + VECTOR.tobytes() + ring.tobytes() + seen.tobytes()


def slate(user: str, *content_ids: str) -> bytes:
    """A slate of these contents, each because of a like of c1."""
    items = [
        Item(content_id, 0.9 - 0.1 * place, Parts(0.6, 0.1, 0.1, 0.1), [Reason("c1", "like", 0.75)])
        for place, content_id in enumerate(content_ids)
    ]
    cause = Cause("likes", 1, 42, rfc3339(T_REF), rfc3339(T_REF + 5))
    return slates.encode(Slate(user, rfc3339(T_REF + 30), "test", cause, "personal", items))
