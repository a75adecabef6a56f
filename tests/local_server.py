"""HTTP server of a test, on this machine: a handler's replies, with TLS if a folder of certificates is given."""

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class Handler(BaseHTTPRequestHandler):
    """Handler that logs nothing, and responds to GET and POST alike."""

    def respond(self) -> None:
        """Reply to the request."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.respond()

    def do_POST(self) -> None:
        self.respond()

    def reply(self, status: int, content: bytes = b"", headers: Mapping[str, str] = {}) -> None:
        """Send a whole reply."""
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep a request to itself."""


@contextmanager
def replying(handler: type[Handler], tls: Path | None = None) -> Iterator[int]:
    """Serve requests, each in a thread of its own, until the end of the block; yield the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(tls / "server.pem", tls / "server.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # a client that trusts another authority, or is killed meanwhile
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_port
        server.shutdown()
