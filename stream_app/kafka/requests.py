"""Requests that aiokafka does not have, in the manner of its own."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from aiokafka.protocol.api import Request, RequestStruct

T = TypeVar("T", bound=RequestStruct)


class FlexibleRequest(Request[T]):  # type: ignore[misc]  # untyped base
    """One of a flexible version (KIP-482): these fields, and no tags."""

    API_KEY: ClassVar[int] = -1  # each request's own

    def __init__(self, *fields: Any) -> None:
        self._fields = fields

    def build(self, request_struct_class: type[T]) -> T:
        """As it is sent."""
        struct: T = request_struct_class(*self._fields, {})
        return struct
