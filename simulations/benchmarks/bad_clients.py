"""Three malicious clients of a vault's Unix socket: random bytes, a message of 1 GB, and silence.

`python -m simulations.benchmarks.bad_clients ADDRESS SECONDS` runs all three until SIGTERM. It prints `started` when
each has reached the vault, and at the end how often each has, as JSON. It exits with 1 if a client failed, or did not
reach the vault within SECONDS.
"""

import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import grpc

from fedpp.vault_api.vault_channel import SCHEME

GIGABYTE = 2**30
VAULT = "/fedpp.vault.v1.Vault/"
STREAMS = 16  # open and silent
SECONDS = 60.0  # of silence at most
_CHUNK = bytes(2**14)  # HTTP/2's largest frame, unless agreed otherwise


def _nothing() -> None:
    pass


def garbage(address: str, generator: Random, reached: Callable[[], None] = _nothing) -> None:
    """Connect and send random bytes, half of the time after HTTP/2's preface."""
    with _connected(address) as connection:
        reached()
        try:
            if generator.random() < 0.5:
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            for _ in range(generator.randrange(1, 20)):
                connection.sendall(generator.randbytes(generator.randrange(1, 4096)))
        except OSError:
            return


def announce_a_gigabyte(address: str, method: str = "Evaluate", reached: Callable[[], None] = _nothing) -> int:
    """Announce a message of 1 GB and send zeros until the vault stops it; return how many bytes were sent."""
    sent = 0
    with _connected(address) as connection:
        connection.settimeout(2.0)  # also ends a client whose window stays closed
        try:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))
            connection.sendall(_frame(1, 4, 1, _headers(VAULT + method)))
            connection.sendall(_frame(0, 0, 1, b"\0" + GIGABYTE.to_bytes(4, "big")))
            while sent < GIGABYTE:
                connection.sendall(_frame(0, 0, 1, _CHUNK))  # without regard to HTTP/2's window
                if not sent:
                    reached()
                sent += len(_CHUNK)
        except OSError:
            pass
    return sent


def silence(address: str, seconds: float = SECONDS, reached: Callable[[], None] = _nothing) -> list[grpc.StatusCode]:
    """Open streams to `Evaluate` and calls to `Info`, and send nothing; return the status of each."""
    over = threading.Event()

    def nothing() -> Iterator[Any]:
        over.wait(seconds)
        yield from ()

    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        calls: list[Any] = [
            channel.stream_unary(VAULT + ("Evaluate", "Info")[number % 2]).future(nothing(), timeout=seconds)
            for number in range(STREAMS)
        ]
        grpc.channel_ready_future(channel).result(seconds)
        reached()
        codes = [call.code() for call in calls]
    over.set()
    return codes


def _connected(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10.0)
    connection.connect(address.removeprefix(SCHEME))
    return connection


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """Return an HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def _headers(path: str) -> bytes:
    """Return the headers of a gRPC call as literals of HPACK (RFC 7541, section 6.2.2)."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    texts = [(name.encode(), value.encode()) for name, value in headers.items()]
    return b"".join(b"\0" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in texts)


class BadClients:
    """Threads of the three clients, and how often each reached the vault."""

    def __init__(self, address: str) -> None:
        self.rounds = {"garbage": 0, "gigabyte": 0, "silence": 0}
        self.failed = False
        self._started, self._over = threading.Event(), threading.Event()
        generator = Random(0)  # noqa: S311  nothing is kept secret by it
        self._start("garbage", lambda reached: garbage(address, generator, reached), 0.01)
        self._start("gigabyte", lambda reached: announce_a_gigabyte(address, reached=reached), 0.1)
        self._start("silence", lambda reached: silence(address, reached=reached), 0.1)

    def wait_for_start(self, seconds: float) -> bool:
        """Wait until each has reached the vault; return whether all have, and none has failed."""
        self._started.wait(seconds)
        return not self._over.is_set() and all(self.rounds.values())

    def wait(self) -> None:
        """Wait for `end`, or for a client that fails."""
        self._over.wait()

    def end(self) -> None:
        """End `wait` and `wait_for_start`."""
        self._over.set()
        self._started.set()

    def _start(self, name: str, task: Callable[[Callable[[], None]], object], pause: float) -> None:
        def reached() -> None:
            self.rounds[name] += 1
            if all(self.rounds.values()):
                self._started.set()

        def repeat() -> None:
            try:
                while True:
                    with suppress(OSError):  # a busy vault refuses the connection: no round
                        task(reached)
                    time.sleep(pause)
            finally:
                self.failed = True
                self.end()

        threading.Thread(target=repeat, daemon=True).start()


def _main(address: str, seconds: float) -> int:
    clients = BadClients(address)
    signal.signal(signal.SIGTERM, lambda *_: clients.end())
    if clients.wait_for_start(seconds):
        print("started", flush=True)
        clients.wait()
    print(json.dumps(clients.rounds), flush=True)
    return int(clients.failed or not all(clients.rounds.values()))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], float(sys.argv[2])))
