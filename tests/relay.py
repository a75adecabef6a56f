"""A TLS relay that keeps what passes in clear: who owns a coordinator's keys can read what its sites send."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CHUNK = 2**16


class Recording:
    """All bytes that passed, in either direction, each connection by itself."""

    def __init__(self) -> None:
        self._streams: list[bytearray] = []

    def stream(self) -> bytearray:
        """Return a new stream to be written to."""
        self._streams.append(bytearray())
        return self._streams[-1]

    def content(self) -> bytes:
        """Return everything so far."""
        return b"\n".join(map(bytes, self._streams))


@contextmanager
def recorded(upstream: int, tls: Path) -> Iterator[tuple[int, Recording]]:
    """Relay a new port of this machine to another, with a coordinator's certificates; yield it and what passes."""
    recording, ours, theirs = Recording(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), None
    ours.load_cert_chain(tls / "server.pem", tls / "server.key")
    theirs = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_accept, args=(server, upstream, ours, theirs, recording), daemon=True)
        thread.start()
        yield server.getsockname()[1], recording


def _accept(
    server: socket.socket, upstream: int, ours: ssl.SSLContext, theirs: ssl.SSLContext, recording: Recording
) -> None:
    with suppress(OSError):  # closed: the relay ends
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_relay, args=(connection, upstream, ours, theirs, recording), daemon=True).start()


def _relay(
    connection: socket.socket, upstream: int, ours: ssl.SSLContext, theirs: ssl.SSLContext, recording: Recording
) -> None:
    with (
        suppress(OSError),
        connection,
        ours.wrap_socket(connection, server_side=True) as near,
        socket.create_connection(("127.0.0.1", upstream)) as plain,
        theirs.wrap_socket(plain, server_hostname="127.0.0.1") as far,
    ):
        back = threading.Thread(target=_pump, args=(far, near, recording.stream()), daemon=True)
        back.start()
        _pump(near, far, recording.stream())
        back.join()


def _pump(source: ssl.SSLSocket, target: ssl.SSLSocket, kept: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(CHUNK):
            kept += data
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
