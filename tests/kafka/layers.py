"""What keeps a worker that was taken for dead from doing harm, layer by layer: each can be taken away on
purpose, to see that a story fails without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stream_app.kafka import coordination, transactions
from stream_app.kafka.marks import NOBODY, Membership
from stream_app.kafka.member_offsets import MemberOffsetsHandler
from stream_app.kafka.shared import SharedTransactions


def _claims() -> None:
    """Whoever has a claim is not fenced out: what it has open stays open, what it sends is taken."""
    SharedTransactions._fence_out = _nobody  # type: ignore[method-assign]


async def _nobody(_self: SharedTransactions, _transactional_id: str) -> None:
    pass


def _generation() -> None:
    """Offsets are committed in nobody's name: the group takes them from whoever was a member once."""
    transactions.MemberOffsetsHandler = _in_nobodys_name  # type: ignore[assignment,misc]


def _in_nobodys_name(
    sender: Any, offsets: Any, group: str, _member: Membership, *, adding: bool
) -> MemberOffsetsHandler:
    return MemberOffsetsHandler(sender, offsets, group, NOBODY, adding=adding)


def announce() -> None:
    """Transactions as on brokers that cannot do without an announcement."""
    coordination.unannounced = _cannot


async def _cannot(_client: Any, _coordinator: int) -> bool:
    return False


LAYERS: dict[str, Callable[[], None]] = {"claims": _claims, "generation": _generation}


def take_away(*names: str) -> None:
    """Work without these layers from now on."""
    for name in names:
        LAYERS[name]()
