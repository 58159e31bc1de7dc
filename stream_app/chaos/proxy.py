"""A loopback TCP proxy between the workers and the broker, whose connections can be cut or hung.

It is a process of its own (``python -I proxy.py LISTEN TARGET``), so that nothing that the driver
does delays what it carries. Commands are lines on its stdin: ``cut SHARE SEED`` closes that part
of all connections, ``hang SECONDS`` forwards nothing for so long. The end of stdin ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import threading

HOST = "127.0.0.1"
CHUNK_BYTES = 1 << 16
STOP_TIMEOUT_S = 5.0
RETRY_S = 0.1


class Proxy:
    """The driver's end: starts the process, tells it what to do."""

    def __init__(self, listen: int, target: int) -> None:
        """Ports on this machine. Starts nothing yet."""
        self._command = [sys.executable, "-I", __file__, str(listen), str(target)]

    def start(self) -> None:
        """Return once it accepts connections."""
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        if not self._process.stdout.readline():
            raise OSError("the proxy does not listen")

    def cut(self, share: float, seed: int) -> int:
        """Close this part of all connections, at least one; how many they were."""
        return int(self._tell(f"cut {share} {seed}"))

    def hang(self, seconds: float) -> None:
        """Forward nothing for so long, in either direction. Returns at once."""
        self._tell(f"hang {seconds}")

    def stop(self) -> None:
        """End it."""
        process = self._process
        assert process.stdin is not None  # noqa: S101 - a pipe
        assert process.stdout is not None  # noqa: S101 - a pipe
        process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _tell(self, line: str) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101 - a pipe
        assert stdout is not None  # noqa: S101 - a pipe
        stdin.write(line + "\n")
        stdin.flush()
        if not (answer := stdout.readline()):
            raise OSError("the proxy has ended")
        return answer.strip()


class Relay:
    """The process's end: carries bytes both ways."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.listening = asyncio.Event()
        """Set when connections were accepted for the first time."""
        self.away = asyncio.Event()
        """Set when the broker refuses connections."""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._connections: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []

    async def serve(self, port: int) -> None:
        """Listen, but not while the broker is away: connections are refused then, as it would do."""
        while True:
            server = await asyncio.start_server(self.carry, HOST, port)
            self.listening.set()
            self.away.clear()
            await self.away.wait()
            server.close()
            while not await _answers(self._target):  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(RETRY_S)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either end closes it."""
        try:
            await self._flowing.wait()
            there, back = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.transport.abort()
            self.away.set()
            return
        pair = (writer, back)
        self._connections.append(pair)
        ways = [asyncio.create_task(self._pump(reader, back)), asyncio.create_task(self._pump(there, writer))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        self._connections.remove(pair)
        _abort(pair)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await self._flowing.wait()
                writer.write(chunk)
                await writer.drain()

    def cut(self, share: float, seed: int) -> int:
        """Reset this part of all connections, at least one if there is any."""
        live = self._connections
        count = min(len(live), max(1, round(share * len(live))))
        for pair in random.Random(seed).sample(live, count):  # noqa: S311 - replayable on purpose
            _abort(pair)
        return count

    async def hang(self, seconds: float) -> None:
        """Let nothing through for so long."""
        self._flowing.clear()
        await asyncio.sleep(seconds)
        self._flowing.set()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True


def _abort(pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
    for writer in pair:
        writer.transport.abort()


async def main(listen: int, target: int) -> None:
    """Serve until stdin ends."""
    relay, loop, ended = Relay(target), asyncio.get_running_loop(), asyncio.Event()
    hanging: set[asyncio.Task[None]] = set()

    def obey(line: str) -> None:
        verb, first, *rest = line.split()
        if verb == "cut":
            print(relay.cut(float(first), int(rest[0])), flush=True)
        else:
            task = asyncio.create_task(relay.hang(float(first)))
            hanging.add(task)
            task.add_done_callback(hanging.discard)
            print("ok", flush=True)

    def listen_to_driver() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(obey, line)
        loop.call_soon_threadsafe(ended.set)

    serving = asyncio.create_task(relay.serve(listen))
    threading.Thread(target=listen_to_driver, daemon=True).start()
    await relay.listening.wait()
    print("listening", flush=True)
    await ended.wait()
    serving.cancel()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
