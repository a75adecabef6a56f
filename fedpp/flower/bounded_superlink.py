"""Flower's SuperLink, whose memory is that of a few objects on their way, however many sites send at once.

Each object that waits still has a connection with its TLS buffers.

Five things differ from `flower-superlink` (measured with 1.41, whose memory grows with the number of sites):
- Sites' objects take turns on their way, from the first byte to the last, and fewer of them are worked on, which takes
  several times an object's 5 MiB. Flower reads all that come, and keeps all that go until they are taken.
- A connection whose object waits for its turn is read 64 KiB ahead, and not 256.
- What a request leaves behind is freed when it ends. In Flower's stack of middlewares its exceptions keep its body in
  cycles, which Python's collector looks for seldom.
- The C library keeps freed memory in two places, not in several for each of the threads that Flower works with.
- A connection to the database caches little, since nothing is read twice, and waits long for another's write: after
  Flower's 5 s its answer is 500, which ends a ServerApp.
"""

import ctypes
import gc
import sys
from asyncio import Semaphore, timeout
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

PRAGMAS = {"busy_timeout": "60000", "cache_size": "-1000", "mmap_size": "0"}  # milliseconds; KiB, if negative; bytes
TRANSFERS = frozenset({"/v1/fleet/push-object", "/v1/fleet/pull-object"})  # a ServerApp's own are never kept waiting
MAX_TRANSFERS = 8  # on their way at a time, of two that each SuperNode has
MAX_WORKED_ON = 4
WAIT_SECONDS = 20.0  # for a turn. After 30 s a client gives up, and tries again: what came of the first try is lost
STALL_SECONDS = 10.0  # in which nothing comes, or is taken, of an object that has its turn
OBJECT_SECONDS = 60.0  # for 5 MiB to come, or to be taken: 0.7 Mbit/s for each of the two that a node moves at a time
READ_BYTES = 2**16, 2**15  # of a connection, ahead of what the application took: at most, and when it is read again
SLICE_BYTES = 2**16  # of an answer that the server takes at once; for the next one it waits until the client has it
COLLECT_BYTES = 8 * 2**20  # of bodies that came and went
ARENAS = 2  # of the C library
_M_ARENA_MAX = -8  # in glibc's malloc.h
_BUSY = 503  # Flower's clients try again


class Turns:
    """Let so many of the sites' transfers come and go at a time; the bodies of others stay where they come from."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns, self._work = Semaphore(MAX_TRANSFERS), Semaphore(MAX_WORKED_ON)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, a transfer when it is its turn, and answer 503 where none comes or the body does not."""
        if scope["type"] != "http" or scope["path"] not in TRANSFERS:
            await self._app(scope, receive, send)
            return
        try:
            async with timeout(WAIT_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            await Response(status_code=_BUSY)(scope, receive, send)
            return
        try:
            whole = [await _whole(receive)]
        except TimeoutError:
            await Response(status_code=_BUSY)(scope, receive, send)
        else:

            async def received() -> Message:
                return whole.pop() if whole else await receive()

            answer: list[Message] = []

            async def answered(message: Message) -> None:
                answer.append(message)

            async with self._work:
                await self._app(scope, received, answered)
            await _send_as_taken(answer, send)
        finally:
            self._turns.release()


async def _whole(receive: Receive) -> Message:
    """Return a request's body in one message, or the one that says that the client is gone."""
    parts: list[bytes] = []
    async with timeout(OBJECT_SECONDS):
        while True:
            async with timeout(STALL_SECONDS):
                message = await receive()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return {"type": "http.request", "body": b"".join(parts)}


async def _send_as_taken(answer: list[Message], send: Send) -> None:
    """Send an answer no faster than the client takes it; one that stalls is cut off, as what does not end is."""
    with suppress(TimeoutError):
        async with timeout(OBJECT_SECONDS):
            for message in answer:
                body, more = message.get("body", b""), message.get("more_body", False)
                for start in range(0, len(body) or 1, SLICE_BYTES):
                    part, rest = body[start : start + SLICE_BYTES], len(body) > start + SLICE_BYTES
                    async with timeout(STALL_SECONDS):
                        await send({**message, "body": part, "more_body": rest or more} if body else message)


class Collector:
    """Free what requests leave behind, each time that bodies of so many bytes came and went."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its body and answer."""
        if scope["type"] == "lifespan":
            gc.collect()
            gc.freeze()  # what lives as long as the process need not be looked at each time

        async def received() -> Message:
            return self._counted(await receive())

        async def sent(message: Message) -> None:
            await send(self._counted(message))

        await self._app(scope, received, sent)
        if self._bytes >= COLLECT_BYTES:
            self._bytes = 0
            gc.collect()

    def _counted(self, message: Message) -> Message:
        self._bytes += len(message.get("body", b""))
        return message


def _reading_little(connection_made: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Return what uvicorn does with a new connection, and then bounds what is read ahead of it."""

    def made(protocol: Any, transport: Any) -> None:
        connection_made(protocol, transport)
        transport.set_read_buffer_limits(*READ_BYTES)  # the second holds a TLS record: less would wait for its end

    return made


def bound() -> None:
    """Let Flower's SuperLink, which is started afterwards in this process, have all that."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_ARENA_MAX, ARENAS)
    pragmas = {**dict(SQLITE_PRAGMAS), **PRAGMAS}
    sql_mixin.SQLITE_PRAGMAS = tuple(pragmas.items())  # type: ignore[attr-defined, assignment]
    AutoHTTPProtocol.connection_made = _reading_little(AutoHTTPProtocol.connection_made)  # type: ignore[assignment, method-assign]
    extensions.get_middleware = lambda: (Middleware(Collector), Middleware(Turns))


def main() -> int:
    """Run `flower-superlink` with the arguments after its path; return the exit status."""
    bound()
    sys.argv = sys.argv[1:]
    flower_superlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
