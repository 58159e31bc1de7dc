"""A loopback gate between a worker and the broker: shut, it cuts every connection and lets nobody in."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

CHUNK_BYTES = 1 << 16


class Gate:
    """Listens at once; carries bytes to and from ``target`` (HOST:PORT) while it is open."""

    def __init__(self, target: str | None = None) -> None:
        self.target = target
        """May be set later, before the first connection."""
        self._open = True
        self._pairs: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name="gate", daemon=True)
        self._thread.start()

    def shut(self) -> None:
        """Cut all connections; those that come are closed at once."""
        with self._lock:
            self._open = False
            for end in self._pairs:
                _shutdown(end)

    def open(self) -> None:
        """Let everybody in again."""
        with self._lock:
            self._open = True

    def close(self) -> None:
        """End it."""
        self.shut()
        _shutdown(self._listener)
        self._listener.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if not self._open or self.target is None:
                    here.close()
                    continue
                host, _, port = self.target.rpartition(":")
                try:
                    there = socket.create_connection((host, int(port)))
                except OSError:
                    here.close()
                    continue
                self._pairs |= {here, there}
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _chunks(self, end: socket.socket) -> Iterator[bytes]:
        while chunk := end.recv(CHUNK_BYTES):
            yield chunk

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):  # cut
            for chunk in self._chunks(one):
                other.sendall(chunk)
        with self._lock:
            self._pairs.discard(one)
        _shutdown(other)  # ends the other way, whose thread closes its own end
        one.close()


def _shutdown(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # not connected any more
        end.shutdown(socket.SHUT_RDWR)
