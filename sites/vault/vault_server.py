"""Server of the vault, the only process of a hospital that holds the domain secret while it replies to the trainer.

`vault_service` and `vault_runs` have its methods, `vault_address` decides who can connect, and `call_guard` keeps
callers from blocking each other. Whoever can connect can read the data (docs/explanation/threats.md). No
TensorFlow is loaded here.
"""

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health_pb2_grpc

from fedpp.vault_api import vault_pb2_grpc
from fedpp.vault_api.vault_channel import MAX_MESSAGE_BYTES, TlsFiles

from .call_guard import IDLE_SECONDS, MAX_CALLS, CallGuard
from .peer_check import MAX_CONNECTIONS
from .vault_address import listening
from .vault_health import HealthService
from .vault_service import VaultService

GRACE_SECONDS = 5.0
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a second vault on the same TCP port is refused, in place of sharing its callers
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
)


def serve(
    service: VaultService,
    address: str,
    *,
    tls: TlsFiles | None = None,
    users: frozenset[int] = frozenset(),
    idle_seconds: float = IDLE_SECONDS,
    ready: Callable[[], None] = lambda: None,
    stopping: Callable[[], None] = lambda: None,
    stop: threading.Event | None = None,
) -> None:
    """Serve at `unix:PATH`, or with `tls` at `HOST:PORT`, until `stop`, SIGTERM or SIGINT; remove the socket then.

    `users` are the numbers of those who may connect to the socket beside this user; without them, its group may.
    """
    stopped = stop or threading.Event()
    if stop is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
    guard = CallGuard(idle_seconds)
    try:
        server = grpc.server(
            ThreadPoolExecutor(MAX_CALLS, "vault"),
            interceptors=[guard],
            options=(
                *OPTIONS,
                ("grpc.server_handshake_timeout_ms", int(1000 * idle_seconds)),
                ("grpc.max_connection_idle_ms", int(3000 * idle_seconds)),  # without a call: clients connect again
            ),
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        vault_pb2_grpc.add_VaultServicer_to_server(service, server)
        if service.runs is not None:
            vault_pb2_grpc.add_MaskedRunsServicer_to_server(service.runs, server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthService(lambda: service.healthy), server)
        with listening(server, address, tls, users, service.refused) as release:
            server.start()
            try:
                ready()
                stopped.wait()
                stopping()
            finally:  # the socket first: after the running calls it may be the next vault's
                release()
                server.stop(GRACE_SECONDS).wait()
    finally:
        guard.close()
