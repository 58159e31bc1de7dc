"""What every user was shown last, as far as this ranker owns the user: contents and their order.

It serves two questions. *Is this slate news?* One that shows the same contents in the same order is not
published again. *Whose slate names this content?* When a content is deleted, those slates are made anew.

The first answer may never be wrong: so what is not known counts as news, a partition's entries are
forgotten with the partition, and what was read from the topic counts only once its end was reached,
since before that it may be an older slate. The second may never miss anybody: a partition of which not
all users could be remembered is *incomplete*, and is searched on the topic instead.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stream_app.settings import Settings

WITHDRAWN = 0
"""Mark of a user without a slate. (A slate's 64-bit mark is this by chance once in 2^64.)"""


class SlateLedger:
    """The last slates of at most ``recommendations.remembered_users`` users; one thread uses it.

    N users, k places of a slate. Memory grows with the users, to N (8 k + 300) bytes or so.
    """

    def __init__(self, settings: Settings) -> None:
        n, k = settings.recommendations.remembered_users, settings.ranking.slate_size
        self.incomplete: set[int] = set()
        """Partitions of which not every user with a slate is remembered."""
        self.outdated: dict[bytes, int] = {}
        """user → partition, for slates that are to be made anew; whoever gets another one leaves."""
        self._capacity = n
        self._rows: OrderedDict[bytes, int] = OrderedDict()  # the one published longest ago first
        self._users: list[bytes] = []  # by row
        self._free: list[int] = []
        self._keys: NDArray[np.uint64] = np.zeros((n, k), np.uint64)  # [N, k], 0 where there is none
        self._marks: NDArray[np.uint64] = np.zeros(n, np.uint64)  # [N]
        self._partitions: NDArray[np.int32] = np.zeros(n, np.int32)  # [N], -1 where free
        self._read: NDArray[np.bool_] = np.zeros(n, np.bool_)  # [N], read from the topic, not published here
        self._terms: dict[int, int] = {}  # partition → how often it was forgotten
        self._filled: set[int] = set()

    def __len__(self) -> int:
        """Users remembered."""
        return len(self._rows)

    # -- what is published here

    def unchanged(self, user: bytes, partition: int, mark: int) -> bool:
        """Whether the user's slate is known to be this one."""
        row = self._rows.get(user)
        if row is None or self._partitions[row] != partition or self._marks[row] != mark:
            return False
        return not self._read[row] or partition in self._filled

    def shows(self, user: bytes, partition: int, content: int) -> bool | None:
        """Whether the user's last slate names the content (its key); None where no slate is known, or nothing
        was left to be shown."""
        row = self._rows.get(user)
        if row is None or self._partitions[row] != partition:
            return None
        keys = self._keys[row].tolist()
        return content in keys if any(keys) else None

    def note(self, user: bytes, partition: int, mark: int, contents: Sequence[int]) -> None:
        """This slate was published; ``contents`` are the 64-bit keys of its places."""
        self.outdated.pop(user, None)
        row = self._rows.get(user)
        if row is None:
            if not self._free and len(self._users) == self._capacity:
                _, oldest = self._rows.popitem(last=False)
                self.incomplete.add(int(self._partitions[oldest]))
                self._release(oldest)
            row = self._take(user)
        self._set(row, partition, mark, contents, read=False)
        self._rows.move_to_end(user)

    def withdraw(self, user: bytes, partition: int) -> None:
        """The user's slate was withdrawn."""
        if partition in self._filled:
            self.outdated.pop(user, None)
            self._drop(user)
        else:  # reading may yet come across the slate that was withdrawn
            self.note(user, partition, WITHDRAWN, ())

    def forget(self, partition: int) -> None:
        """The partition is no longer ours: others may publish for its users."""
        self._terms[partition] = self._terms.get(partition, 0) + 1
        self._filled.discard(partition)
        self.incomplete.discard(partition)
        for row in self._rows_of({partition}):
            self._drop(self._users[row])
        self.outdated = {user: p for user, p in self.outdated.items() if p != partition}

    # -- what stands on the topic

    def unfilled(self, owned: Collection[int]) -> dict[int, int]:
        """Those of the owned partitions whose slates are yet to be read, with their terms."""
        return {p: self._terms.setdefault(p, 0) for p in owned if p not in self._filled}

    def fill(
        self, terms: Mapping[int, int], user: bytes, partition: int, slate: tuple[int, Sequence[int]] | None
    ) -> None:
        """A slate (mark and content keys) as it was read, None for one that was withdrawn.

        What was published here since the partition came is newer, and what belongs to others, or to an
        earlier term of the partition, is none of ours: both stay as they are.
        """
        row = self._rows.get(user)
        if slate is None:
            if row is not None and self._read[row] and int(self._partitions[row]) not in self._filled:
                self._drop(user)
            return
        if terms.get(partition, -1) != self._terms.get(partition):
            return
        if row is None:
            # once something had to give way, what is not here may have been withdrawn
            if partition in self.incomplete or (not self._free and len(self._users) == self._capacity):
                self.incomplete.add(partition)
                return
            row = self._take(user)
        elif not self._read[row]:
            return
        self._set(row, partition, *slate, read=True)

    def filled(self, terms: Mapping[int, int]) -> set[int]:
        """Everything that stood on the topic has been read; the partitions that are still in that term."""
        done = {p for p, term in terms.items() if self._terms[p] == term}
        self._filled |= done
        for row in self._rows_of(done):
            if self._marks[row] == WITHDRAWN:
                self._drop(self._users[row])
        return done

    # -- who is shown what

    async def naming(self, contents: Collection[int]) -> dict[bytes, int]:
        """user → partition, for the remembered users whose slates name any of these contents (their keys).

        The search has a thread of its own: with 200,000 slates it takes a tenth of a second. A slate that
        is noted meanwhile may count or not.
        """
        if not contents:
            return {}
        wanted = np.sort(np.fromiter(contents, np.uint64, len(contents)))
        rows = await asyncio.to_thread(_naming, self._keys[: len(self._users)], wanted)
        return {
            self._users[row]: int(self._partitions[row])
            for row in rows.tolist()
            if self._partitions[row] >= 0  # else forgotten meanwhile
        }

    # -- rows

    def _rows_of(self, partitions: set[int]) -> list[int]:
        rows: list[int] = np.flatnonzero(
            np.isin(self._partitions[: len(self._users)], list(partitions))
        ).tolist()
        return rows

    def _take(self, user: bytes) -> int:
        if self._free:
            row = self._free.pop()
            self._users[row] = user
        else:
            row = len(self._users)
            self._users.append(user)
        self._rows[user] = row
        return row

    def _set(self, row: int, partition: int, mark: int, contents: Sequence[int], *, read: bool) -> None:
        width = self._keys.shape[1]
        if len(contents) > width:  # of a configuration with longer slates
            self.incomplete.add(partition)
        self._keys[row] = 0
        self._keys[row, : len(contents)] = contents[:width]
        self._marks[row], self._partitions[row], self._read[row] = mark, partition, read

    def _drop(self, user: bytes) -> None:
        row = self._rows.pop(user, None)
        if row is not None:
            self._release(row)

    def _release(self, row: int) -> None:
        self._keys[row], self._partitions[row], self._users[row] = 0, -1, b""
        self._free.append(row)


def _naming(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Rows of keys [N, k] with any of the ``wanted``, which are sorted and at least one."""
    place = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
    return np.flatnonzero((wanted[place] == keys).any(axis=1))
