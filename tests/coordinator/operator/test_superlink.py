"""Commands `up` and `enrol` of the coordinator: refusals, stops, and files that are kept."""

import signal
import socket
import ssl
import stat
import sys
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from deployment import COORDINATOR, processes_of, serving

from coordinator.__main__ import main
from coordinator.operator import coordinator_certificates
from coordinator.operator.coordinator_certificates import Certificates, Given, ensure, names_of
from coordinator.operator.superlink import State
from fedpp.errors import ConfigError, FederationError, KeyFileError
from fedpp.processes import free_port
from fedpp.protocol.coordinator_identity import CoordinatorIdentity, CoordinatorNames


def names(files: Certificates) -> set[str]:
    certificate = x509.load_pem_x509_certificate(files.server.read_bytes())
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return {str(name.value) for name in extension.value}


def up(state: Path, port: int, *more: str) -> list[str]:
    return [*COORDINATOR, "up", "--state", str(state), "--port", str(port), *more]


def fails(*arguments: str | Path) -> str:
    """Run a coordinator's command that must fail; return its one line."""
    stdout, stderr = StringIO(), StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        status = main([str(argument) for argument in arguments])
    assert (status, stdout.getvalue()) == (1, "")
    (line,) = stderr.getvalue().splitlines()
    return line


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> Path:
    path.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return path


def test_certificates_are_kept_and_take_new_names(tmp_path: Path) -> None:
    """Certificates are made once; a new host name changes the server's certificate alone."""
    first = ensure(tmp_path / "tls", ["hub.example", "192.0.2.7"])
    content = {file.name: file.read_bytes() for file in first.folder.iterdir()}
    assert names(first) == {"localhost", "127.0.0.1", "hub.example", "192.0.2.7"}

    assert ensure(tmp_path / "tls", ["hub.example"]) == first
    assert {file.name: file.read_bytes() for file in first.folder.iterdir()} == content

    ensure(tmp_path / "tls", ["other.example"])
    assert names(first) == {"localhost", "127.0.0.1", "hub.example", "192.0.2.7", "other.example"}
    changed = {name for name in content if (first.folder / name).read_bytes() != content[name]}
    assert changed == {"server.pem"}


def test_renewal_keeps_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that ends soon is issued anew for all its names, asked for again or not."""
    monkeypatch.setattr(coordinator_certificates, "SERVER_VALIDITY", timedelta(days=29))
    files = ensure(tmp_path / "tls", ["hub.example"])
    monkeypatch.undo()
    old = files.server.read_bytes()
    ensure(tmp_path / "tls", [])
    assert names(files) == {"localhost", "127.0.0.1", "hub.example"}
    renewed = x509.load_pem_x509_certificate(files.server.read_bytes())
    assert renewed.not_valid_after_utc - datetime.now(UTC) > coordinator_certificates.RENEWAL
    assert files.server.read_bytes() != old


def test_private_keys_are_private(tmp_path: Path) -> None:
    """Both private keys have mode 0600, whatever the umask."""
    files = ensure(tmp_path / "tls", [])
    for key in (files.ca_key, files.server_key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_damaged_certificates_are_refused(tmp_path: Path) -> None:
    """A damaged authority is never replaced in silence: sites would stop trusting the coordinator."""
    files = ensure(tmp_path / "tls", [])
    files.ca.write_text("damaged")
    with pytest.raises(KeyFileError, match="restore them"):
        ensure(tmp_path / "tls", ["other.example"])
    assert files.ca.read_text() == "damaged"


def test_a_name_that_no_certificate_holds_is_refused(tmp_path: Path) -> None:
    """A host name that is not ASCII is refused before anything is written."""
    with pytest.raises(ConfigError, match="höst"):
        ensure(tmp_path / "tls", ["höst"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_up_serves_tls_and_ends_completely(tmp_path: Path, number: signal.Signals) -> None:
    """SuperLink answers under our CA only; a signal ends it and all its children, status 0.

    The process named `flower-superlink` is the bounded one, and its messages are in the log file alone.
    """
    port, log = free_port(), tmp_path / "log"
    with serving(log, up(tmp_path / "state", port, "--name", "hub.example"), "ready", number):
        (line,) = [line for line in log.read_text().splitlines() if "ready" in line]
        ca = tmp_path / "state" / "tls" / "ca.pem"
        assert line == f"coordinator ready at 127.0.0.1:{port}, CA certificate {ca}"
        assert "note: without --listen HOST:PORT only this machine can reach" in log.read_text()
        (superlink,) = processes_of(tmp_path, "bin/flower-superlink")
        command = Path(f"/proc/{superlink}/cmdline").read_text().split("\0")
        flower = str(Path(sys.executable).with_name("flower-superlink"))
        assert command[1:5] == ["-m", "fedpp.flower.bounded_superlink", flower, "--host"]
        assert "Starting the SuperLink" in (tmp_path / "state" / "servers.log").read_text()
        assert "SuperLink Runtime" not in log.read_text()
        for name in ("localhost", "127.0.0.1", "hub.example"):
            context = ssl.create_default_context(cafile=ca)
            with socket.create_connection(("127.0.0.1", port)) as plain:
                context.wrap_socket(plain, server_hostname=name).close()
        with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
        line = fails("up", "--state", tmp_path / "state", "--port", str(free_port()))
        assert line == (
            f"coordinator up: a coordinator runs with {tmp_path / 'state'} already: stop it, or use another --state"
        )
    assert processes_of(tmp_path) == {}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_port_in_use(tmp_path: Path) -> None:
    """A port in use is named in one line, and no incomplete state is left."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = fails("up", "--state", tmp_path / "state", "--port", str(port))
    assert line.startswith(f"coordinator up: cannot listen on 127.0.0.1:{port}")
    assert line.endswith("choose another --port or --listen")
    assert not (tmp_path / "state" / "tls").exists()


def test_the_same_port_twice(tmp_path: Path) -> None:
    """SuperLink and nginx cannot have one port, not even where nginx would listen on all addresses."""
    port = free_port()
    line = fails("up", "--state", tmp_path / "state", "--port", str(port), "--listen", f"0.0.0.0:{port}")
    assert line.startswith(f"coordinator up: cannot listen on 0.0.0.0:{port}")


def self_signed(folder: Path, *, until: timedelta = timedelta(days=1), password: bytes | None = None) -> Given:
    """Make a self-signed server certificate, valid from two hours ago."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "given")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=2))
        .not_valid_after(now + until)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hub.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    given = Given(folder / "given $certificate.pem", folder / "given key.pem")
    folder.mkdir(exist_ok=True)
    given.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    how = BestAvailableEncryption(password) if password else NoEncryption()
    given.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    return given


def test_sites_see_the_given_certificate(tmp_path: Path) -> None:
    """Nginx uses it, and the sites' API of SuperLink, whose own certificate is still ours, answers behind it."""
    given, port, listen = self_signed(tmp_path / "given"), free_port(), free_port()
    outside = ("--listen", f"127.0.0.1:{listen}", "--certificate", given.certificate, "--certificate-key", given.key)
    with serving(tmp_path / "log", up(tmp_path / "state", port, *map(str, outside)), "ready"):
        line = f"coordinator ready at 127.0.0.1:{listen}, certificate {given.certificate}\n"
        assert line in (tmp_path / "log").read_text()
        assert "only this machine" not in (tmp_path / "log").read_text()
        names = CoordinatorNames.from_json(State(tmp_path / "state").coordinator())
        names.require("East", identity(given.certificate, "hub.example"))
        for number, authority, name in (
            (listen, given.certificate, "hub.example"),
            (port, tmp_path / "state" / "tls" / "ca.pem", "localhost"),
        ):
            context = ssl.create_default_context(cafile=authority)
            with (
                socket.create_connection(("127.0.0.1", number)) as plain,
                context.wrap_socket(plain, server_hostname=name) as connection,
            ):
                connection.sendall(b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
                assert connection.recv(12) == b"HTTP/1.1 415"  # SuperLink's: no content of Flower's


def identity(authority: Path, host: str) -> CoordinatorIdentity:
    """Return the coordinator that a site knows by this CA certificate and name."""
    return CoordinatorIdentity.of_certificate(x509.load_pem_x509_certificate(authority.read_bytes()), host)


def test_a_coordinator_knows_the_names_that_its_sites_use(tmp_path: Path) -> None:
    """Its names are those of the certificate that sites see, under its own authority or one of the given chain."""
    files, given = ensure(tmp_path / "tls", ["Hub.example", "192.0.2.7"]), self_signed(tmp_path / "given")
    own, others = names_of(files, None), names_of(files, given)
    for name in ("hub.example", "192.0.2.7", "localhost", "127.0.0.1"):
        own.require("East", identity(files.ca, name))
    others.require("East", identity(given.certificate, "hub.example"))
    for names, authority, name in (
        (own, files.ca, "else.example"),
        (own, ensure(tmp_path / "other", []).ca, "hub.example"),
        (own, given.certificate, "hub.example"),
        (others, given.certificate, "192.0.2.7"),
    ):
        with pytest.raises(FederationError, match="East knows the coordinator as"):
            names.require("East", identity(authority, name))


def test_a_state_of_an_older_up_needs_a_start(tmp_path: Path) -> None:
    """A state without names was written before they were: `up` must be started anew, which is said in one line."""
    state = State(tmp_path)
    state.connection.parent.mkdir()
    state.connection.touch()
    with pytest.raises(FederationError, match=r"names.json is missing: stop `up`, and start it again$"):
        state.coordinator()


@pytest.mark.parametrize("wrong", ["missing", "no certificate", "no key", "encrypted", "another key", "expired"])
def test_an_unusable_given_certificate_is_refused(tmp_path: Path, wrong: str) -> None:
    """It is named in one line before any file is created."""
    until = timedelta(hours=-1 if wrong == "expired" else 1)
    given = self_signed(tmp_path / "given", until=until, password=b"secret" if wrong == "encrypted" else None)
    certificate, key = given.certificate, given.key
    if wrong == "missing":
        certificate, expected = (
            tmp_path / "none.pem",
            f"cannot read a certificate from {tmp_path / 'none.pem'}: No such",
        )
    elif wrong == "no certificate":
        certificate, expected = key, f"cannot read a certificate from {key}: "
    elif wrong == "no key":
        key, expected = certificate, f"cannot read a private key from {certificate}: "
    elif wrong == "encrypted":
        expected = f"cannot read a private key from {key}: Password was not given but private key is encrypted"
    elif wrong == "another key":
        key = self_signed(tmp_path / "other").key
        expected = f"the private key {key} is not that of {certificate}: its first certificate"
    else:
        expected = f"the certificate {certificate} is valid from 20"
    outside = ("--listen", f"127.0.0.1:{free_port()}", "--certificate", certificate, "--certificate-key", key)
    assert fails("up", "--state", tmp_path / "state", *outside).startswith(f"coordinator up: {expected}")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--certificate", "c.pem"), "--certificate and --certificate-key belong together: give both"),
        (("--certificate-key", "k.pem"), "--certificate and --certificate-key belong together: give both"),
        (("--certificate", "c.pem", "--certificate-key", "k.pem"), "--certificate is what sites see: give --listen"),
        (
            ("--certificate", "c.pem", "--certificate-key", "k.pem", "--listen", "127.0.0.1:1", "--name", "hub"),
            "--name is for the certificate that is made here: leave it out with --certificate",
        ),
    ],
)
def test_certificate_options_that_do_not_fit_together(
    tmp_path: Path, arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that requires another says so, and no file is created."""
    assert main(["up", "--state", str(tmp_path / "state"), *arguments]) == 1
    assert f"coordinator up: {expected}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "80 "])
def test_an_invalid_port_is_wrong_usage(tmp_path: Path, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused in one line, with status 2."""
    with pytest.raises(SystemExit, match="2"):
        main(["up", "--state", str(tmp_path / "state"), f"--port={port}"])
    assert "must be a port from 1 to 65535" in capsys.readouterr().err


def test_enrol_needs_a_superlink(tmp_path: Path) -> None:
    """`enrol` says whether there is no coordinator in the folder, or it does not answer at the moment."""
    key = write_key(tmp_path / "node.pub", ec.generate_private_key(ec.SECP384R1()))
    state = tmp_path / "state"
    assert "is no coordinator's state" in fails("enrol", "--state", state, key, "a")
    ca = ensure(state / "tls", []).ca
    (state / "flwr").mkdir()
    (state / "flwr" / "config.toml").write_text(
        f'[superlink.fedpp]\naddress = "127.0.0.1:{free_port()}"\nroot-certificates = "{ca}"\n'
    )
    line = fails("enrol", "--state", state, key, "a")
    assert line == (
        f"coordinator enrol: no SuperLink answers: start one with `python -m coordinator up --state {state}`"
    )


@pytest.mark.parametrize("kind", ["ed25519", "P-256", "text", "missing"])
def test_enrol_refuses_other_keys(tmp_path: Path, kind: str) -> None:
    """Only an ECDSA P-384 public key in SSH format is enrolled."""
    path = tmp_path / "node.pub"
    if kind == "ed25519":
        write_key(path, ed25519.Ed25519PrivateKey.generate())
    elif kind == "P-256":
        write_key(path, ec.generate_private_key(ec.SECP256R1()))
    elif kind == "text":
        path.write_text("no key")
    expected = "cannot read the public key" if kind == "missing" else "is no ECDSA P-384 public key"
    line = fails("enrol", "--state", tmp_path, path, "a")
    assert expected in line
    assert str(path) in line
