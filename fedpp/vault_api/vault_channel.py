"""How a vault is reached: a Unix socket, or TCP with certificates on both sides. There is no third way.

An address is `unix:/absolute/path.sock`, or `HOST:PORT` with a folder of three files: `ca.pem`, the authority that both
sides trust and nothing else, `cert.pem` and `key.pem`, one's own. Where one text has to say all, as in a site's
settings, it is `HOST:PORT,tls=FOLDER`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from fedpp.errors import ConfigError

SCHEME = "unix:"
TLS = ",tls="
MAX_SOCKET_PATH = 107  # bytes of a sockaddr_un
MAX_MESSAGE_BYTES = 4 * 2**20  # of one message, either way


@dataclass(frozen=True)
class TlsFiles:
    """One side's certificates and private key, PEM."""

    authority: bytes
    certificate: bytes
    key: bytes

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the three files; raise `ConfigError` that names the one that cannot be read."""
        contents = []
        for name in ("ca.pem", "cert.pem", "key.pem"):
            try:
                contents.append((folder / name).read_bytes())
            except OSError as error:
                raise ConfigError(
                    f"cannot read {folder / name} ({error.strerror}): `fedpp-site vault-tls` makes such a folder"
                ) from None
        return cls(*contents)

    def of_server(self) -> grpc.ServerCredentials:
        """Return the vault's credentials: a client without a certificate of the authority is refused."""
        return grpc.ssl_server_credentials([(self.key, self.certificate)], self.authority, require_client_auth=True)

    def of_client(self) -> grpc.ChannelCredentials:
        """Return the trainer's credentials."""
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)


def is_tcp(address: str) -> bool:
    """Tell whether an address is `HOST:PORT`."""
    host, colon, port = address.rpartition(":")
    return bool(host and colon) and host != "unix" and port.isdecimal() and 0 < int(port) < 2**16


def require_short(socket: Path) -> None:
    """Raise `ConfigError` for a socket's path that is too long for the system."""
    if (size := len(bytes(socket))) > MAX_SOCKET_PATH:
        raise ConfigError(
            f"the socket's path {socket} has {size} bytes and is longer than {MAX_SOCKET_PATH} bytes: choose a shorter "
            "one, or where it is in the temporary folder, a shorter TMPDIR"
        )


def channel_to(address: str, tls: Path | None = None) -> grpc.Channel:
    """Return a channel to the vault at an address; raise `ConfigError` for one that would not be protected."""
    if not address.startswith(SCHEME) and tls is None and TLS in address:
        address, _, folder = address.partition(TLS)
        tls = Path(folder)
        if not tls.is_absolute():  # it is read by processes that run in other folders
            raise ConfigError(f"a vault's address needs an absolute path after {TLS[1:]}, got {folder!r:.200}")
    # A connection of its own, which nobody else in the process shares, or breaks.
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.use_local_subchannel_pool", 1)]
    if address.startswith(SCHEME):
        require_short(Path(address.removeprefix(SCHEME)))
        return grpc.insecure_channel(address, options)
    if not is_tcp(address) or tls is None:
        raise ConfigError(
            f"a vault's address is unix:/absolute/path.sock, or HOST:PORT{TLS}FOLDER with its certificates, got "
            f"{address!r:.200}"
        )
    return grpc.secure_channel(address, TlsFiles.read(tls).of_client(), options)
