"""Relay between a site and the coordinator that can be cut without a sign to either: no packet passes."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK = 2**16


class Relay:
    """Relay of connections to a port of this machine; while it is cut, old and new connections hang."""

    def __init__(self, server: socket.socket, port: int) -> None:
        """Listen with this socket."""
        self._server, self._port = server, port
        self._open = threading.Event()
        self._open.set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Return the host and port that it listens on."""
        return f"127.0.0.1:{self._server.getsockname()[1]}"

    def cut(self, seconds: float) -> None:
        """Pass nothing for this many seconds."""
        self._open.clear()
        time.sleep(seconds)
        self._open.set()

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                caller, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        self._open.wait()
        with caller, suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as called:
            back = threading.Thread(target=self._pass, args=(called, caller), daemon=True)
            back.start()
            self._pass(caller, called)
            back.join()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(CHUNK):
                self._open.wait()
                target.sendall(content)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(port: int) -> Iterator[Relay]:
    """Run a relay to this port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Relay(server, port)
