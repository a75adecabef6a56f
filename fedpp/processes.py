"""Servers that run in the foreground together and end together, whatever ends them."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any, Self

# A hospital's machine makes no call that it did not ask for.
QUIET_FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray asks for in a warning at every start
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 10.0


def flower_environment(home: Path) -> dict[str, str]:
    """Return what Flower's commands need in their environment to find their files, in `home`, and each other."""
    return {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "FLWR_HOME": str(home),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",  # seconds; by default a second
    }


class ProcessGroup:
    """Commands and all that they start, in one process group that `with` ends completely.

    Within, SIGINT, SIGTERM and SIGHUP set `stopped`. The commands write to our stderr. In the end they are asked
    to stop, and killed if they have not after `grace` seconds.
    """

    def __init__(self, environment: Mapping[str, str], *, grace: float = GRACE_SECONDS) -> None:
        self.stopped = Event()
        self._grace = grace
        self._handlers: dict[int, Any] = {}
        self._environment = {**os.environ, **QUIET_FLOWER, **environment}
        self._members: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            self._handlers[number] = signal.signal(number, lambda *_: self.stopped.set())
        return self

    def start(self, command: Sequence[str]) -> int:
        """Start a command in the group; return its process id."""
        member = subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            process_group=self._members[0].pid if self._members else 0,
        )
        self._members.append(member)
        return member.pid

    def running(self) -> bool:
        """Tell whether every command still runs."""
        return all(member.poll() is None for member in self._members)

    def wait(self) -> bool:
        """Wait for a stop signal or the end of a command; tell whether it was the signal."""
        while self.running():
            if self.stopped.wait(0.2):
                return True
        return self.stopped.is_set()

    def __exit__(self, *_: object) -> None:
        if self._grace:
            self._signal(signal.SIGTERM)
        deadline = monotonic() + self._grace
        while self._alive() and monotonic() < deadline:
            sleep(0.05)
        self._signal(signal.SIGKILL)
        for member in self._members:
            member.wait()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _alive(self) -> bool:
        for member in self._members:
            member.poll()  # reaps each one: a zombie would keep the group alive
        return self._signal(0)

    def _signal(self, number: int) -> bool:
        if not self._members:
            return False
        try:
            os.killpg(self._members[0].pid, number)
        except ProcessLookupError:
            return False
        return True
