"""``kafka.broker`` taken apart: the one place that knows how addresses are written."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from stream_app.errors import ConfigurationError

_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<host>[^\[\]:/@\s]+)):(?P<port>[0-9]{1,5})")
LARGEST_PORT = 65_535


class Address(NamedTuple):
    """Host and port of one listener."""

    host: str
    """A name or an address; IPv6 without brackets."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def addresses(broker: str) -> tuple[Address, ...]:
    """``host:port`` or ``[IPv6]:port``, separated by commas; blanks around them count for nothing.

    Raises ConfigurationError, which shows the address that is none.
    """
    found = tuple(_address(text) for part in broker.split(",") if (text := part.strip()))
    if not found:
        raise ConfigurationError("kafka.broker names no broker: expected `host:port[,host:port]`")
    return found


def _address(text: str) -> Address:
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise _refused(text, "expected `host:port`, an IPv6 address in brackets (`[::1]:9092`)")
    port = int(match["port"])
    if not 0 < port <= LARGEST_PORT:
        raise _refused(text, f"a port is a number from 1 to {LARGEST_PORT}")
    if match["ipv6"] is not None:
        try:
            ipaddress.IPv6Address(match["ipv6"])
        except ValueError:
            raise _refused(text, "what stands in brackets is no IPv6 address") from None
    return Address(match["ipv6"] or match["host"], port)


def _refused(text: str, why: str) -> ConfigurationError:
    shown = "an address with a user in it" if "@" in text else repr(text)  # a password may follow
    return ConfigurationError(f"kafka.broker: {shown} is no address of a broker: {why}")
