"""Flower's own behaviour that fedpp patches: a test that fails here says which patch is needed no more."""

import asyncio.sslproto
import inspect
import time
from threading import Thread

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.supercore.error import FlowerError
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.superexec import run_superexec
from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from flwr.superlink.config_loader import get_federation_manager, get_objectstore_linkstate_factories
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.main import create_app
from flwr.superlink.servicer.fleet import fleet_handlers
from starlette.middleware.base import BaseHTTPMiddleware
from uvicorn.protocols.http import h11_impl, httptools_impl

from fedpp.flower import bounded_superlink


def test_flower_bounds_no_transfers() -> None:
    """SuperLink has no middleware of its own that makes transfers wait, and sets none of uvicorn's limits."""
    assert extensions.get_middleware() == ()
    source = inspect.getsource(inspect.getmodule(flower_superlink) or flower_superlink)
    assert [word for word in ("limit_concurrency", "Semaphore", "CapacityLimiter") if word in source] == []


def test_flower_reads_far_ahead() -> None:
    """Neither uvicorn nor Flower bounds what TLS reads ahead on a connection: 256 KiB."""
    assert asyncio.sslproto.SSLProtocol.max_size == 256 * 1024 > bounded_superlink.READ_BYTES[0]
    assert "set_read_buffer_limits" not in inspect.getsource(h11_impl) + inspect.getsource(httptools_impl)


@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")  # flwr's alembic
def test_flower_keeps_request_bodies_in_cycles() -> None:
    """Its middlewares are Starlette's `BaseHTTPMiddleware`, whose exceptions keep a request in reference cycles."""
    kinds = [middleware.cls for middleware in create_app().user_middleware]
    assert any(isinstance(kind, type) and issubclass(kind, BaseHTTPMiddleware) for kind in kinds)


def test_flower_waits_shortly_for_its_database() -> None:
    """A lock is waited for 5 s, and each connection may cache 64 MB."""
    found = dict(SQLITE_PRAGMAS)
    assert [found[name] for name in bounded_superlink.PRAGMAS] == ["5000", "-64000", "268435456"]


@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")  # flwr's alembic
def test_superlink_refuses_a_restarted_node_as_it_refuses_a_stranger() -> None:
    """A node that is online cannot be activated again, and the error is that of a key which is not enrolled."""
    manager = get_federation_manager(is_simulation=False)
    state = get_objectstore_linkstate_factories(":flwr-in-memory:", manager)[1].state()
    state.create_node("owner", "owner", b"enrolled", 30.0)
    fleet_handlers.activate_node(ActivateNodeRequest(public_key=b"enrolled", heartbeat_interval=30.0), state)
    codes = []
    for key in (b"enrolled", b"stranger"):
        with pytest.raises(FlowerError) as failed:
            fleet_handlers.activate_node(ActivateNodeRequest(public_key=key, heartbeat_interval=30.0), state)
        codes.append(failed.value.code)
    assert codes[0] == codes[1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_unexpected_reply_ends_flowers_heartbeats() -> None:
    """The thread ends, and nothing else notices."""

    def fail() -> bool:
        raise RuntimeError

    sender = HeartbeatSender(fail)
    sender.start()
    thread = sender._thread
    assert isinstance(thread, Thread)
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("[SSL: UNEXPECTED_EOF_WHILE_READING]"),
        httpx.ConnectTimeout("_ssl.c:999: The handshake operation timed out"),
        httpx.HTTPStatusError("", request=httpx.Request("POST", "http://a"), response=httpx.Response(500)),
    ],
)
def test_flower_gives_up_on_passing_failures(failure: Exception) -> None:
    """It does not retry after a broken TLS handshake or after status 500."""
    tries = []

    def call() -> None:
        tries.append(time.monotonic())
        raise failure

    with pytest.raises(type(failure)):
        make_simple_http_retry_invoker().invoke(call)
    assert len(tries) == 1


def test_a_grid_waits_for_hours_for_a_reply_on_its_way() -> None:
    """`HttpGrid` has no time limit for a reply's objects but its own of two hours (coordinator/server/exchange.py)."""
    assert inspect.signature(inflatable_utils.pull_objects).parameters["max_time"].default == 2 * 60 * 60
    assert list(inspect.signature(HttpGrid.pull_messages).parameters) == ["self", "message_ids"]


def test_flower_runs_bundles_without_asking_the_site() -> None:
    """`flower-superexec` has one built-in plugin, and takes none from outside."""
    assert "plugin = AutoExecPlugin(" in inspect.getsource(run_superexec)
