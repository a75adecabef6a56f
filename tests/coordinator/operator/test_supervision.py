"""Supervision: killed servers are restarted with their state; a killed coordinator leaves no process."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from deployment import COORDINATOR, call, processes_of, serving

from coordinator.operator import supervision
from coordinator.operator.supervision import supervise
from fedpp.errors import FederationError
from fedpp.processes import ProcessGroup, alive, free_port

SHORT, ENDLESS = ["sh", "-c", "exit 3"], ["sleep", "600"]


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def servers(folder: Path) -> tuple[int, dict[str, int]]:
    """Return the process group of a coordinator's servers, and the servers by name."""
    (superlink,) = processes_of(folder, "bin/flower-superlink")
    (superexec,) = processes_of(folder, "bin/flower-superexec")
    group = os.getpgid(superlink)
    nginx = [p for p in alive(group) if Path(f"/proc/{p}/cmdline").read_bytes().startswith(b"nginx: master")]
    return group, {"flower-superlink": superlink, "flower-superexec": superexec, "nginx": nginx[0]}


@pytest.mark.parametrize(
    "killed",
    [("flower-superexec",), pytest.param(("flower-superlink", "flower-superexec", "nginx"), marks=pytest.mark.slow)],
)
def test_after_a_kill_all_end_and_new_ones_serve(killed: tuple[str, ...], tmp_path: Path) -> None:
    """SIGKILL of `up` ends SuperLink, SuperExec and nginx with its workers at once; the next `up` serves.

    After SIGKILL of one server all are ended, and new ones serve the same nodes. SIGSTOP first: a server that cannot
    even handle a signal, and all that it started, is gone as well. SIGTERM ends `up` during a restart, with status 0.
    """
    log, state, port = tmp_path / "log", tmp_path / "state", free_port()
    up = [*COORDINATOR, "up", "--state", str(state), "--port", str(port), "--listen", f"127.0.0.1:{free_port()}"]
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    (tmp_path / "node.pub").write_bytes(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    enrol = [*COORDINATOR, "enrol", "--state", str(state), str(tmp_path / "node.pub"), "A"]
    with serving(log, up, "coordinator ready at", signal.SIGKILL, -signal.SIGKILL):
        call(enrol)
        group, _ = servers(tmp_path)
        assert len(alive(group)) == 6  # the keeper, SuperLink, SuperExec, nginx and two workers
    wait_until(lambda: alive(group) == [], 2)
    with serving(log, up, "coordinator ready at") as coordinator:
        old = set()
        for number, name in enumerate(killed, 1):
            group, running = servers(tmp_path)
            old |= set(alive(group))
            for other in set(running) - {name}:
                os.kill(running[other], signal.SIGSTOP)
            os.kill(running[name], signal.SIGKILL)
            wait_until(lambda n=number: log.read_text().count("note: the servers answer again\n") == n)
            assert f"note: {name} (Killed) ended by itself: all servers are restarted\n" in log.read_text()
            assert alive(group) == []
        assert coordinator.poll() is None
        assert "is enrolled already" in call(enrol, status=1).stderr
        group, running = servers(tmp_path)
        assert not old & set(alive(group))
        os.kill(running["flower-superlink"], signal.SIGKILL)
        wait_until(lambda: log.read_text().count("all servers are restarted") == len(killed) + 1)
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 5
    assert log.read_text().count("answer again") == len(killed)
    assert log.read_text().count("coordinator ready at") == 1
    assert processes_of(tmp_path) == {}


def test_servers_that_do_not_start_end_the_command(tmp_path: Path) -> None:
    """If SuperLink fails to start at first, the command ends with one line that names the log; no process is left."""
    state = tmp_path / "state"
    (state / "superlink.sqlite").mkdir(parents=True)
    port = free_port()
    done = call([*COORDINATOR, "up", "--state", str(state), "--port", str(port)], status=1)
    assert done.stdout == ""
    log = state / "servers.log"
    assert done.stderr.splitlines() == [
        f"note: SuperLink, nginx and the ServerApps log to {log}",
        f"coordinator up: flower-superlink (status 1) ended before 127.0.0.1:{port} answered: see {log}",
    ]
    assert "unable to open database file" in log.read_text()
    assert processes_of(tmp_path) == {}


def test_servers_that_keep_ending_end_the_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Servers that answer and end at once are restarted a bounded number of times, each in a new group."""
    monkeypatch.setattr(supervision, "MAX_FAILURES", 2)
    groups = []
    with ProcessGroup({}) as group:

        def start() -> None:
            assert all(alive(old) == [] for old in groups)
            groups.append(os.getpgid(group.start(ENDLESS)))
            group.start(SHORT)

        with pytest.raises(FederationError, match=r"sh \(status 3\) ended by itself, 3 times in a row"):
            supervise(group, start, lambda: None)
    assert len(groups) == 3
    assert capfd.readouterr().err.count("restarted") == 2


def test_servers_that_served_for_long_are_always_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only failures in a row count, not an end after a while or a single failed start."""
    monkeypatch.setattr(supervision, "MAX_FAILURES", 1)
    monkeypatch.setattr(supervision, "QUICK_SECONDS", 0.0)
    starts = []
    with ProcessGroup({}) as group:

        def start() -> None:
            starts.append(group.start(["sh", "-c", "sleep 0.01"]))
            if len(starts) == 5:
                group.stopped.set()

        supervise(group, start, lambda: None)
    assert len(starts) == 5


def test_an_overloaded_machine_is_retried(capfd: pytest.CaptureFixture[str]) -> None:
    """An error of the system does not end a coordinator that served; at the first start it does."""
    starts = []
    with ProcessGroup({}) as group:

        def start() -> None:
            starts.append(1)
            if len(starts) == 2:
                raise BlockingIOError("Resource temporarily unavailable")
            group.start(SHORT)
            if len(starts) == 3:
                group.stopped.set()

        supervise(group, start, lambda: None)
        assert len(starts) == 3
        group.stopped.clear()
        starts[:] = [1]
        with pytest.raises(BlockingIOError):
            supervise(group, start, lambda: None)
    assert "note: Resource temporarily unavailable: all servers are restarted" in capfd.readouterr().err
