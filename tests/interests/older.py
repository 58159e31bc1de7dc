"""A way to the broker on which it speaks no later protocol than an older one did."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

from kafka.protocol.broker_version_data import BROKER_API_VERSIONS

from tests.interests.gate import Gate, _shutdown

API_VERSIONS = 18
FLEXIBLE = 3
"""From this version of the ApiVersions answer on, lists have compact lengths and entries have tags."""


class OlderGate(Gate):
    """Lowers the versions that the broker says it speaks, and cuts whoever asks for a later one, as the
    older broker would."""

    def __init__(self, version: tuple[int, int]) -> None:
        super().__init__()
        self._known: dict[int, tuple[int, int]] = BROKER_API_VERSIONS[version]
        self._asked: dict[frozenset[socket.socket], dict[int, int]] = {}
        self.refused: list[tuple[int, int]] = []
        """Requests (API, version) that the older broker does not know."""
        self.seen: set[int] = set()
        """APIs asked for."""

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        asked = self._asked.setdefault(frozenset((one, other)), {})
        to_broker = other.getpeername() == self._broker
        with contextlib.suppress(OSError):  # cut
            for frame in _frames(one):
                answer = self._request(frame, asked) if to_broker else self._response(frame, asked)
                if answer is None:
                    break
                other.sendall(struct.pack(">i", len(answer)) + answer)
        with self._lock:
            self._pairs.discard(one)
        _shutdown(other)
        one.close()

    @property
    def _broker(self) -> tuple[str, int]:
        assert self.target is not None
        host, _, port = self.target.rpartition(":")
        return host, int(port)

    def _request(self, frame: bytes, asked: dict[int, int]) -> bytes | None:
        api, version, correlation = struct.unpack_from(">hhi", frame)
        self.seen.add(api)
        if api == API_VERSIONS:
            asked[correlation] = version
        elif api not in self._known or version > self._known[api][1]:
            self.refused.append((api, version))
            return None
        return frame

    def _response(self, frame: bytes, asked: dict[int, int]) -> bytes:
        version = asked.pop(struct.unpack_from(">i", frame)[0], None)
        return frame if version is None else self._lowered(frame, version)

    def _lowered(self, frame: bytes, version: int) -> bytes:
        flexible = version >= FLEXIBLE
        at, size = 6, 7 if flexible else 6
        if flexible:
            count, at = _unsigned(frame, at)
            count -= 1
        else:
            (count,) = struct.unpack_from(">i", frame, at)
            at += 4
        kept = []
        for start in range(at, at + count * size, size):
            api, lowest, latest = struct.unpack_from(">hhh", frame, start)
            if api in self._known and lowest <= (latest := min(latest, self._known[api][1])):
                kept.append(struct.pack(">hhh", api, lowest, latest) + b"\0" * flexible)
        length = _packed(len(kept) + 1) if flexible else struct.pack(">i", len(kept))
        return b"".join((frame[:6], length, *kept, frame[at + count * size :]))


def _frames(end: socket.socket) -> Iterator[bytes]:
    with end.makefile("rb") as stream:
        while len(size := stream.read(4)) == 4:
            frame = stream.read(struct.unpack(">i", size)[0])
            yield frame


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        at, number, shift = at + 1, number | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return number, at


def _packed(number: int) -> bytes:
    low = number & 0x7F
    return bytes([low]) if number < 0x80 else bytes([low | 0x80]) + _packed(number >> 7)
