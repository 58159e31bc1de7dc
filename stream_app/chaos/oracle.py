"""Judges a chaos run: recomputes everything from the inputs, in float64, and compares.

Independent on purpose: its own reading of every format (``layouts``), its own arithmetic, no code of
the stages. What it holds the product to:

- every input is in exactly one place: in its user's record (once), recognised as a repeat, a dead
  letter with a reason that is so, or waiting to be tried again; the product's own accounts say the same;
- every user's vector and mass are the closed form over what stands in the record, t_ref is its newest time;
- no offset was ever committed before all that its inputs cause was on the topics;
- contents' counts are what the users' records add up to, each user once for a content and an action;
- every user's newest slate names the event that was applied last, and no content that is deleted.

For this a record must hold a user's whole history (``interests.recent``), nobody may fade
(``interests.min_mass = 0``) and slates are published even if they show the same
(``recommendations.skip_unchanged = false``).
"""

from __future__ import annotations

from collections import Counter

import msgspec

from stream_app.chaos.archived import Archived
from stream_app.chaos.arrivals import BY_ROUTERS, Arrivals
from stream_app.chaos.findings import Findings
from stream_app.chaos.layouts import COUNTS, ROUTED
from stream_app.chaos.offsets import ahead
from stream_app.chaos.users import StatisticsCheck, UserCheck
from stream_app.errors import ConfigurationError
from stream_app.settings import Settings

TOLERANCE = 1e-5


class Verdict(msgspec.Struct, kw_only=True):
    """What the oracle found."""

    inputs: int = 0
    """Event records judged, malformed ones included."""
    users: int = 0
    """Users with a record, or that should have one."""
    accounts: dict[str, int] = {}
    """What became of the inputs by the oracle's own reckoning; the fields of the product's accounts."""
    lost: int = 0
    """Inputs that are nowhere."""
    doubled: int = 0
    """Inputs that are in two places, or effects without an input."""
    misjudged: int = 0
    """Dead letters whose reason is not so."""
    counters_equal: bool = True
    """The product's accounts are the oracle's, in every partition."""
    max_relative_error: float = 0.0
    """Largest of all users' vectors and masses."""
    users_wrong: int = 0
    """Users whose record differs from the closed form (beyond TOLERANCE), or in any other field."""
    statistics_wrong: int = 0
    """Contents whose counts are not what the users' records add up to."""
    committed_ahead: int = 0
    """Inputs whose offset was committed before their effects were on the topics."""
    slates: int = 0
    slates_wrong: int = 0
    """Users without a slate for their last event, and slates with contents or of users that are gone."""
    differences: list[str] = []
    """The first of each kind, in words."""

    @property
    def sound(self) -> bool:
        """Nothing was found."""
        return self.counters_equal and self.max_relative_error <= TOLERANCE and not self.wrongs

    @property
    def wrongs(self) -> list[str]:
        """Names of the counts that should be zero and are not."""
        counts = (
            *("lost", "doubled", "misjudged", "users_wrong", "statistics_wrong"),
            *("committed_ahead", "slates_wrong"),
        )
        return [name for name in counts if getattr(self, name)]


def check_settings(settings: Settings) -> None:
    """Raise ConfigurationError where these settings would make what is right look wrong."""
    if settings.interests.min_mass > 0:
        raise ConfigurationError("the oracle needs interests.min_mass = 0: users who fade have no record")
    if settings.recommendations.skip_unchanged:
        raise ConfigurationError(
            "the oracle needs recommendations.skip_unchanged = false: a slate that shows the same again "
            "names an earlier event"
        )


def verdict(archived: Archived, *, slates: bool = True) -> Verdict:
    """Judge all that was archived. Everything must have come to rest, and have been read to its end.

    ``slates``: rankers took part. Raises ConfigurationError (see :func:`check_settings`), and
    StreamAppError for inputs whose effect depends on the order of arrival.
    """
    check_settings(archived.settings)
    findings, arrivals = Findings(), Arrivals(archived)
    accounts = _judge_accounts(archived, arrivals, findings)
    _judge_places(archived, arrivals, findings)
    users = UserCheck(archived, arrivals, findings)
    worst = users.judge(TOLERANCE)
    StatisticsCheck(archived, users.standing, findings).judge()
    for early in ahead(archived, arrivals):
        findings.add("committed_ahead", early)
    if slates:
        _judge_slates(archived, arrivals, findings)
    counts = findings.counts
    return Verdict(
        inputs=len(arrivals.all),
        users=len(arrivals.groups.keys() | {u for u, f in archived.users.items() if f.value is not None}),
        accounts=dict(sum(accounts.values(), Counter())),
        lost=counts["lost"],
        doubled=counts["doubled"],
        misjudged=counts["misjudged"],
        counters_equal=not counts["counters"],
        max_relative_error=worst,
        users_wrong=counts["users_wrong"],
        statistics_wrong=counts["statistics_wrong"],
        committed_ahead=counts["committed_ahead"],
        slates=sum(record.value is not None for record in archived.slates.values()),
        slates_wrong=counts["slates_wrong"],
        differences=findings.differences,
    )


def _judge_accounts(archived: Archived, arrivals: Arrivals, findings: Findings) -> dict[int, Counter[str]]:
    expected = arrivals.accounts()
    for partition in sorted({BY_ROUTERS} | expected.keys() | archived.accounts.keys()):
        newest = archived.accounts[partition][-1][1] if partition in archived.accounts else {}
        found = Counter({name: newest.get(name, 0) for name in COUNTS})
        if partition == BY_ROUTERS:
            found["dead_lettered"] = sum(a[-1][1]["dead_lettered"] for a in archived.routers.values())
        if +found != +expected[partition] or any(count < 0 for count in found.values()):
            findings.add(
                "counters", f"partition {partition} says {dict(found)}, is {dict(expected[partition])}"
            )
    told = [accounts[-1][1] for accounts in (*archived.accounts.values(), *archived.routers.values())]
    routed, copies = sum(account[ROUTED] for account in told), sum(len(a.routes) for a in arrivals.all)
    if routed != copies:
        findings.add("counters", f"{routed} inputs are said to have been routed, and {copies} were")
    return expected


def _judge_places(archived: Archived, arrivals: Arrivals, findings: Findings) -> None:
    """Letters and retries; what stands in records is the users' check."""
    for arrival in arrivals.all:
        if isinstance(arrival.event, frozenset) and not arrival.letters:
            findings.add("lost", f"{arrival} is no event ({sorted(arrival.event)}) and has no dead letter")
        if len(arrival.letters) > 1:
            findings.add(
                "doubled", f"{arrival} has {len(arrival.letters)} dead letters", len(arrival.letters) - 1
            )
        if len(arrival.routes) > 1:
            findings.add(
                "doubled", f"{arrival} was routed {len(arrival.routes)} times", len(arrival.routes) - 1
            )
        attempts = [attempt for attempt, _ in arrival.copies]
        if len(set(attempts)) < len(attempts):
            findings.add("doubled", f"{arrival} was put back twice for the same try: {sorted(attempts)}")
        if arrival.letters and arrival.waiting:
            findings.add("doubled", f"{arrival} is dead-lettered and waits to be tried again")
    for found in archived.ranges():
        for spot, kept in archived.inputs.items():
            if spot[::2] == found[:2] and any(found.first <= offset <= found.last for offset in kept):
                findings.add("misjudged", f"{found} was refused, and there are records that can be read")
    for stray in arrivals.stray:
        findings.add("doubled", stray)
    for wrong in arrivals.misjudged():
        findings.add("misjudged", wrong)


def _judge_slates(archived: Archived, arrivals: Arrivals, findings: Findings) -> None:
    deleted = {content for content, history in archived.contents.items() if history[-1].value is None}
    for user, followed in archived.users.items():
        if followed.value is None:
            continue
        last, cause = archived.last_of(followed.value), archived.cause_of(user)
        where = f"interests[{followed.partition}]@{followed.offset}"
        if last not in _places_of(arrivals, user):
            findings.add("users_wrong", f"{where} names as applied last what is no event of its user: {last}")
        if cause != last:
            findings.add("slates_wrong", f"the slate for {where} was caused by {cause}, not by {last}")
    for key, slate in archived.slates.items():
        if slate.value is None:
            continue
        shown = {item["content_id"].encode() for item in msgspec.json.decode(slate.value)["items"]}
        if gone := shown & deleted:
            findings.add(
                "slates_wrong", f"a slate at offset {slate.offset} shows {len(gone)} deleted contents"
            )
        followed_or_none = archived.users.get(key)
        if not key.startswith(b"\x00") and (followed_or_none is None or followed_or_none.value is None):
            findings.add("slates_wrong", f"a slate at offset {slate.offset} is of a user without a record")


def _places_of(arrivals: Arrivals, user: bytes) -> set[tuple[str | None, int, int]]:
    return {
        arrival.origin[:3]
        for group in arrivals.groups.get(user, {}).values()
        for arrival in (*group.originals, *group.undos)
    }
