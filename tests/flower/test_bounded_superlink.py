"""Memory of the bounded SuperLink and locks of its database: turns, garbage, arenas, pragmas."""

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from deployment import call
from flwr.supercore import sql_mixin
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.superlink import extensions
from flwr.superlink.main import create_app
from sqlalchemy import text
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from fedpp.flower import bounded_superlink
from fedpp.flower.bounded_superlink import COLLECT_BYTES, MAX_PROCESSED, MAX_TRANSFERS, Collector, Turns

PUSH, PULL, OTHERS = "/v1/fleet/push-object", "/v1/fleet/pull-object", "/v1/runtime/push-object"
PART = b"part "


class App:
    """Application behind the turns: it reads a body, and replies once `let` is set."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.most, self._now = 0, 0
        self.let = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._now += 1
        self.most = max(self.most, self._now)
        self.bodies.append((await receive())["body"])
        await self.let.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        self._now -= 1


class Client:
    """One request of a client, which sends its body in parts, or stops after the first."""

    def __init__(self, path: str, *, stalls: bool = False) -> None:
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        self._stalls = stalls
        self.read, self.status = 0, 0

    async def receive(self) -> Message:
        if self._stalls and self.read:
            await asyncio.Event().wait()
        self.read += 1
        return {"type": "http.request", "body": PART, "more_body": self.read < 3}

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)

    def call(self, app: Turns) -> asyncio.Task[None]:
        return asyncio.ensure_future(app(self.scope, self.receive, self.send))


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test in an event loop of its own."""

    @wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        asyncio.run(test(*arguments, **fixtures))

    return run


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Patch Flower's SuperLink in this process, except for the allocator, until the test ends."""
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(AutoHTTPProtocol, "connection_made", AutoHTTPProtocol.connection_made)
    monkeypatch.setattr(bounded_superlink, "ARENAS", 0)  # as many as before
    bounded_superlink.bound()
    yield
    gc.unfreeze()


@in_loop
async def test_transfers_take_turns() -> None:
    """`MAX_TRANSFERS` run at a time, fewer are processed; no part of another is read; each is passed on whole."""
    app = App()
    turns = Turns(app)
    clients = [Client(path) for path in (PUSH, PULL) * MAX_TRANSFERS]
    calls = [client.call(turns) for client in clients]
    await settle()
    assert [client.read for client in clients] == [3] * MAX_TRANSFERS + [0] * MAX_TRANSFERS
    app.let.set()
    await asyncio.gather(*calls)
    assert app.most == MAX_PROCESSED < MAX_TRANSFERS
    assert app.bodies == [3 * PART] * len(clients)
    assert {client.status for client in clients} == {200}


@in_loop
async def test_no_other_request_waits() -> None:
    """While all turns are taken, a ServerApp's request is passed on at once."""
    app = App()
    turns = Turns(app)
    calls = [Client(PUSH).call(turns) for _ in range(2 * MAX_TRANSFERS)]
    await settle()
    own = Client(OTHERS)
    calls.append(own.call(turns))
    await settle()
    assert own.read == 1
    app.let.set()
    await asyncio.gather(*calls)


@in_loop
async def test_a_transfer_without_a_turn_is_refused_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a turn in time the reply is 503, after which Flower's clients retry; no body was read."""
    monkeypatch.setattr(bounded_superlink, "WAIT_SECONDS", 0.01)
    app = App()
    turns = Turns(app)
    calls = [Client(PUSH).call(turns) for _ in range(MAX_TRANSFERS)]
    waiting = Client(PUSH)
    await waiting.call(turns)
    assert (waiting.status, waiting.read) == (503, 0)
    app.let.set()
    await asyncio.gather(*calls)
    again = Client(PUSH)
    await again.call(turns)
    assert again.status == 200


@in_loop
async def test_a_stalled_transfer_loses_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies that stop arriving delay the others for `STALL_SECONDS` only; no part of them is passed on."""
    monkeypatch.setattr(bounded_superlink, "STALL_SECONDS", 0.01)
    app = App()
    app.let.set()
    turns = Turns(app)
    stalled = [Client(PUSH, stalls=True) for _ in range(MAX_TRANSFERS)]
    other = Client(PUSH)
    await asyncio.gather(*(client.call(turns) for client in (*stalled, other)))
    assert {client.status for client in stalled} == {503}
    assert other.status == 200
    assert app.bodies == [3 * PART]


async def require_reply_beside(slow: Sequence[asyncio.Task[None]], app: App, turns: Turns) -> None:
    """Assert that one more client gets its reply at once while these transfers run."""
    await settle()
    app.let.set()
    quick = Client(PUSH)
    await asyncio.wait_for(quick.call(turns), 1)
    assert quick.status == 200
    for call_ in slow:
        assert not call_.done()
        call_.cancel()


@in_loop
async def test_a_slow_request_does_not_block_processing() -> None:
    """A body that arrives slowly holds a turn, and no processing slot."""
    app = App()
    turns = Turns(app)
    slow = [Client(PUSH, stalls=True).call(turns) for _ in range(MAX_TRANSFERS - 1)]
    await require_reply_beside(slow, app, turns)


@in_loop
async def test_a_slowly_taken_reply_does_not_block_processing() -> None:
    """It holds a turn, and no processing slot."""

    async def never(_: Message) -> None:
        await asyncio.Event().wait()

    app = App()
    app.let.set()
    turns = Turns(app)
    clients = [Client(PULL) for _ in range(MAX_TRANSFERS - 1)]
    slow = [asyncio.ensure_future(turns(client.scope, client.receive, never)) for client in clients]
    await require_reply_beside(slow, app, turns)


@in_loop
async def test_a_request_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a few bytes now and then, to hold a turn, loses it after `OBJECT_SECONDS`."""
    monkeypatch.setattr(bounded_superlink, "OBJECT_SECONDS", 0.1)
    monkeypatch.setattr(bounded_superlink, "STALL_SECONDS", 0.05)

    async def dripping() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b".", "more_body": True}

    turns = Turns(App())
    client = Client(PUSH)
    await asyncio.wait_for(turns(client.scope, dripping, client.send), 5)
    assert client.status == 503


@in_loop
async def test_a_reply_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that takes a few bytes now and then loses its turn after `OBJECT_SECONDS`."""
    monkeypatch.setattr(bounded_superlink, "OBJECT_SECONDS", 0.3)
    monkeypatch.setattr(bounded_superlink, "SLICE_BYTES", 1)
    taken: list[Message] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(1000)})

    async def dripping(message: Message) -> None:
        await asyncio.sleep(0.01)
        taken.append(message)

    client = Client(PULL)
    await asyncio.wait_for(Turns(app)(client.scope, client.receive, dripping), 5)
    assert 1 < len(taken) < 100


def test_a_connection_is_read_little_ahead() -> None:
    """The bound is set on each new connection; reading resumes before less than a TLS record is buffered."""
    calls: list[object] = []

    class Transport:
        def set_read_buffer_limits(self, high: int, low: int) -> None:
            calls.append((high, low))

    bounded_superlink._reading_little(lambda *_: calls.append("made"))(None, Transport())
    assert calls == ["made", bounded_superlink.READ_BYTES]
    assert bounded_superlink.READ_BYTES[0] > bounded_superlink.READ_BYTES[1] > 2**14 + 256 + 5  # RFC 8446, section 5.2


@in_loop
async def test_a_reply_is_sent_no_faster_than_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply is sent in slices, and whole; a client that stalls loses the turn, and gets no end of the reply."""
    monkeypatch.setattr(bounded_superlink, "STALL_SECONDS", 0.01)
    content = bytes(range(256)) * 1000

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": content})

    async def taken(most: int) -> list[Message]:
        got: list[Message] = []
        stalls = [asyncio.Event()]  # once

        async def send(message: Message) -> None:
            if len(got) == most and stalls:
                await stalls.pop().wait()
            got.append(message)

        client = Client(PULL)
        await turns(client.scope, client.receive, send)
        return got[1:]

    turns = Turns(app)
    for _ in range(MAX_TRANSFERS + 1):
        assert [len(part["body"]) for part in await taken(3)] == [2**16, 2**16]
    whole = await taken(100)
    assert b"".join(part["body"] for part in whole) == content
    assert [part["more_body"] for part in whole] == [True, True, True, False]
    assert max(len(part["body"]) for part in whole) == 2**16


class Left:
    """Object with a weak reference, beside a body."""


def test_garbage_of_requests_is_freed() -> None:
    """A cycle is freed at the end of a request of `COLLECT_BYTES`, without Python's automatic collection."""
    left: list[weakref.ref[object]] = []

    async def app(_: Scope, __: Receive, send: Send) -> None:
        cycle: list[object] = [Left()]
        cycle.append(cycle)
        left.append(weakref.ref(cycle[0]))
        await send({"type": "http.response.body", "body": bytes(COLLECT_BYTES)})

    async def send(message: Message) -> None:
        pass

    gc.disable()
    try:
        client = Client(OTHERS)
        asyncio.run(Collector(app)(client.scope, client.receive, send))
        assert [one() for one in left] == [None]
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")  # flwr's alembic
@pytest.mark.usefixtures("bounded")
def test_the_database_is_opened_with_our_pragmas(tmp_path: Path) -> None:
    """Each connection of SuperLink's store waits a minute for a lock, and has a small cache and no map of the file."""
    store = SqlObjectStore(str(tmp_path / "superlink.sqlite"))
    store.initialize()
    names = ("busy_timeout", "cache_size", "mmap_size", "journal_mode")
    with store.session() as one:
        found = [one.execute(text(f"PRAGMA {name}")).scalar() for name in names]
    store._engine.dispose()
    assert found == [60_000, -1_000, 0, "wal"]


@pytest.mark.usefixtures("bounded")
def test_flowers_app_has_our_middlewares() -> None:
    """They are the outermost ones of SuperLink's application: a turn is taken before Flower reads a body."""
    ours = [middleware.cls for middleware in create_app().user_middleware[:2]]
    assert ours == [Collector, Turns]


def test_the_allocator_keeps_few_arenas(tmp_path: Path) -> None:
    """Threads share the C library's two arenas, and do not get one each."""
    code = """
import ctypes, sys, threading
from fedpp.flower import bounded_superlink
bounded_superlink.bound()
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
barrier = threading.Barrier(8)
def allocate():
    barrier.wait()
    taken = [library.malloc(1000) for _ in range(1000)]
    barrier.wait()
    for one in taken: library.free(one)
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library.fopen.restype, library.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
out = library.fopen(sys.argv[1].encode(), b"w")
library.malloc_info(0, ctypes.c_void_p(out))
library.fclose(out)
print(open(sys.argv[1]).read().count("<heap nr="))
"""
    assert call([sys.executable, "-c", code, str(tmp_path / "heaps")]).stdout == "2\n"
