"""The coordinator's SuperLink: TLS, node authentication and a database, all of it in one state folder.

Flower's processes run in a process group of their own, so that whatever ends the coordinator ends them all.
SuperLink runs with `--isolation process` and a SuperExec of ours beside it: by itself it would put its
SuperExec into another session, out of reach, and serve it without a secret.
"""

import fcntl
import ipaddress
import json
import secrets
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedpp.errors import ConfigError, FederationError
from fedpp.files import create_exclusively, replace
from fedpp.processes import ProcessGroup, flower_environment

from .certificates import Certificates, ensure

CONNECTION = "fedpp"  # name of the SuperLink connection in Flower's configuration
START_SECONDS = 60.0
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class State:
    """What a coordinator keeps between its commands, in one folder."""

    folder: Path

    @property
    def certificates(self) -> Certificates:
        """Return the TLS files."""
        return Certificates(self.folder / "tls")

    @property
    def database(self) -> Path:
        """Return SuperLink's database: nodes and runs."""
        return self.folder / "superlink.sqlite"

    @property
    def connection(self) -> Path:
        """Return Flower's configuration file, which tells its commands where SuperLink is."""
        return self.folder / "flwr" / "config.toml"

    def environment(self) -> dict[str, str]:
        """Return what Flower's commands need in their environment to find this state, and each other."""
        return flower_environment(self.connection.parent)


def up(folder: Path, *, host: str, port: int, names: Sequence[str], ready: Callable[[str, Path], None]) -> int:
    """Run SuperLink in the foreground until SIGINT, SIGTERM or SIGHUP; return the exit status.

    `ready` is called with HOST:PORT and the authority's certificate once SuperLink answers. Raises
    `ConfigError` if the port or the folder is in use, `FederationError` if SuperLink does not start, or ends by itself.
    """
    state = State(folder.resolve())
    local = _local_address(host)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _exclusively(state), tempfile.TemporaryDirectory(prefix="fedpp-") as private:
        _require_free(host, port)
        files = ensure(state.certificates.folder, names if host in ("0.0.0.0", "::") else (host, *names))  # noqa: S104
        replace(
            state.connection,
            f"[superlink]\ndefault = {json.dumps(CONNECTION)}\n\n[superlink.{CONNECTION}]\n"
            f"address = {json.dumps(_joined(local, port))}\n"
            f"root-certificates = {json.dumps(str(files.ca), ensure_ascii=False)}\n".encode(),
        )
        secret = Path(private) / "superexec.secret"
        create_exclusively(secret, secrets.token_bytes(32))
        with ProcessGroup(state.environment()) as group:
            superlink = group.start(
                [
                    *("flower-superlink", "--host", host, "--port", str(port)),
                    *("--ssl-ca-certfile", str(files.ca)),
                    *("--ssl-certfile", str(files.server), "--ssl-keyfile", str(files.server_key)),
                    *("--enable-supernode-auth", "--database", str(state.database)),
                    *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
                ]
            )
            _wait_until_it_answers(group, local, port, files.ca)
            if not group.stopped.is_set():
                group.start(
                    [
                        *("flower-superexec", "--runtime-api-address", _joined(local, port)),
                        *("--root-certificates", str(files.ca), "--parent-pid", str(superlink)),
                        *("--superexec-auth-secret-file", str(secret)),
                    ]
                )
                ready(_joined(host, port), files.ca)
            if not group.wait():
                raise FederationError("SuperLink or its SuperExec ended by itself: its messages above say why")
    return 0


def _wait_until_it_answers(group: ProcessGroup, host: str, port: int, ca: Path) -> None:
    context = ssl.create_default_context(cafile=str(ca))
    deadline = time.monotonic() + START_SECONDS
    while group.running() and not group.stopped.is_set():
        try:
            with socket.create_connection((host, port), 1.0) as plain:
                context.wrap_socket(plain, server_hostname=host).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise FederationError(
                    f"SuperLink did not answer at {_joined(host, port)} within {START_SECONDS:.0f} s: {error}"
                ) from None
            time.sleep(POLL_SECONDS)
        else:
            return
    if not group.stopped.is_set():
        raise FederationError("SuperLink ended before it answered: its messages above say why")


@contextmanager
def _exclusively(state: State) -> Iterator[None]:
    """Hold the state folder for this process alone."""
    with (state.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"a coordinator runs with {state.folder} already: stop it, or use another --state"
            ) from None
        yield


def _require_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {_joined(host, port)} ({error}): choose another --port or --host"
        ) from None


def _local_address(host: str) -> str:
    """Return the address by which this machine reaches a server that listens on `host`."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return host


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
