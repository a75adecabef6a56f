"""Bounded SuperLink: Flower's SuperLink, patched to hold a few objects in memory however many sites send at once.

Every waiting object still has a connection with its TLS buffers.

Differences from `flower-superlink`, each still missing in Flower 1.42, whose memory grows with the number of sites:
- Transfers of sites' objects take turns, from the first byte to the last, and fewer still are processed at a time,
  which takes several times an object's 5 MiB. Flower reads all requests at once, and holds all replies until they are
  taken.
- A connection whose object waits for its turn is read 64 KiB ahead, and not 256.
- Memory of a request is freed when the request ends. In Flower's stack of middlewares, exceptions keep the body in
  reference cycles, which Python's collector looks for seldom.
- The C library keeps freed memory in two arenas, and not in several for each of Flower's threads.
- A database connection caches little, since nothing is read twice, and waits up to a minute for a lock: after Flower's
  5 s the reply is status 500, which ends a ServerApp.

Needed until: Flower bounds the memory of transfers by itself and waits longer for its database.
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
TRANSFERS = frozenset({"/v1/fleet/push-object", "/v1/fleet/pull-object"})  # a ServerApp's own never wait
MAX_TRANSFERS = 8  # at a time; each SuperNode makes up to two
MAX_PROCESSED = 4  # of these, at a time
WAIT_SECONDS = 20.0  # for a turn; after 30 s a client gives up and retries, and what it sent is lost
STALL_SECONDS = 10.0  # without progress of a transfer that has its turn
OBJECT_SECONDS = 60.0  # for a transfer of 5 MiB: 0.7 Mbit/s for each of the two that a node makes at a time
READ_BYTES = 2**16, 2**15  # read ahead on a connection: at most, and where reading resumes
SLICE_BYTES = 2**16  # of a reply, passed to the server; the next slice waits until the client has taken this one
COLLECT_BYTES = 8 * 2**20  # of bodies between two collections
ARENAS = 2  # of the C library
_M_ARENA_MAX = -8  # in glibc's malloc.h
_BUSY = 503  # Flower's clients try again


class Turns:
    """Middleware that lets `MAX_TRANSFERS` transfers of sites run at a time; the bodies of others stay unread."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns, self._processing = Semaphore(MAX_TRANSFERS), Semaphore(MAX_PROCESSED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, a transfer in its turn; reply 503 if no turn comes in time, or the body does not."""
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
            request = [await _whole(receive)]
        except TimeoutError:
            await Response(status_code=_BUSY)(scope, receive, send)
        else:

            async def received() -> Message:
                return request.pop() if request else await receive()

            reply: list[Message] = []

            async def replied(message: Message) -> None:
                reply.append(message)

            async with self._processing:
                await self._app(scope, received, replied)
            await _send_as_taken(reply, send)
        finally:
            self._turns.release()


async def _whole(receive: Receive) -> Message:
    """Return a request's body in one message, or the message of a client that disconnected."""
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


async def _send_as_taken(reply: list[Message], send: Send) -> None:
    """Send a reply no faster than the client takes it; cut it off if it stalls or takes too long."""
    with suppress(TimeoutError):
        async with timeout(OBJECT_SECONDS):
            for message in reply:
                body, more = message.get("body", b""), message.get("more_body", False)
                for start in range(0, len(body) or 1, SLICE_BYTES):
                    part, rest = body[start : start + SLICE_BYTES], len(body) > start + SLICE_BYTES
                    async with timeout(STALL_SECONDS):
                        await send({**message, "body": part, "more_body": rest or more} if body else message)


class Collector:
    """Middleware that runs Python's garbage collector after every `COLLECT_BYTES` of bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count the bytes of its body and of the reply."""
        if scope["type"] == "lifespan":
            gc.collect()
            gc.freeze()  # objects that live as long as the process need no further look

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
    """Return uvicorn's handler of a new connection, followed by a bound on what is read ahead."""

    def made(protocol: Any, transport: Any) -> None:
        connection_made(protocol, transport)
        transport.set_read_buffer_limits(
            *READ_BYTES
        )  # the second holds a TLS record; with less, reading would stop within one

    return made


def bound() -> None:
    """Patch the SuperLink that this process starts afterwards."""
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
