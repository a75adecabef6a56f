"""The site's SuperNode: it calls the coordinator, and runs the bundle's ClientApp beside the site's dataset.

Nothing here listens but one loopback port between SuperNode and the SuperExec that starts the ClientApp. It
is guarded by a secret of this run: by itself (`--isolation subprocess`) Flower would serve any local user.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpp.config import SiteConfig
from fedpp.errors import ConfigError
from fedpp.files import create_exclusively

PRIVATE_KEY = "node.key"
PUBLIC_KEY = "node.pub"
VAULT_SCHEME = "unix:"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 10.0
POLL_SECONDS = 0.1


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

    `superlink` is HOST:PORT, `ca` the coordinator's authority. Raises `ConfigError` for what is missing.
    """
    _check(superlink, ca, identity, site)
    with tempfile.TemporaryDirectory(prefix="fedpp-") as private:
        secret, node = Path(private) / "superexec.secret", Path(private) / "node.toml"
        create_exclusively(secret, secrets.token_bytes(32))
        create_exclusively(node, node_config(site).encode())
        runtime = f"127.0.0.1:{_free_port()}"
        stopped = run_group(
            [
                [
                    *("flower-supernode", "--superlink", superlink, "--root-certificates", str(ca)),
                    *("--auth-supernode-private-key", str(identity / PRIVATE_KEY)),
                    *("--node-config", str(node)),
                    *("--host", "127.0.0.1", "--port", runtime.rpartition(":")[2]),
                    *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
                ],
                [
                    *("flower-superexec", "--insecure", "--runtime-api-address", runtime),
                    *("--superexec-auth-secret-file", str(secret)),
                ],
            ],
            _environment(identity),
        )
    if not stopped:
        print(
            "the SuperNode ended by itself: its messages above say why; "
            "is this site enrolled, and does no other process use its identity?",
            file=sys.stderr,
        )
    return 0 if stopped else 1


def node_config(site: SiteConfig) -> str:
    """Return the site's addresses as TOML: Flower's `key=value` would lose spaces and quotes."""
    values = {
        "name": site.name,
        "dataset": str(site.dataset),
        "evaluation-key": str(site.evaluation_key),
        "vault": site.vault,
    }
    # A JSON string without escaped surrogates is a TOML string, but for DEL, which TOML wants escaped.
    return "".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n".replace("\x7f", "\\u007f")
        for name, value in values.items()
    )


def run_group(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> bool:
    """Run commands in one process group until a signal comes or one of them ends; then end the whole group.

    They write to our stderr. Tells whether a signal came.
    """
    stopped = Event()
    handlers = {number: signal.signal(number, lambda *_: stopped.set()) for number in STOP_SIGNALS}
    members: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            members.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr.fileno(),
                    process_group=members[0].pid if members else 0,
                )
            )
        while all(member.poll() is None for member in members) and not stopped.wait(POLL_SECONDS):
            pass
    finally:
        _end(members)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return stopped.is_set()


def _end(members: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the group of these processes to end, wait, then insist."""

    def send(number: int) -> bool:
        for member in members:
            member.poll()  # reaps: a zombie would keep the group alive
        try:
            os.killpg(members[0].pid, number)
        except (ProcessLookupError, IndexError):
            return False
        return True

    send(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while send(0) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    send(signal.SIGKILL)
    for member in members:
        member.wait()


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
    if not site.evaluation_key.is_file():
        raise ConfigError(f"there is no evaluation key {site.evaluation_key}: `fedpp-site keygen` writes it")
    socket_path = Path(site.vault.removeprefix(VAULT_SCHEME))
    if site.vault.startswith(VAULT_SCHEME) and not socket_path.is_socket():
        raise ConfigError(f"there is no vault at {site.vault}: start it with `fedpp-site vault`")


def _environment(identity: Path) -> dict[str, str]:
    """Return the environment of Flower's processes: they call nobody but the coordinator."""
    return {
        **os.environ,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "FLWR_HOME": str(identity.resolve() / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
