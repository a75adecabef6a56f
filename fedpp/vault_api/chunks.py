"""Arrays as streams of chunks, far below gRPC's limit of 4 MiB a message."""

from collections.abc import Iterable, Iterator
from math import prod

import numpy as np
from numpy.typing import NDArray

from fedpp.config.hyperparameters import DTYPES
from fedpp.errors import VaultError
from fedpp.vault_api import vault_pb2

CHUNK_BYTES = 2**20
MAX_BYTES = 2**32  # of one array


def to_chunks(name: str, array: NDArray[np.floating]) -> Iterator[vault_pb2.ArrayChunk]:
    """Yield a header and the data of an array of dtype float32 or float64."""
    content = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    yield vault_pb2.ArrayChunk(name=name, dtype=str(array.dtype), shape=array.shape)
    data = content.tobytes()
    for start in range(0, len(data), CHUNK_BYTES):
        yield vault_pb2.ArrayChunk(data=data[start : start + CHUNK_BYTES])


def from_chunks(chunks: Iterable[vault_pb2.ArrayChunk]) -> Iterator[tuple[str, NDArray[np.floating]]]:
    """Yield name and array for each header with its data; raise `VaultError` where they do not fit."""
    header: vault_pb2.ArrayChunk | None = None
    data = bytearray()
    for chunk in chunks:
        if chunk.name:
            if header is not None:
                yield _array(header, data)
            header, data = _header(chunk), bytearray()
        data += chunk.data
        if header is None:
            raise VaultError(f"{len(data)} bytes of an array came before its name: use one fedpp everywhere")
        if len(data) > _bytes(header):
            raise _unfit(header, "more")
    if header is not None:
        yield _array(header, data)


def _header(chunk: vault_pb2.ArrayChunk) -> vault_pb2.ArrayChunk:
    if chunk.dtype not in DTYPES or _bytes(chunk) > MAX_BYTES:
        raise VaultError(
            f"an array is of {' or '.join(DTYPES)} and at most {MAX_BYTES} bytes, got {chunk.name!r:.40} of "
            f"{chunk.dtype!r:.40} and shape {list(chunk.shape)!r:.80}: use one fedpp everywhere"
        )
    return chunk


def _bytes(header: vault_pb2.ArrayChunk) -> int:
    return prod(header.shape, start=np.dtype(header.dtype).itemsize)


def _array(header: vault_pb2.ArrayChunk, data: bytearray) -> tuple[str, NDArray[np.floating]]:
    if len(data) != _bytes(header):
        raise _unfit(header, "fewer")
    dtype = np.dtype(header.dtype)
    return header.name, np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(header.shape)


def _unfit(header: vault_pb2.ArrayChunk, got: str) -> VaultError:
    return VaultError(
        f"array {header.name!r:.40} of {header.dtype} and shape {list(header.shape)!r:.80} has {_bytes(header)} bytes, "
        f"got {got}: use one fedpp everywhere"
    )
