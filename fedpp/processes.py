"""Process groups: servers that run in the foreground together and end together, whatever ends them."""

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any, Self

from fedpp.errors import FederationError

# No telemetry, update check or download from a hospital's machine.
QUIET_FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray asks for in a warning at every start
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PORTS = range(20_000, 32_000)  # Linux gives connections those from 32768 on
PORT_TRIES = 100
GRACE_SECONDS = 10.0
KILL_SECONDS = 30.0
KEEPER = ("sh", "-c", "read -r _; kill -KILL 0")  # `read` ends with the pipe, and 0 is the keeper's own group


def flower_environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's commands: their files are in `home`, and they find each other by PATH."""
    return {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "FLWR_HOME": str(home),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",  # seconds; by default a second
    }


def free_port() -> int:
    """Return a free TCP port of this machine, outside the range that the system uses for connections."""
    for _ in range(PORT_TRIES):
        port = secrets.choice(PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise FederationError(
        f"no port of 127.0.0.1 from {PORTS.start} to {PORTS.stop - 1} can be listened on, tried {PORT_TRIES}: end what "
        "listens there"
    )


class ProcessGroup:
    """Commands and all that they start, in one process group that `with` ends completely.

    Inside `with`, SIGINT, SIGTERM and SIGHUP set `stopped`. The commands write to our stderr. At the end they get
    SIGTERM, and SIGKILL after `grace` seconds. The group's leader is a keeper process, which reads a pipe that only
    this process holds: if this process is killed, the whole group is killed at once, grandchildren included (which
    Linux's parent-death signal would not reach).
    """

    def __init__(
        self, environment: Mapping[str, str], *, grace: float = GRACE_SECONDS, log: Path | None = None
    ) -> None:
        self.stopped = Event()
        self._log = log
        self._grace = grace
        self._handlers: dict[int, Any] = {}
        self._environment = {**os.environ, **QUIET_FLOWER, **environment}
        self._keeper: subprocess.Popen[bytes] | None = None
        self._members: dict[subprocess.Popen[bytes], str] = {}  # the keeper, too, and their names

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            self._handlers[number] = signal.signal(number, lambda *_: self.stopped.set())
        return self

    def start(self, command: Sequence[str], name: str | None = None) -> int:
        """Start a command in the group, by default known by its program's name; return its process id."""
        if self._keeper is None:
            self._keeper = self._started(KEEPER, None, subprocess.PIPE, 0)
        return self._started(command, name, subprocess.DEVNULL, self._keeper.pid).pid

    def _started(self, command: Sequence[str], name: str | None, stdin: int, group: int) -> subprocess.Popen[bytes]:
        with nullcontext(sys.stderr) if self._log is None else self._log.open("ab") as output:
            started = subprocess.Popen(
                command,
                env=self._environment,
                stdin=stdin,
                stdout=output.fileno(),
                stderr=output.fileno(),
                process_group=group,
            )
        self._members[started] = name or Path(command[0]).name
        return started

    def running(self) -> bool:
        """Tell whether every command still runs."""
        return not self.ended()

    def ended(self) -> list[str]:
        """Return the commands that have ended, each as its name and what ended it."""
        return [f"{name} ({_cause(of.returncode)})" for of, name in self._members.items() if of.poll() is not None]

    def wait(self) -> bool:
        """Wait for a stop signal or the end of a command; tell whether it was the signal."""
        while self.running():
            if self.stopped.wait(0.2):
                return True
        return self.stopped.is_set()

    def end(self, grace: float = 0.0) -> None:
        """Stop all processes of the group, kill them after `grace` seconds, and wait until none is alive.

        New commands can be started afterwards. Raises `TimeoutError` if a process cannot even be killed.
        """
        if self._keeper is None:
            return
        group = self._keeper.pid
        if grace:
            _signal(group, signal.SIGTERM)
        deadline = monotonic() + grace
        while alive(group) and monotonic() < deadline:
            sleep(0.05)
        _signal(group, signal.SIGKILL)
        deadline = monotonic() + KILL_SECONDS
        while found := alive(group):
            if monotonic() > deadline:
                raise TimeoutError(f"processes {found} cannot be killed: is a disk or a network folder not answering?")
            sleep(0.05)
        for member in self._members:
            member.communicate()  # closes the keeper's pipe, too
        self._members, self._keeper = {}, None

    def __exit__(self, *_: object) -> None:
        try:
            self.end(self._grace)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)


def alive(group: int) -> list[int]:
    """Return the process ids of a group, without zombies."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended just now
            state, _, its_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in {"Z", "X"}:
                found.append(int(process.name))
    return found


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _cause(status: int) -> str:
    return f"{signal.strsignal(-status)}" if status < 0 else f"status {status}"
