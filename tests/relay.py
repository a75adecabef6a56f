"""TLS relay that records its traffic in clear: the owner of a coordinator's keys can read all that its sites send.

One thread serves all connections: an OpenSSL connection is not safe for one reading and one writing thread.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

CHUNK = 2**16


class Recording:
    """All bytes that passed, by connection and direction."""

    def __init__(self) -> None:
        self._streams: list[bytearray] = []

    def stream(self) -> bytearray:
        """Return a new stream."""
        self._streams.append(bytearray())
        return self._streams[-1]

    def content(self) -> bytes:
        """Return all bytes so far."""
        return b"\n".join(map(bytes, self._streams))


@contextmanager
def recorded(upstream: int, tls: Path) -> Iterator[tuple[int, Recording]]:
    """Relay a new port of this machine to another, with a coordinator's certificates; yield port and recording."""
    recording, ours = Recording(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(tls / "server.pem", tls / "server.key")
    theirs = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    started: Future[tuple[int, Callable[[], object]]] = Future()

    async def relay(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            far, on = await asyncio.open_connection("127.0.0.1", upstream, ssl=theirs)
        except OSError:
            back.close()
            return
        try:
            await asyncio.gather(_pump(near, on, recording.stream()), _pump(far, back, recording.stream()))
        except asyncio.CancelledError:  # the relay ends
            on.transport.abort()
            back.transport.abort()

    async def serve() -> None:
        server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=ours)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        started.set_result((server.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(ended.set)))
        await ended.wait()
        server.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, serve())
        port, end = started.result(10)
        try:
            yield port, recording
        finally:
            end()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, kept: bytearray) -> None:
    with suppress(OSError):
        while data := await source.read(CHUNK):
            kept += data
            target.write(data)
            await target.drain()
    target.close()
