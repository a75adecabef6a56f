"""Connection to a vault, on which its client's calls are made: each failure is a `VaultError` of one line."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from fedpp.errors import VaultError
from fedpp.texts import one_line
from fedpp.vault_api import chunks
from fedpp.vault_api.vault_channel import SCHEME, channel_to

T = TypeVar("T")
EncodedUpdate = NDArray[np.unsignedinteger[Any]]  # little-endian, of 32 or 64 bits, one axis

TRANSFER_SECONDS = 600.0  # timeout of a call with arrays
CONNECT_SECONDS = 5.0
HEALTH = "/grpc.health.v1.Health/Check"  # not logged by the vault; any reply shows that one is there
CLAIMS = "fedpp-claims"  # metadata: user and process number that a caller states, which nobody checks


class VaultConnection:
    """An open channel to the vault at one address."""

    def __init__(self, address: str, tls: Path | None = None) -> None:
        """Prepare a connection to `unix:PATH`, or to `HOST:PORT` with a folder of certificates (`vault_channel`)."""
        self._address = address
        self._channel = channel_to(address, tls)
        self._claims = ((CLAIMS, f"uid {os.getuid()} pid {os.getpid()}"),)

    def __enter__(self) -> Self:
        # Not grpc.channel_ready_future: the channel's end would wait 0.2 s for it, at each connection.
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(HEALTH)
        try:
            check(b"", timeout=CONNECT_SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                self._channel.close()
                raise VaultError(
                    f"no vault answers at {self._address}: start it with `fedpp-site vault`, or check the address, "
                    f"such as unix:/absolute/path.sock{_other_users(self._address)}"
                ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def _reply(self, method: Callable[..., T], request: object, seconds: float | None = None) -> T:
        timeout = TRANSFER_SECONDS if seconds is None else seconds
        try:
            return method(request, timeout=timeout, metadata=self._claims)
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def _replies(self, method: Callable[..., Iterable[T]], request: object) -> Iterator[T]:
        try:
            yield from method(request, timeout=TRANSFER_SECONDS, metadata=self._claims)
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def _failure(self, error: grpc.RpcError) -> VaultError:
        code, details = error.code(), one_line(error.details() or "")
        reasons = {
            grpc.StatusCode.UNAVAILABLE: "went away: start it again with `fedpp-site vault`",
            grpc.StatusCode.CANCELLED: "ended the call: it was stopped, or waited too long; see its log",
            grpc.StatusCode.DEADLINE_EXCEEDED: "did not answer in time: see its log",
        }
        return VaultError(f"the vault at {self._address} {reasons.get(code, f'refused: {details or code.name}')}")


def _other_users(address: str) -> str:
    """Return what else may be wrong where a socket is: a vault closes the connections of users it does not admit."""
    if not (address.startswith(SCHEME) and Path(address.removeprefix(SCHEME)).is_socket()):
        return ""
    return f"; a vault that runs there may not admit user {os.getuid()}: see its --allow-user"


class ReceivedUpdate:
    """An encoded update of a known size and type, received as a stream of bytes."""

    def __init__(self, like: EncodedUpdate) -> None:
        self._values, self._bytes = np.empty_like(like), 0

    def take(self, data: bytes) -> None:
        """Add the next bytes; raise `VaultError` for more than the size."""
        view = self._values.view(np.uint8)
        if self._bytes + len(data) > view.size:
            raise VaultError("the vault sent more values than requested: use one fedpp everywhere")
        view[self._bytes : self._bytes + len(data)] = np.frombuffer(data, np.uint8)
        self._bytes += len(data)

    def complete(self) -> EncodedUpdate:
        """Return the update; raise `VaultError` if bytes are missing."""
        if self._bytes != self._values.nbytes:
            raise VaultError("the vault sent fewer values than requested: see its log")
        return self._values


def blocks(values: EncodedUpdate) -> Iterator[bytes]:
    """Yield the bytes of an encoded update in chunks."""
    step = chunks.CHUNK_BYTES // values.itemsize
    for start in range(0, values.size, step):
        yield values[start : start + step].tobytes()


def pieces(content: bytes) -> Iterator[bytes]:
    """Yield bytes in chunks."""
    for start in range(0, len(content), chunks.CHUNK_BYTES):
        yield content[start : start + chunks.CHUNK_BYTES]
