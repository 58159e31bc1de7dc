"""What is committed beside an offset: the topic's id, and who writes for the partition.

A worker's *claim* on an input partition is its transactional id in the partition's committed offset. It is
committed with the generation of the group's assignment before anything is written for the partition, and so
by nobody but the partition's owner. The next owner finds there whom to fence. A worker that gives its
partitions up in an orderly way says in the claim that it has left: nothing of it is on its way.
"""

from __future__ import annotations

from typing import NamedTuple

LEFT = "left"


class Membership(NamedTuple):
    """Under which a worker has an assignment: what its group's coordinator refuses once it is out of date."""

    generation: int
    member_id: str


NOBODY = Membership(-1, "")
"""What an empty group takes offsets from."""


class Mark(NamedTuple):
    """The metadata of a committed offset."""

    topic_id: str = ""
    owner: str = ""
    """Its transactional id; empty where the offset was committed by somebody who writes nothing."""
    left: bool = False
    """Whether the owner has given the partition up."""

    def encode(self) -> str:
        """As it is committed."""
        if not self.owner:
            return self.topic_id
        return " ".join([self.topic_id, self.owner, *([LEFT] if self.left else [])])


def decode_mark(metadata: str) -> Mark:
    """The mark in an offset's metadata, whoever has committed it."""
    topic_id, owner, left = [*metadata.split(" "), "", ""][:3]
    return Mark(topic_id, owner, left == LEFT)
