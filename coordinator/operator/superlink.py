"""Servers of the coordinator: SuperLink with TLS, node authentication and a database, and nginx, in one state folder.

They run in a process group of their own, so that whatever ends the coordinator ends them all, and append their
messages, with those of the ServerApps, to `servers.log` in that folder. SuperLink runs with `--isolation process` and a
SuperExec that is started here: otherwise it would put its SuperExec into another session, out of reach, and serve it
without a secret.
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
from pathlib import Path

from fedpp.cli import note
from fedpp.errors import ConfigError, FederationError
from fedpp.files import replace
from fedpp.processes import ProcessGroup, flower_environment

from . import proxy
from .address import LOOPBACK, Address
from .coordinator_certificates import Certificates, Given, ensure, names_of
from .supervision import supervise

CONNECTION = "fedpp"  # name of the SuperLink connection in Flower's configuration
SUPERLINK = "flower-superlink"  # Flower's program, whose name the process has
START_SECONDS = 60.0
POLL_SECONDS = 0.1


class State:
    """State folder of a coordinator: the files that its commands share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificates = Certificates(folder / "tls")
        self.connection = folder / "flwr" / "config.toml"  # Flower's, with SuperLink's address for its commands
        self.names = folder / "names.json"  # CoordinatorNames: by what sites may know this coordinator
        self.database = folder / "superlink.sqlite"  # SuperLink's: nodes and runs
        self.last = folder / "last-run"  # holds the results folder of the last run
        self.log = folder / "servers.log"  # of servers and ServerApps since `up` started; the previous one ends in `.1`
        self.proxy = folder / "proxy"  # nginx's folder
        self.secret = folder / "superexec.secret"  # of SuperLink and its SuperExec, drawn anew at each start of `up`

    def coordinator(self) -> str:
        """Return the `CoordinatorNames`, JSON, that the last `up` wrote; raise `FederationError` if there are none."""
        if not self.connection.exists():
            raise FederationError(f"{self.folder} is no coordinator's state: start one with `up --state {self.folder}`")
        try:
            return self.names.read_text()
        except OSError:
            raise FederationError(f"{self.names} is missing: stop `up`, and start it again") from None

    def environment(self) -> dict[str, str]:
        """Return the environment in which Flower's commands find this state, and each other."""
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

    SuperLink listens on this machine's loopback; nginx at `listen`, with our certificate, issued for `names`, or the
    given one. Once all answer, `ready` is called with the address for sites and the certificate that they need (the
    given one, or our CA's). Servers that end later are restarted. Raises `ConfigError` if a port or the folder is in
    use or nginx is missing, `KeyFileError` for an unusable certificate, `FederationError` if the servers do not start.
    """
    state, local = State(folder.resolve()), Address(LOOPBACK, port)
    nginx = None if listen is None else proxy.program()
    if given is not None:
        given.check()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(state):
        with local.listener(), nullcontext() if listen is None else listen.listener():
            pass  # both at once: they must differ
        hosts = () if listen is None or listen.is_unspecified else (listen.host,)
        files = ensure(state.certificates.folder, (*hosts, *names))
        replace(state.names, names_of(files, given).to_json().encode())
        replace(
            state.connection,
            f"[superlink]\ndefault = {json.dumps(CONNECTION)}\n\n[superlink.{CONNECTION}]\n"
            f"address = {json.dumps(str(local))}\n"
            f"root-certificates = {json.dumps(str(files.ca), ensure_ascii=False)}\n".encode(),
        )
        replace(state.secret, secrets.token_bytes(32))
        if state.log.exists():
            state.log.rename(state.log.with_name(f"{state.log.name}.1"))
        note(f"SuperLink, nginx and the ServerApps log to {state.log}")
        with ProcessGroup(state.environment(), log=state.log) as group:

            def start() -> None:
                _start_superlink(group, state, local)
                if nginx is not None and listen is not None:
                    shown = given or Given(files.server, files.server_key)
                    group.start(
                        proxy.command(nginx, state.proxy, listen=listen, upstream=local, shown=shown, ca=files.ca)
                    )
                    _wait_for(group, state, listen, None)

            supervise(group, start, lambda: ready(listen or local, given.certificate if given else files.ca))
    return 0


def _start_superlink(group: ProcessGroup, state: State, local: Address) -> None:
    """Start SuperLink and, once it answers, the SuperExec that starts its ServerApps."""
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
    _wait_for(group, state, local, files.ca)
    group.start(
        [
            *("flower-superexec", "--runtime-api-address", str(local)),
            *("--root-certificates", str(files.ca), "--parent-pid", str(superlink)),
            *("--superexec-auth-secret-file", str(state.secret)),
        ]
    )


def _wait_for(group: ProcessGroup, state: State, address: Address, ca: Path | None) -> None:
    """Wait until a server answers, with TLS under this CA if one is given, or until the group is stopped."""
    context = None if ca is None else ssl.create_default_context(cafile=str(ca))
    deadline = time.monotonic() + START_SECONDS
    while not group.stopped.is_set():
        if ended := group.ended():
            raise FederationError(f"{' and '.join(ended)} ended before {address} answered: see {state.log}")
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
def _locked(state: State) -> Iterator[None]:
    """Lock the state folder for this process."""
    with (state.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"a coordinator runs with {state.folder} already: stop it, or use another --state"
            ) from None
        yield
