"""Process groups end completely and without delay, whatever their members do."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from fedpp import processes
from fedpp.errors import FederationError
from fedpp.processes import PORTS, ProcessGroup, free_port

ENDLESS = "import time\nwhile True: time.sleep(60)"
SHORT = "pass"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)\n{ENDLESS}"
POLITE = f"""import os, signal, sys, time
def finish(*_):
    time.sleep(0.3)
    print('finished', file=sys.stderr, flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, finish)
print('ready', file=sys.stderr, flush=True)
{ENDLESS}"""
PARENT = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {DEAF!r}])\n{ENDLESS}"
OWNER = f"""import os, sys
from fedpp.processes import ProcessGroup
with ProcessGroup({{}}) as group:
    print(os.getpgid(group.start([sys.executable, '-c', {PARENT!r}])), flush=True)
    group.wait()
"""


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def alive(group: int) -> int:
    """Count the live processes of a group, the keeper among them."""
    listed = subprocess.run(["ps", "-e", "-o", "pgid=,stat="], capture_output=True, text=True, check=True)
    rows = (line.split() for line in listed.stdout.splitlines())
    return sum(int(row[0]) == group and not row[1].startswith("Z") for row in rows)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_grandchildren_end_with_the_group(capfd: pytest.CaptureFixture[str]) -> None:
    """All processes that a command started have ended when `with` ends, those that ignore SIGTERM included."""
    with ProcessGroup({}, grace=0.5) as group:
        number = os.getpgid(group.start(python(PARENT)))
        wait_until(lambda: "deaf" in capfd.readouterr().err)
        assert alive(number) == 3
    assert alive(number) == 0


def test_a_process_that_heeds_sigterm_may_finish(capfd: pytest.CaptureFixture[str]) -> None:
    """It is not killed within the grace period."""
    with ProcessGroup({}) as group:
        group.start(python(POLITE))
        wait_until(lambda: "ready" in capfd.readouterr().err)
    assert capfd.readouterr().err == "finished\n"


def test_a_process_that_ignores_sigterm_is_killed(capfd: pytest.CaptureFixture[str]) -> None:
    """It is killed after the grace period."""
    with ProcessGroup({}, grace=0.5) as group:
        number = os.getpgid(group.start(python(DEAF)))
        wait_until(lambda: "deaf" in capfd.readouterr().err)
    assert alive(number) == 0


def test_all_die_with_a_killed_owner() -> None:
    """SIGKILL of the process that holds the group kills its commands and their children, deaf ones included."""
    with subprocess.Popen(python(OWNER), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stderr is not None
        number = int(owner.stdout.readline())
        assert owner.stderr.readline() == "deaf\n"
        assert alive(number) == 3
        owner.kill()
        wait_until(lambda: alive(number) == 0)


@pytest.mark.parametrize("programs", [(SHORT, ENDLESS), (ENDLESS, SHORT)])
def test_the_end_of_one_command_ends_the_others_at_once(programs: tuple[str, str]) -> None:
    """Whichever command ends by itself, `wait` returns false, and the rest of the group needs no grace period."""
    with ProcessGroup({}) as group:
        number, _ = [os.getpgid(group.start(python(program))) for program in programs]
        assert not group.wait()
        assert group.ended() == [f"{Path(sys.executable).name} (status 0)"]
        started = time.monotonic()
    assert time.monotonic() - started < processes.GRACE_SECONDS / 2
    assert alive(number) == 0


def test_after_its_end_a_group_starts_anew(capfd: pytest.CaptureFixture[str]) -> None:
    """`end` kills all at once; the next command is in a new group, with a keeper of its own."""
    with ProcessGroup({}) as group:
        old = os.getpgid(group.start(python(PARENT)))
        wait_until(lambda: "deaf" in capfd.readouterr().err)
        os.kill(old, signal.SIGKILL)
        assert not group.wait()
        assert group.ended() == ["sh (Killed)"]
        group.end()
        assert alive(old) == 0
        new = os.getpgid(group.start(python(ENDLESS)))
        assert new != old
        assert group.running()
        assert alive(new) == 2
    assert alive(new) == 0


@pytest.mark.parametrize("number", processes.STOP_SIGNALS)
def test_a_signal_ends_the_group_at_once(number: signal.Signals) -> None:
    """SIGHUP, SIGINT and SIGTERM end the group instead of this process."""
    with ProcessGroup({}) as group:
        of_group, _ = [os.getpgid(group.start(python(ENDLESS))) for _ in range(2)]
        signal.raise_signal(number)
        assert group.wait()
        started = time.monotonic()
    assert time.monotonic() - started < processes.GRACE_SECONDS / 2
    assert alive(of_group) == 0


def test_signal_handlers_are_restored() -> None:
    """After the group the handlers are those from before it."""
    before = [signal.getsignal(number) for number in processes.STOP_SIGNALS]
    with ProcessGroup({}):
        assert [signal.getsignal(number) for number in processes.STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in processes.STOP_SIGNALS] == before


def test_a_free_port_is_outside_the_range_of_connections(monkeypatch: pytest.MonkeyPatch):
    """It can be listened on, and is below those that Linux gives to connections; one that is taken is passed over."""
    least = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    port = free_port()
    assert port in PORTS
    assert PORTS.stop <= least
    with socket.create_server(("127.0.0.1", port)):
        chosen = iter([port, port, port + 1])
        monkeypatch.setattr("secrets.choice", lambda _: next(chosen, port))
        assert free_port() != port
        with pytest.raises(FederationError, match="can be listened on, tried 100: end what listens there"):
            free_port()
