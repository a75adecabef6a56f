"""The coordinator's SuperLink: TLS, node authentication and a database, all of it in one state folder.

Flower's processes run in a process group of their own, so that whatever ends the coordinator ends them all.
SuperLink runs with `--isolation process` and a SuperExec of ours beside it: by itself it would put its
SuperExec into another session, out of reach, and serve it without a secret.
"""

import fcntl
import ipaddress
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Self

from fedpp.errors import ConfigError, FederationError
from fedpp.files import create_exclusively, replace

from .certificates import Certificates, ensure

CONNECTION = "fedpp"  # name of the SuperLink connection in Flower's configuration
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START_SECONDS = 60.0
GRACE_SECONDS = 10.0
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
        """Return the environment of all Flower processes: they find each other and call nobody else."""
        return {
            **os.environ,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
            "FLWR_HOME": str(self.connection.parent),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }


def up(folder: Path, *, host: str, port: int, names: Sequence[str], ready: Callable[[str, Path], None]) -> int:
    """Run SuperLink in the foreground until SIGINT, SIGTERM or SIGHUP; return the exit status.

    `ready` is called with HOST:PORT and the authority's certificate once SuperLink answers. Raises
    `ConfigError` if the port or the folder is in use, `FederationError` if SuperLink does not start.
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
        with stop_signals() as stopped, ProcessGroup(state.environment(), stopped) as group:
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
            return 0 if group.wait() else 1


@contextmanager
def stop_signals() -> Iterator[Event]:
    """Take over SIGINT, SIGTERM and SIGHUP: they set the event."""
    event = Event()
    handlers = {number: signal.signal(number, lambda *_: event.set()) for number in STOP_SIGNALS}
    try:
        yield event
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class ProcessGroup:
    """Commands and all that they start, in one process group that `with` ends completely.

    They run until `stopped` is set. They write to our stderr.
    """

    def __init__(self, environment: Mapping[str, str], stopped: Event) -> None:
        self.stopped = stopped
        self._environment = environment
        self._members: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Begin with no process."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ask all processes of the group to end, wait, then insist."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self._alive() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._signal(signal.SIGKILL)
        for member in self._members:
            member.wait()

    def start(self, command: Sequence[str]) -> int:
        """Start a command in the group; return its process id."""
        leader = self._members[0].pid if self._members else 0
        process = subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            process_group=leader,
        )
        self._members.append(process)
        return process.pid

    def running(self) -> bool:
        """Tell whether every command still runs."""
        return all(member.poll() is None for member in self._members)

    def wait(self) -> bool:
        """Wait until `stopped` is set or a command ends by itself; tell which."""
        while self.running() and not self.stopped.wait(POLL_SECONDS):
            pass
        return self.stopped.is_set()

    def _alive(self) -> bool:
        self.running()  # reaps: a zombie would keep the group alive
        return self._signal(0)

    def _signal(self, number: int) -> bool:
        try:
            os.killpg(self._members[0].pid, number)
        except (ProcessLookupError, IndexError):
            return False
        return True


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
