"""nginx in front of SuperLink: requests of the sites' API pass, and no others."""

import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from deployment import COORDINATOR, NOBODY_ELSE, TWO_USERS, User, call, processes_of, serving
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from coordinator.__main__ import main
from coordinator.operator import proxy
from coordinator.operator.address import Address, address
from coordinator.operator.coordinator_certificates import Given, ensure
from fedpp.processes import ProcessGroup, alive, free_port

OTHER = User(20777, 20777) if TWO_USERS else NOBODY_ELSE
FLEET = "/v1/fleet/pull-messages"
OTHERS = (  # of SuperLink's API, and of its pages
    *("POST /v1/control/list-runs", "POST /v1/control/start-run", "POST /v1/control/register-node"),
    *("POST /v1/runtime/get-nodes", "POST /v1/runtime/acquire-task"),
    *("GET /health", "GET /docs", "GET /openapi.json", "GET /"),
)
TRICKS = (
    *("POST /v1/fleet/../control/list-runs", "POST /v1/fleet/%2e%2e/control/list-runs"),
    *("POST /v1/fleet/..%2fcontrol/list-runs", "POST /v1/fleet/%2e%2e%2fcontrol%2flist-runs"),
    *("POST /v1/control/../fleet/pull-messages", "POST /v1/./fleet/pull-messages", "POST /v1/fleet/./pull-messages"),
    *("POST //v1/fleet/pull-messages", "POST /v1//fleet/pull-messages", "POST /v1/fleet//pull-messages"),
    *("POST /v1/control/list-runs?/v1/fleet/pull-messages", "POST /v1/control/list-runs#/v1/fleet/pull-messages"),
    *(f"POST {FLEET}/", f"POST {FLEET}?x=1", f"POST {FLEET};x", f"POST {FLEET}%20", f"POST {FLEET}%0a"),
    *("POST /v1/%66leet/pull-messages", "POST /V1/FLEET/pull-messages", "POST /v1/fleet/", "POST /v1/fleet"),
    *(f"POST /x{FLEET}", f"POST {FLEET}\\..\\..\\control", "POST /../../v1/fleet/pull-messages"),
    *(f"{method} {FLEET}" for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "POSTS")),
    *("CONNECT 127.0.0.1:443", f"GET http://127.0.0.1{FLEET}", "* /", f"POST {'/a' * 1_000}"),
)


@dataclass(frozen=True)
class Served:
    """A coordinator behind its proxy."""

    state: Path
    inside: int  # SuperLink's port
    outside: int  # nginx's

    @property
    def ca(self) -> Path:
        return self.state / "tls" / "ca.pem"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Run a coordinator, as a user of its own if possible, in a folder whose name nginx would misread unquoted."""
    with tempfile.TemporaryDirectory(prefix="fedpp-") as name:
        folder = Path(name)  # pytest's own folders are closed to other users
        folder.chmod(0o755)
        (folder / 'it\'s "the" $state; {').mkdir()
        OTHER.own(folder / 'it\'s "the" $state; {')
        served = Served(folder / 'it\'s "the" $state; {' / "state", free_port(), free_port())
        up = [*COORDINATOR, "up", "--state", str(served.state), "--port", str(served.inside)]
        listen = ["--listen", f"127.0.0.1:{served.outside}", "--name", "hub.example"]
        with serving(folder / "log", [*up, *listen], "coordinator ready at", user=OTHER):
            assert f"ready at 127.0.0.1:{served.outside}, CA certificate {served.ca}\n" in (folder / "log").read_text()
            yield served


def status(port: int, ca: Path, request: str, more: str = "") -> int:
    """Send a request line unchanged, and return the status of the reply."""
    context = ssl.create_default_context(cafile=ca)
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(f"{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n".encode())
        return int(connection.makefile("rb").readline().split()[1])


@pytest.mark.parametrize("request_line", [*OTHERS, *TRICKS])
def test_everything_but_the_sites_api_is_forbidden(served: Served, request_line: str) -> None:
    """Other APIs of SuperLink, other methods, and other spellings of a path get 403 from the proxy."""
    assert status(served.outside, served.ca, request_line) == 403


def test_forbidden_requests_are_answered_on_loopback(served: Served) -> None:
    """On loopback the same requests reach SuperLink, and the sites' API also answers through the proxy."""
    inside = {status(served.inside, served.ca, request) for request in OTHERS}
    assert inside == {200, 404, 415}  # pages; there is no /; a type of content is missing
    assert (
        status(served.outside, served.ca, f"POST {FLEET}") == status(served.inside, served.ca, f"POST {FLEET}") == 415
    )


def test_malformed_requests_are_forbidden(served: Served) -> None:
    """Requests that nginx itself rejects get 403, too: invalid headers, and plain HTTP."""
    for more in ("Host: y\r\n", "Content-Length: x\r\n"):
        assert status(served.outside, served.ca, f"POST {FLEET}", more) == 403
    with socket.create_connection(("127.0.0.1", served.outside)) as plain:
        plain.sendall(f"POST {FLEET} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert plain.makefile("rb").readline() == b"HTTP/1.1 403 Forbidden\r\n"


@contextmanager
def node(served: Served, key: ec.EllipticCurvePrivateKey, port: int) -> Iterator[FleetHttpClient]:
    """Yield Flower's client of the Fleet API, as a SuperNode with this key uses it."""
    signing = NodeAuthHttpInterceptor(key, key.public_key())
    with FleetHttpClient.from_server_address(
        f"127.0.0.1:{port}",
        insecure=False,
        root_certificates=served.ca.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperNode"), signing],
    ) as client:
        yield client


def test_an_enrolled_node_connects_through_the_proxy(served: Served, tmp_path: Path) -> None:
    """A key that is not enrolled is refused; an enrolled one connects, and its objects pass."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = public_key_to_bytes(key.public_key())
    activation = ActivateNodeRequest(public_key=public, heartbeat_interval=30)
    (tmp_path / "node.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    with node(served, key, served.outside) as client:
        for turned_away in (
            lambda: client.ActivateNode(activation),
            lambda: client.RegisterNode(RegisterNodeFleetRequest(public_key=public)),  # by itself
            lambda: client.ActivateNode(activation),
        ):
            with pytest.raises(httpx.HTTPStatusError) as raised:
                turned_away()
            assert raised.value.response.status_code not in {200, 502}
            assert "json" in raised.value.response.headers["content-type"]  # SuperLink's reply, not nginx's

        call([*COORDINATOR, "enrol", "--state", str(served.state), str(tmp_path / "node.pub"), "A"])
        me = Node(node_id=client.ActivateNode(activation).node_id)
        for _ in range(3):  # on one connection
            assert list(client.PullMessages(PullMessagesRequest(node=me)).messages_list) == []
        largest = PushObjectRequest(
            node=me, run_id=1, session_id="none", object_id="0" * 64, object_content=b"x" * 2**23
        )
        with pytest.raises(httpx.HTTPStatusError) as raised:
            client.PushObject(largest)
        assert raised.value.response.status_code not in {413, 502}
        assert "json" in raised.value.response.headers["content-type"]
        with pytest.raises(httpx.HTTPStatusError, match="413"):
            client.PushObject(PushObjectRequest(node=me, object_content=b"x" * 2**24))
    nginx = served.state / "proxy"
    assert {path.name for path in nginx.iterdir() if path.is_dir()} == {
        f"temp-{kind}" for kind in ("body", "proxy", "fastcgi", "uwsgi", "scgi")
    }
    assert [path for path in nginx.glob("temp-*/**/*") if path.is_file()] == []


def test_nginx_opens_files_of_its_folder_only(served: Served) -> None:
    """It runs without root's rights, and opens only files in the state folder."""
    (superlink,) = processes_of(served.state, "bin/flower-superlink")
    programs = [Path(f"/proc/{process}") for process in alive(os.getpgid(superlink))]
    nginx = [program for program in programs if (program / "cmdline").read_bytes().startswith(b"nginx: ")]
    assert len(nginx) == 3  # a master and two workers
    if TWO_USERS:
        assert {program.stat().st_uid for program in nginx} == {OTHER.uid}
    opened = {str(file.readlink()) for program in nginx for file in (program / "fd").iterdir()}
    beside = (str(served.state.parents[1]), "/dev/")
    assert [name for name in opened if name.startswith("/") and not name.startswith(beside)] == []


def test_up_without_nginx_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without nginx, one line says so before any file is created."""
    monkeypatch.setattr(proxy, "PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["up", "--state", str(tmp_path / "state"), "--listen", f"127.0.0.1:{free_port()}"]) == 1
    assert capsys.readouterr().err == (
        "coordinator up: --listen needs nginx, which is not installed: install it (on Debian, apt-get install "
        "nginx-light)\n"
    )
    assert list(tmp_path.iterdir()) == []


@contextmanager
def upstream(certificate: Path, key: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Run a TLS server that replies 204 to every request; yield its port and the requests."""
    context, received = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), []
    context.load_cert_chain(certificate, key)

    def reply(server: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                plain, _ = server.accept()
                with suppress(ssl.SSLError), context.wrap_socket(plain, server_side=True) as connection:
                    if content := connection.recv(2**16):  # a client that does not trust us just disconnects
                        received.append(content)
                    connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=reply, args=(server,), daemon=True).start()
        yield server.getsockname()[1], received


def test_requests_are_passed_to_our_superlink_only(tmp_path: Path) -> None:
    """Nginx verifies SuperLink under our CA, and passes the request without a site's claims about its address."""
    ours, others = ensure(tmp_path / "ours", []), ensure(tmp_path / "others", [])
    passed = {}
    for name, files in (("ours", ours), ("others", others)):
        listen = Address("127.0.0.1", free_port())
        with upstream(files.server, files.server_key) as (port, received), ProcessGroup({}) as group:
            shown = Given(ours.server, ours.server_key)
            to = Address("127.0.0.1", port)
            group.start(
                proxy.command(proxy.program(), tmp_path / "proxy", listen=listen, upstream=to, shown=shown, ca=ours.ca)
            )
            wait_for_port(listen.port)
            forged = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\n"
            passed[name] = status(listen.port, ours.ca, f"POST {FLEET}", forged), [r.splitlines() for r in received]
    assert passed == {
        "ours": (204, [[f"POST {FLEET} HTTP/1.1".encode(), b"Host: localhost", b""]]),
        "others": (502, []),
    }


def wait_for_port(port: int) -> None:
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        threading.Event().wait(0.05)
    raise AssertionError(port)


@pytest.mark.parametrize(
    "text",
    ["8443", "hub:", ":8443", "hub:0", "hub:65536", "a;b:1", "::1:8443", "[1.2.3.4]:1", "hub:1 ", "-a:1", "hub:٣"],
)
def test_an_invalid_address_is_wrong_usage(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused in one line, with status 2; only a host and a port reach the configuration."""
    with pytest.raises(SystemExit, match="2"):
        main(["up", "--state", str(tmp_path / "state"), f"--listen={text}"])
    assert "must be HOST:PORT" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_addresses() -> None:
    """An address is printed as it was given; all addresses of a machine are reached on its loopback."""
    for text, reached in (
        ("hub.example:443", ("hub.example", 443)),
        ("0.0.0.0:8443", ("127.0.0.1", 8443)),
        ("[::]:8443", ("::1", 8443)),
        ("[2001:db8::1]:8443", ("2001:db8::1", 8443)),
    ):
        assert str(address(text)) == text
        assert address(text).from_here() == reached
