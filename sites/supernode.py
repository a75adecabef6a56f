"""The site's SuperNode: it calls the coordinator, and runs the bundle's ClientApp beside the site's dataset.

Nothing here listens but one loopback port between SuperNode and the executor of ours that starts the ClientApp, if
the site's policy allows it. It is guarded by a secret of this run: by itself (`--isolation subprocess`) Flower would
serve any local user, and run any code.
"""

import os
import secrets
import socket
import sys
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpp.config import SiteConfig, to_toml
from fedpp.errors import ConfigError, FederationError
from fedpp.files import create_exclusively
from fedpp.policy import SitePolicy
from fedpp.processes import ProcessGroup, flower_environment

from .executor import program, require_flower

PRIVATE_KEY = "node.key"
PUBLIC_KEY = "node.pub"
REFUSED = "refused"  # folder of the bundles that wait for a review
VAULT_SCHEME = "unix:"


def create_identity(folder: Path) -> Path:
    """Make the node's key pair, ECDSA P-384 in SSH formats; return the public key's path.

    Raises `FileExistsError` where a key is there already: a site that loses its key must be enrolled again.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    try:
        create_exclusively(folder / PRIVATE_KEY, private)
    except FileExistsError:
        raise FileExistsError(
            f"{folder / PRIVATE_KEY} is there already: choose another --out, keys are not overwritten"
        ) from None
    (folder / PUBLIC_KEY).write_bytes(public + b"\n")
    return folder / PUBLIC_KEY


def join(superlink: str, ca: Path, identity: Path, site: SiteConfig) -> int:
    """Run the SuperNode in the foreground until SIGINT, SIGTERM or SIGHUP; return the exit status.

    `superlink` is HOST:PORT, `ca` the coordinator's authority. Raises `ConfigError` for what is missing,
    `FederationError` if the SuperNode ends by itself.
    """
    _check(superlink, ca, identity, site)
    if any(os.access(path, os.W_OK) for path in (site.policy, site.policy.parent)):
        print(
            f"note: this user can write {site.policy}, so code that runs could approve other code: let another own it",
            file=sys.stderr,
            flush=True,
        )
    with tempfile.TemporaryDirectory(prefix="fedpp-") as private:
        secret, node = Path(private) / "superexec.secret", Path(private) / "node.toml"
        create_exclusively(secret, secrets.token_bytes(32))
        create_exclusively(node, to_toml(site.to_mapping()).encode())
        runtime = f"127.0.0.1:{_free_port()}"
        with ProcessGroup(flower_environment(identity.resolve() / "flwr")) as group:
            group.start(
                [
                    *("flower-supernode", "--superlink", superlink, "--root-certificates", str(ca)),
                    *("--auth-supernode-private-key", str(identity / PRIVATE_KEY)),
                    *("--node-config", str(node)),
                    *("--host", "127.0.0.1", "--port", runtime.rpartition(":")[2]),
                    *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
                ]
            )
            group.start(
                [
                    *(*program("executor"), "--runtime", runtime, "--secret", str(secret), "--work", private),
                    *("--policy", str(site.policy), "--refused", str(identity.resolve() / REFUSED)),
                ]
            )
            if not group.wait():
                raise FederationError(
                    "the SuperNode ended by itself: its messages above say why. Is this site enrolled, "
                    "is the certificate the coordinator's, and does no other process use this identity?"
                )
    return 0


def _check(superlink: str, ca: Path, identity: Path, site: SiteConfig) -> None:
    host, _, port = superlink.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--superlink must be HOST:PORT, got {superlink!r}")
    if not (identity / PRIVATE_KEY).is_file():
        raise ConfigError(f"there is no {identity / PRIVATE_KEY}: make it with `fedpp-site identity --out {identity}`")
    if not ca.is_file():
        raise ConfigError(f"there is no certificate {ca}: ask the coordinator for its ca.pem")
    if not site.dataset.is_dir():
        raise ConfigError(f"there is no dataset {site.dataset}: make it with `fedpp-site ingest`")
    # In the frame form there is none, and the path names the folder of the at-rest key.
    if not site.evaluation_key.is_file() and not site.at_rest_key.is_file():
        raise ConfigError(f"there is no evaluation key {site.evaluation_key}: `fedpp-site keygen` writes it")
    SitePolicy.load(site.policy)
    require_flower()
    socket_path = Path(site.vault.removeprefix(VAULT_SCHEME))
    if site.vault.startswith(VAULT_SCHEME) and not socket_path.is_socket():
        raise ConfigError(f"there is no vault at {site.vault}: start it with `fedpp-site vault`")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
