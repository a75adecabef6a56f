"""Health service of gRPC (grpc.health.v1), for systemd and monitoring; everyone who can connect may call it.

`Watch` is not served, since its streams stay open.
"""

from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedpp.errors import VaultError
from fedpp.vault_api.vault_channel import channel_to

SERVICES = ("", "fedpp.vault.v1.Vault")
SECONDS = 10.0


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no stubs
    """Reports whether the vault can reply."""

    def __init__(self, healthy: Callable[[], bool]) -> None:
        self._healthy = healthy

    def Check(  # noqa: N802  gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Reply SERVING or NOT_SERVING."""
        if request.service not in SERVICES:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r:.80} here")
        kinds = health_pb2.HealthCheckResponse
        return kinds(status=kinds.SERVING if self._healthy() else kinds.NOT_SERVING)


def require_health(address: str, tls: Path | None = None) -> None:
    """Query a vault's health; raise `VaultError` unless it serves."""
    with channel_to(address, tls) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        except grpc.RpcError as error:
            raise VaultError(f"no healthy vault at {address}: {error.code().name}; see its log") from None
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise VaultError(f"the vault at {address} runs and cannot answer: its log says why")
