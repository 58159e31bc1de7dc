"""What remains of an erased user: a receipt without the user's id, and the fence that it stands for.

On ``erasure-receipts`` each partition of the interests table has the receipts of its users, under the
64-bit hash of the user's id in hexadecimal digits. They are written in the transactions that erase,
and read whole by the partition's next owner before it takes any event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from stream_app.hashing import key64
from stream_app.topics import DAY_MS


class Removed(msgspec.Struct, kw_only=True, gc=False):
    """How much was found of a user, over all erasures that the receipt remembers."""

    records: Annotated[int, Meta(description="Interest records. A record's slate goes with it.")] = 0
    interactions: Annotated[int, Meta(description="Engagements that those records had counted.")] = 0
    retries: Annotated[int, Meta(description="Copies of events on `events-retry` and `events-routed`.")] = 0
    dead_letters: Annotated[int, Meta(description="Copies of records on `events-dlq`.")] = 0


class Receipt(msgspec.Struct, kw_only=True):
    """What an erasure removed, and from when on the user's events count again.

    The record's key is the 64-bit XXH3 hash of the `user_id`, as 16 hexadecimal digits."""

    requested_at: Annotated[int, Meta(description="Unix ms: time of the latest request.")]
    request_offset: Annotated[int, Meta(description="Its offset on `erasures`, in the same partition.")]
    erased_at: Annotated[int, Meta(description="Unix ms: when the state was erased, latest.")]
    fence: Annotated[
        int,
        Meta(
            description="Unix ms: events of up to this time are refused, however late they come. The time of "
            "the request, or of the newest event erased if that is later."
        ),
    ]
    removed: Removed
    swept_at: Annotated[
        int | None,
        Meta(description="Unix ms: when the copies on other topics were gone as well; null: not yet."),
    ] = None
    remains: Annotated[
        tuple[str, ...],
        Meta(
            description="Topics whose records of the user are not ours to delete: they stay until the "
            "topic's retention."
        ),
    ] = ()


def receipt_key(user: int) -> bytes:
    """The Kafka key of a receipt, of the user's key64."""
    return b"%016x" % user


class Fences:
    """The receipts of one partition, by key64 of the user."""

    def __init__(self) -> None:
        self.receipts: dict[int, Receipt] = {}

    def load(self, key: bytes, value: bytes | None) -> None:
        """Take over one record of ``erasure-receipts`` (None: no longer needed)."""
        user = int(key, 16)
        if value is None:
            self.receipts.pop(user, None)
        else:
            receipt = msgspec.json.decode(value, type=Receipt)
            # earlier versions took a request's time from any clock, and locked the user out until then
            fence = min(receipt.fence, receipt.erased_at + DAY_MS)
            self.receipts[user] = msgspec.structs.replace(receipt, fence=fence)

    def refused(self, users: Sequence[bytes], times: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[E], which events are of a user's time before the erasure. ``times`` in ms."""
        refused = np.zeros(len(users), np.bool_)
        if self.receipts:
            for at, (user, time_ms) in enumerate(zip(users, times.tolist(), strict=True)):
                refused[at] = self.covers(user, time_ms)
        return refused

    def covers(self, user: bytes | None, time_ms: int) -> bool:
        """Whether what the user did at that time was erased."""
        receipt = self.receipts.get(key64(user)) if user is not None else None
        return receipt is not None and time_ms <= receipt.fence

    def take(self, erased: Mapping[bytes, Receipt]) -> None:
        """Take over the receipts of users who have just been erased."""
        for user, receipt in erased.items():
            self.receipts[key64(user)] = receipt

    def swept(
        self, copies: Mapping[int, Removed], asked: Mapping[int, int], now_ms: int
    ) -> dict[int, Receipt]:
        """The receipts of these users as they are once their copies are gone; not of those who have been
        asked for again, by another request than ``asked``."""
        done = {}
        for user, found in copies.items():
            receipt = self.receipts.get(user)
            if receipt is not None and receipt.request_offset == asked[user]:
                removed = msgspec.structs.replace(
                    receipt.removed,
                    retries=receipt.removed.retries + found.retries,
                    dead_letters=receipt.removed.dead_letters + found.dead_letters,
                )
                done[user] = msgspec.structs.replace(receipt, removed=removed, swept_at=now_ms)
        return done

    @property
    def unswept(self) -> dict[int, int]:
        """Users whose copies on other topics are still to be removed, and offsets of the requests."""
        return {user: r.request_offset for user, r in self.receipts.items() if r.swept_at is None}

    def obsolete(self, before_ms: int, most: int) -> list[int]:
        """Users whose fence lies before ``before_ms``, and beyond ``most`` those with the oldest fences."""
        swept = [(r.fence, user) for user, r in self.receipts.items() if r.swept_at is not None]
        excess = max(0, len(self.receipts) - most)
        if not excess:
            return [user for fence, user in swept if fence < before_ms]
        swept.sort()
        return [user for at, (fence, user) in enumerate(swept) if at < excess or fence < before_ms]
