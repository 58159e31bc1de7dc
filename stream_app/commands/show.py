"""``stream-app show USER``: a user's state and slate as they stand on their topics."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_app.hashing import action_code, key64
from stream_app.interests import record as interest_record
from stream_app.interests.record import APPLIED, AWAITING, STATE, UNDONE, InterestRecord, states
from stream_app.kafka import clients
from stream_app.recommendations import slate as slates
from stream_app.recommendations.readable import Titles, heading, lines, printable
from stream_app.recommendations.slate import rfc3339
from stream_app.settings import Settings
from stream_app.topics import DAY_MS

HELP = "print a user's interests and current slate"

STATES = {APPLIED: "applied", UNDONE: "undone", AWAITING: "undo that awaits its original"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("user", metavar="USER", help="user_id")
    parser.add_argument("--json", action="store_true", help="as JSON, with the vector")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print state and slate; 1 when the user has no state."""
    user = args.user.encode(errors="surrogateescape")  # bytes that the locale does not know stay as typed
    name = user.decode(errors="replace")
    value = newest_value(settings, settings.topic_name("interests"), user)
    slate_value = newest_value(settings, settings.topic_name("recommendations"), user)
    slate = None if slate_value is None else slates.decode(slate_value)
    record = None if value is None else interest_record.decode(value)
    titles, ids = Titles(), {}
    if record is not None or slate is not None:
        ids = _learn(
            settings, titles, set() if record is None else set(record.interactions["content"].tolist())
        )
    state = None if record is None else describe(record, ids, settings)
    if args.json:
        shown = {"user_id": name, "state": state, "slate": slate}
        print(msgspec.json.format(msgspec.json.encode(shown)).decode())
    else:
        if state is not None:
            print("\n".join(_state_lines(name, state, titles)))
        if slate is not None:
            print("\n".join(("", "Slate: " + heading(slate), *lines(slate, titles))))
    if state is None:
        print(
            f"user {printable(name)} has no state on {settings.topic_name('interests')}: no event of "
            "theirs has been applied, or it has faded or been erased",
            file=sys.stderr,
        )
        return 1
    return 0


def newest_value(settings: Settings, topic: str, key: bytes) -> bytes | None:
    """Value of the newest record with this key; None when there is none or it is a tombstone."""
    newest: bytes | None = None
    for record in clients.read_topic(settings, topic, key=key):
        if record.key == key:
            newest = record.value
    return newest


def describe(record: InterestRecord, ids: dict[int, str], settings: Settings) -> dict[str, Any]:
    """A record for people and JSON; ``ids`` gives the content ids of the 64-bit keys, as far as known."""
    header = record.header
    actions = {action_code(a.name): a for a in settings.events.actions}
    last = actions.get(int(header["action"]))
    remaining = remaining_weights(record, settings.interests.half_life_days)
    interactions = []
    newest_first = sorted(
        zip(record.interactions, remaining, strict=True), key=lambda pair: -int(pair[0]["time"])
    )
    for interaction, left in newest_first:
        action, key = actions.get(int(interaction["action"])), int(interaction["content"])
        interactions.append(
            {
                "content_id": ids.get(key),
                "content_key": f"{key:016x}",
                "action": action.name if action else f"unknown ({int(interaction['action'])})",
                "state": STATES.get(int(interaction["state"]) & STATE, "unknown"),
                "occurred_at": rfc3339(int(interaction["time"])),
                "age_s": (record.t_ref - int(interaction["time"])) / 1000,
                "weight": float(interaction["weight"]),
                "remaining_weight": float(left),
            }
        )
    return {
        "t_ref": rfc3339(record.t_ref),
        "mass": record.mass,
        "vector_norm": float(np.linalg.norm(record.vector.astype(np.float64))),
        "dimensions": int(header["dimensions"]),
        "contributions": int(header["live"]),
        "seen": len(record.seen) + len(record.long),
        "last_event": {
            "topic": settings.topic_name(last.topic) if last else None,
            "action": last.name if last else None,
            "partition": int(header["partition"]),
            "offset": int(header["offset"]),
            "occurred_at": rfc3339(int(header["occurred_at"])),
            "received_at": rfc3339(int(header["received_at"])),
        },
        "recent": interactions,
        "vector": record.vector.tolist(),
    }


def remaining_weights(record: InterestRecord, half_life_days: float) -> NDArray[np.float64]:
    """[n], what is left at t_ref of each interaction in the sum: w · 2^(−(t_ref − t)/h); 0 when not in it."""
    age = record.t_ref - record.interactions["time"].astype(np.float64)
    left = record.interactions["weight"] * np.exp2(-age / (half_life_days * DAY_MS))
    return np.where(states(record.interactions) == APPLIED, left, 0.0)


def _learn(settings: Settings, titles: Titles, keys: set[int]) -> dict[int, str]:
    """Content ids of these 64-bit keys, as far as they are on ``content``; titles by the way."""
    ids: dict[int, str] = {}
    for record in clients.read_topic(settings, settings.topic_name("content")):
        titles.learn(record.key, record.value)
        if record.key is not None and (key := key64(record.key)) in keys:
            ids[key] = record.key.decode(errors="replace")
    return ids


def _state_lines(user: str, state: dict[str, Any], titles: Titles) -> list[str]:
    last = state["last_event"]
    shown = [
        f"User {printable(user)}",
        f"  state at       {state['t_ref']}",
        f"  mass           {state['mass']:.4f} from {state['contributions']} contributions",
        f"  vector norm    {state['vector_norm']:.4f} in {state['dimensions']} dimensions",
        f"  seen contents  {state['seen']}",
        f"  last event     {last['action']}, {last['topic']} {last['partition']}/{last['offset']}, "
        f"occurred {last['occurred_at']}, received {last['received_at']}",
        "  recent interactions, newest first: action, age, weight left",
    ]
    for one in state["recent"]:
        name = titles.of(one["content_id"]) if one["content_id"] else f"content key {one['content_key']}"
        note = "" if one["state"] == "applied" else f"  [{one['state']}]"
        left = f"{one['remaining_weight']:+.3f}"
        shown.append(f"    {one['action']:10} {_age(one['age_s']):>8} {left:>8}  {name}{note}")
    return shown


def _age(seconds: float) -> str:
    """
    >>> [_age(s) for s in (0.25, 90, 7200, 200_000)]
    ['0.2 s', '1.5 min', '2.0 h', '2.3 d']
    """
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h")):
        if abs(seconds) < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} d"
