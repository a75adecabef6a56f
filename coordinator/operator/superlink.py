"""The coordinator's servers: SuperLink with TLS, node authentication and a database, and nginx, in one state folder.

They run in a process group of their own, so that whatever ends the coordinator ends them all.
SuperLink runs with `--isolation process` and a SuperExec of ours beside it: by itself it would put its
SuperExec into another session, out of reach, and serve it without a secret.
"""

import fcntl
import json
import secrets
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from fedpp.errors import ConfigError, FederationError
from fedpp.files import replace
from fedpp.processes import ProcessGroup, flower_environment

from . import proxy
from .address import LOOPBACK, Address
from .coordinator_certificates import Certificates, Given, ensure
from .supervision import supervise

CONNECTION = "fedpp"  # name of the SuperLink connection in Flower's configuration
SUPERLINK = "flower-superlink"  # Flower's program, by whose name the process is known
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
    def secret(self) -> Path:
        """Return what SuperLink knows its SuperExec by: another one each time that `up` starts."""
        return self.folder / "superexec.secret"

    @property
    def proxy(self) -> Path:
        """Return nginx's folder."""
        return self.folder / "proxy"

    @property
    def last(self) -> Path:
        """Return the file that names the results of the run that was begun last."""
        return self.folder / "last-run"

    @property
    def connection(self) -> Path:
        """Return Flower's configuration file, which tells its commands where SuperLink is."""
        return self.folder / "flwr" / "config.toml"

    def environment(self) -> dict[str, str]:
        """Return what Flower's commands need in their environment to find this state, and each other."""
        return flower_environment(self.connection.parent)


def up(
    folder: Path,
    *,
    port: int,
    listen: Address | None,
    names: Sequence[str],
    given: Given | None,
    ready: Callable[[Address, Path], None],
) -> int:
    """Run the coordinator's servers in the foreground until SIGINT, SIGTERM or SIGHUP; return the exit status.

    SuperLink listens on this machine's loopback; nginx at `listen`, with our certificate, which then holds `names`, or
    a given one. `ready` is called with the address for sites, and the certificate that they need or ours, once all
    answer. What ends later is started again. Raises `ConfigError` if a port or the folder is in use or there is no
    nginx, `KeyFileError` for a certificate that does not do, `FederationError` if the servers do not start.
    """
    state, local = State(folder.resolve()), Address(LOOPBACK, port)
    nginx = None if listen is None else proxy.program()
    if given is not None:
        given.check()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _exclusively(state):
        with local.listener(), nullcontext() if listen is None else listen.listener():
            pass  # both at once: they must not be one
        hosts = () if listen is None or listen.is_unspecified else (listen.host,)
        files = ensure(state.certificates.folder, (*hosts, *names))
        replace(
            state.connection,
            f"[superlink]\ndefault = {json.dumps(CONNECTION)}\n\n[superlink.{CONNECTION}]\n"
            f"address = {json.dumps(str(local))}\n"
            f"root-certificates = {json.dumps(str(files.ca), ensure_ascii=False)}\n".encode(),
        )
        replace(state.secret, secrets.token_bytes(32))
        with ProcessGroup(state.environment()) as group:

            def start() -> None:
                _start_superlink(group, state, local)
                if nginx is not None and listen is not None:
                    shown = given or Given(files.server, files.server_key)
                    group.start(
                        proxy.command(nginx, state.proxy, listen=listen, upstream=local, shown=shown, ca=files.ca)
                    )
                    _wait_until_it_answers(group, listen, None)

            supervise(group, start, lambda: ready(listen or local, given.certificate if given else files.ca))
    return 0


def _start_superlink(group: ProcessGroup, state: State, local: Address) -> None:
    """Start SuperLink and, when it answers, the SuperExec that starts its ServerApps."""
    files = state.certificates
    superlink = group.start(
        [
            *(sys.executable, "-m", "fedpp.flower.bounded_superlink", str(Path(sys.executable).with_name(SUPERLINK))),
            *("--host", local.host, "--port", str(local.port)),
            *("--ssl-ca-certfile", str(files.ca)),
            *("--ssl-certfile", str(files.server), "--ssl-keyfile", str(files.server_key)),
            *("--enable-supernode-auth", "--database", str(state.database)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(state.secret)),
        ],
        SUPERLINK,
    )
    _wait_until_it_answers(group, local, files.ca)
    group.start(
        [
            *("flower-superexec", "--runtime-api-address", str(local)),
            *("--root-certificates", str(files.ca), "--parent-pid", str(superlink)),
            *("--superexec-auth-secret-file", str(state.secret)),
        ]
    )


def _wait_until_it_answers(group: ProcessGroup, address: Address, ca: Path | None) -> None:
    """Wait for a server, with TLS under this authority if it is given, or for the group's stop."""
    context = None if ca is None else ssl.create_default_context(cafile=str(ca))
    deadline = time.monotonic() + START_SECONDS
    while not group.stopped.is_set():
        if ended := group.ended():
            raise FederationError(f"{' and '.join(ended)} ended before {address} answered: its messages above say why")
        try:
            with socket.create_connection(address.from_here(), 1.0) as plain:
                if context is not None:
                    context.wrap_socket(plain, server_hostname=address.host).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise FederationError(f"{address} did not answer within {START_SECONDS:.0f} s: {error}") from None
            time.sleep(POLL_SECONDS)
        else:
            return


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
