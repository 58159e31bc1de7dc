"""A value that must not be printed: passwords."""

from __future__ import annotations

REDACTED = "***"


class Secret:
    """Text that shows as ``***`` wherever it is formatted; only ``reveal`` gives it away.

    No encoder knows the type, so that JSON of a structure that holds one is refused instead of leaking
    it; and it cannot be pickled. False when empty.
    """

    __slots__ = ("__text",)

    def __init__(self, text: str = "") -> None:
        self.__text = text

    def reveal(self) -> str:
        """The text itself: for the client that needs it, or a child's environment. Never for a message."""
        return self.__text

    def __repr__(self) -> str:
        return REDACTED if self.__text else "''"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self.__text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.__text == self.__text

    def __hash__(self) -> int:
        return hash(self.__text)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")
