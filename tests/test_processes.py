"""Process groups end completely and without delay, whatever their members do."""

import signal
import subprocess
import sys
import time

import pytest

from fedpp import processes
from fedpp.processes import ProcessGroup

ENDLESS = "import time\nwhile True: time.sleep(60)"
SHORT = "pass"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)\n{ENDLESS}"
PARENT = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {ENDLESS!r}])\n{ENDLESS}"


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def alive(group: int) -> int:
    """Count the live processes of a group."""
    listed = subprocess.run(["ps", "-e", "-o", "pgid=,stat="], capture_output=True, text=True, check=True)
    rows = (line.split() for line in listed.stdout.splitlines())
    return sum(int(row[0]) == group and not row[1].startswith("Z") for row in rows)


def test_grandchildren_end_with_the_group() -> None:
    """What a command started ends with it."""
    with ProcessGroup({}) as group:
        leader = group.start(python(PARENT))
        deadline = time.monotonic() + 30
        while alive(leader) != 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert alive(leader) == 0


def test_who_ignores_sigterm_is_killed(capfd: pytest.CaptureFixture[str]) -> None:
    """A process that does not end when asked is killed after the grace period."""
    with ProcessGroup({}, grace=0.5) as group:
        leader = group.start(python(DEAF))
        deadline = time.monotonic() + 30
        while "deaf" not in capfd.readouterr().err:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert alive(leader) == 0


@pytest.mark.parametrize("programs", [(SHORT, ENDLESS), (ENDLESS, SHORT)])
def test_the_end_of_one_command_ends_the_others_at_once(programs: tuple[str, str]) -> None:
    """Whichever command ends by itself, `wait` says so, and the rest of the group needs no grace period."""
    with ProcessGroup({}) as group:
        leader, _ = [group.start(python(program)) for program in programs]
        assert not group.wait()
        started = time.monotonic()
    assert time.monotonic() - started < processes.GRACE_SECONDS / 2
    assert alive(leader) == 0


@pytest.mark.parametrize("number", processes.STOP_SIGNALS)
def test_a_signal_ends_the_group_at_once(number: signal.Signals) -> None:
    """SIGHUP, SIGINT and SIGTERM end the group instead of this process."""
    with ProcessGroup({}) as group:
        leader, _ = [group.start(python(ENDLESS)) for _ in range(2)]
        signal.raise_signal(number)
        assert group.wait()
        started = time.monotonic()
    assert time.monotonic() - started < processes.GRACE_SECONDS / 2
    assert alive(leader) == 0


def test_signals_are_given_back() -> None:
    """After the group a signal does what it did before it."""
    before = [signal.getsignal(number) for number in processes.STOP_SIGNALS]
    with ProcessGroup({}):
        assert [signal.getsignal(number) for number in processes.STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in processes.STOP_SIGNALS] == before
