"""The proxy carries bytes, cuts and hangs connections when told, refuses them while its target is away."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from stream_app.chaos.proxy import HOST, Proxy
from stream_app.kafka.broker import free_port

PATIENCE_S = 10.0


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := self.request.recv(1024):
                self.request.sendall(chunk)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@contextlib.contextmanager
def echo(port: int) -> Iterator[None]:
    with Server((HOST, port), Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield
        server.shutdown()


@pytest.fixture
def proxy() -> Iterator[tuple[Proxy, int, int]]:
    """The proxy, its own port, its target's."""
    front, back = free_port(), free_port()
    made = Proxy(front, back)
    made.start()
    yield made, front, back
    made.stop()


def connected(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=PATIENCE_S)


def echoes(connection: socket.socket, text: bytes = b"hello") -> bool:
    with contextlib.suppress(OSError):
        connection.sendall(text)
        return connection.recv(100) == text
    return False


def until(true: object, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():  # type: ignore[operator]  # a callable
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_bytes_go_both_ways(proxy: tuple[Proxy, int, int]) -> None:
    _, front, back = proxy
    with echo(back), connected(front) as connection:
        assert echoes(connection)
        large = b"x" * 3_000_000
        sender = threading.Thread(target=connection.sendall, args=(large,))
        sender.start()
        received = bytearray()
        while len(received) < len(large):
            received += connection.recv(1 << 16)
        sender.join()
        assert bytes(received) == large


@pytest.mark.parametrize(("share", "cut"), [(0.0, 1), (0.5, 3), (1.0, 6)])
def test_a_part_of_the_connections_is_cut(proxy: tuple[Proxy, int, int], share: float, cut: int) -> None:
    made, front, back = proxy
    with echo(back), contextlib.ExitStack() as stack:
        live = [stack.enter_context(connected(front)) for _ in range(6)]
        assert all(echoes(connection) for connection in live)
        assert made.cut(share, seed=1) == cut
        assert sum(echoes(connection) for connection in live) == 6 - cut
        assert echoes(stack.enter_context(connected(front)))


def test_a_hung_network_carries_nothing_and_then_everything(proxy: tuple[Proxy, int, int]) -> None:
    made, front, back = proxy
    with echo(back), connected(front) as connection:
        assert echoes(connection)
        made.hang(1.0)
        connection.sendall(b"later")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        connection.settimeout(PATIENCE_S)
        assert connection.recv(100) == b"later"


def test_connections_are_refused_while_the_target_is_away(proxy: tuple[Proxy, int, int]) -> None:
    _, front, back = proxy

    def refused() -> bool:
        try:
            connected(front).close()
        except ConnectionRefusedError:
            return True
        return False

    def back_again() -> bool:
        with contextlib.suppress(OSError), connected(front) as connection:
            return echoes(connection)
        return False

    until(refused, "connections to be refused")
    with echo(back):
        until(back_again, "connections to be carried again")


def test_it_ends_with_whoever_started_it() -> None:
    made = Proxy(port := free_port(), free_port())
    made.start()
    made.stop()
    with pytest.raises(ConnectionRefusedError):
        connected(port)
