"""Listening address of a vault: a Unix socket for one group, or a TCP port with certificates on both sides."""

import os
import socket
from pathlib import Path

import grpc

from fedpp.errors import ConfigError, VaultError
from fedpp.vault_api.vault_channel import SCHEME, TlsFiles, is_tcp

MAX_SOCKET_PATH = 107  # of a sockaddr_un
PROBE_SECONDS = 2.0


def bind(server: grpc.Server, address: str, tls: TlsFiles | None) -> None:
    """Let a server listen at an address; raise `ConfigError` or `VaultError` if it cannot."""
    if is_tcp(address):
        if tls is None:
            raise ConfigError(f"a vault at {address} needs certificates: give --tls, or listen at unix:/path.sock")
        try:
            server.add_secure_port(address, tls.of_server())
        except RuntimeError:
            raise VaultError(
                f"cannot listen at {address}: is the port taken, or are the certificates no PEM files?"
            ) from None
        return
    if tls is not None:
        raise ConfigError(f"certificates are for HOST:PORT, got {address!r}: leave --tls out for a Unix socket")
    _bind_socket(server, _socket_path(address))


def _bind_socket(server: grpc.Server, path: Path) -> None:
    others_out = os.umask(0o117)  # the socket is 0660 from its first moment
    try:
        server.add_insecure_port(f"{SCHEME}{path}")
    except RuntimeError:
        raise VaultError(f"cannot make a socket at {path}: check that its folder may be written to") from None
    finally:
        os.umask(others_out)


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
    if len(bytes(path)) > MAX_SOCKET_PATH:
        raise ConfigError(f"the socket's path {path} is longer than {MAX_SOCKET_PATH} bytes: choose a shorter one")
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
