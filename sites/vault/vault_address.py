"""Listening address of a vault: a Unix socket whose peers are checked, or a TCP port with certificates on both ends."""

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from fedpp.errors import ConfigError, VaultError
from fedpp.vault_api.vault_channel import SCHEME, TlsFiles, is_tcp, require_short

from .peer_check import Peer, PeerRelay

PROBE_SECONDS = 2.0


@contextmanager
def listening(
    server: grpc.Server,
    address: str,
    tls: TlsFiles | None,
    users: frozenset[int],
    refused: Callable[[Peer, int], None],
) -> Iterator[Callable[[], None]]:
    """Let a server listen at an address; yield what releases it while calls still run.

    `users` may connect to a Unix socket, or without them its group; `refused` is called for others. Raises
    `ConfigError` or `VaultError` if the server cannot listen there.
    """
    if is_tcp(address):
        if users:
            raise ConfigError(f"--allow-user is for a Unix socket, got {address!r}: certificates decide there")
        _bind_port(server, address, tls)
        yield lambda: None
        return
    if tls is not None:
        raise ConfigError(f"certificates are for HOST:PORT, got {address!r}: leave --tls out for a Unix socket")
    path = _socket_path(address)
    with tempfile.TemporaryDirectory(prefix="fedpp-") as private:  # mode 0700
        behind = Path(private, "v")
        require_short(behind)
        try:
            server.add_insecure_port(f"{SCHEME}{behind}")
            relay = PeerRelay(path, behind, users, refused)
        except (RuntimeError, OSError):
            raise VaultError(
                f"cannot make a socket at {path}, or at {behind}: check that their folders may be written to"
            ) from None
        yield relay.close


def _bind_port(server: grpc.Server, address: str, tls: TlsFiles | None) -> None:
    if tls is None:
        raise ConfigError(f"a vault at {address} needs certificates: give --tls, or listen at unix:/path.sock")
    try:
        server.add_secure_port(address, tls.of_server())
    except RuntimeError:
        raise VaultError(
            f"cannot listen at {address}: is the port taken, or are the certificates no PEM files?"
        ) from None


def _socket_path(address: str) -> Path:
    """Return the path of a `unix:` address, free to be bound; its folder is made for a group if it is new."""
    path = Path(address.removeprefix(SCHEME))
    _require_socket_path(address, path)
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the socket's folder {path.parent}: {error.strerror}") from None
    if path.is_socket():
        _remove_stale(path)
    elif path.exists():
        raise ConfigError(f"{path} is a file and no socket: choose another address")
    return path


def _require_socket_path(address: str, path: Path) -> None:
    if not address.startswith(SCHEME) or not path.is_absolute():
        raise ConfigError(
            f"the vault's address must be unix:/absolute/path.sock, or HOST:PORT with --tls, got {address!r}"
        )
    require_short(path)
    if any(character in address for character in "%?#"):  # gRPC reads the address as a URI
        raise ConfigError(f"the socket's path must have no %, ? or #, got {path}: choose another")


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:  # left by a vault that was killed
            path.unlink()
        except OSError as error:
            raise VaultError(f"{path} may belong to a running vault ({error}): choose another address") from None
        else:
            raise VaultError(f"a vault is running at {SCHEME}{path} already: stop it, or choose another address")
