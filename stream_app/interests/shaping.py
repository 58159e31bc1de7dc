"""Settings that shape the state: workers that share a group must agree on them, and a change is told."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from stream_app.settings import Settings

log = logging.getLogger(__name__)

_MEANING = {
    "half_life_days": "what records remember counts as if it had always been so, what has left them fades so "
    "from their newest event on; each user's sum changes with the user's next event",
    "recent": "records keep the newest interactions that fit",
    "kept": "records keep the newest interactions that fit",
    "seen": "records keep the newest contents that fit",
    "seen_long": "records keep the newest contents that fit",
    "light_weight": "what has left the records stays forgotten",
    "model": "sums are made anew from what records remember, with each user's next event",
    "dimensions": "sums are made anew from what records remember, with each user's next event",
}


def shaping(settings: Settings, model: str) -> dict[str, str]:
    """The settings that shape the state, by name; ``model`` is the encoder's id."""
    interests = settings.interests
    named = {
        name: f"{getattr(interests, name)}"
        for name in ("half_life_days", "recent", "seen", "seen_long", "light_weight", "kept")
    }
    weights = {f"weight of {action.name}": f"{action.weight}" for action in settings.events.actions}
    return {**named, **weights, "model": model, "dimensions": f"{settings.content.dimensions}"}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(name, value before, value now) of what is not the same; ``none`` where one lacks it."""
    names = dict.fromkeys((*now, *before))
    both = [(name, before.get(name, "none"), now.get(name, "none")) for name in names]
    return [one for one in both if one[1] != one[2]]


def tell(partition: int, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Say what has changed since the partition's state was written, and what that does to it."""
    for name, old, new in differences(before, now) if before else []:
        meaning = _MEANING.get(name, "engagements from before keep the weight that they came with")
        log.warning(
            "partition %d was written with %s %s, now it is %s: %s", partition, name, old, new, meaning
        )
