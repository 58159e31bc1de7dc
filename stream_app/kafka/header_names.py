"""Header names that are not UTF-8 do not stop a partition.

Kafka says that header names are UTF-8, and its broker takes any bytes. Both client libraries raise on such
a name, at every fetch anew: one record of a careless producer would hold up its partition for ever. Here
its batch is read once more, with the bytes that are no UTF-8 escaped (``\\xff``).
"""

from __future__ import annotations

from typing import Any


class Escaping(bytearray):
    """A buffer whose slices decode to text whatever they hold."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return Escaping(found) if isinstance(at, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        """Text, whatever the bytes are."""
        return super().decode(encoding, errors)
