"""Submission of a run through crashes of its ServerApps, which are threads here."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from coordinator.operator import submission
from coordinator.operator.flower_command import NoSuperLinkError
from coordinator.operator.submission import Submission
from coordinator.operator.superlink import State
from coordinator.server.progress import Progress, ProgressFile
from coordinator.server.run_state import RunState
from fedpp.errors import FederationError

pytestmark = pytest.mark.timeout(60)  # a test that is never stopped fails
ServerApp = Callable[[RunState, str], None]
AWAY = NoSuperLinkError("no SuperLink answers")


def completes(folder: RunState, run: str) -> None:
    with folder.held():
        ProgressFile(folder.progress, Progress(run, "completed", 2))


def dies(folder: RunState, run: str, *, number: int = 1) -> None:
    with folder.held():
        folder.nonce("0")
        ProgressFile(folder.progress, Progress(run, "training", number))


def dies_later(folder: RunState, run: str) -> None:
    dies(folder, run, number=int(run))


def never_starts(folder: RunState, run: str) -> None:
    del folder, run


def stops_when_asked(folder: RunState, run: str) -> None:
    with folder.held():
        os.kill(os.getpid(), signal.SIGTERM)
        while not folder.stop.exists():
            time.sleep(0.01)
        ProgressFile(folder.progress, Progress(run, "stopped", 1, reason="stopped in round 1"))


def hangs(folder: RunState, run: str) -> None:
    with folder.held():
        ProgressFile(folder.progress, Progress(run, "training", 1))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)


class SuperLink:
    """Flower's command line: the ServerApp that each `run` starts, or its error, and the output of each `list`."""

    def __init__(self, folder: RunState, runs: Iterator[ServerApp | FederationError]) -> None:
        self.folder, self.runs = folder, runs
        self.listed: list[str | FederationError] = []
        self.calls: list[str] = []
        self.servers: list[Thread] = []

    def __call__(self, state: State, command: str, *arguments: str) -> dict[str, Any]:
        del state
        if command == "run":
            started = next(self.runs)
            if isinstance(started, FederationError):
                raise started
            number = str(len(self.servers) + 1)
            self.servers.append(Thread(target=started, args=(self.folder, number), daemon=True))
            self.servers[-1].start()
            self.calls.append("run")
            return {"run-id": number}
        if command == "stop":
            self.calls.append(f"stop {arguments[0]}")
            return {}
        assert (command, arguments[-1]) == ("list", str(len(self.servers)))
        status = self.listed.pop(0)
        if isinstance(status, FederationError):
            raise status
        return {"runs": [{"status": status, "status-details": ""}]}


Carry = Callable[..., tuple[Progress, SuperLink]]


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Carry]:
    """Return the end of a run with these ServerApps, and the calls to SuperLink."""
    folder, state = RunState(tmp_path), State(tmp_path)
    folder.folder.mkdir()
    state.connection.parent.mkdir()
    for path in (state.connection, state.names):
        path.touch()
    for name, value in {"POLL_SECONDS": 0.01, "STATUS_SECONDS": 0.02, "STOP_SECONDS": 0.2, "MAX_CRASHES": 3}.items():
        monkeypatch.setattr(submission, name, value)
    monkeypatch.setattr(submission, "built", lambda app: b"")
    links = []

    def carry(
        *runs: ServerApp | FederationError, listed: tuple[str | FederationError, ...] = (), wait: float = 60.0
    ) -> tuple[Progress, SuperLink]:
        links.append(superlink := SuperLink(folder, iter(runs)))
        superlink.listed = list(listed)
        monkeypatch.setattr(submission, "flower", superlink)
        return Submission(state, folder, {"wait-seconds": wait}).carry_out(), superlink

    yield carry
    for server in (server for link in links for server in link.servers):
        server.join(5)


def test_a_run_that_ends_is_submitted_once(carried: Carry) -> None:
    """The end is the one that its ServerApp reported."""
    ended, superlink = carried(completes)
    assert (ended.run, ended.phase, ended.round) == ("1", "completed", 2)
    assert superlink.calls == ["run"]


def test_a_crashed_server_is_replaced(carried: Carry, capsys: pytest.CaptureFixture[str]) -> None:
    """Each crashed one is replaced, and its run is stopped at SuperLink."""
    ended, superlink = carried(dies, dies, completes)
    assert (ended.run, ended.phase) == ("3", "completed")
    assert superlink.calls == ["run", "run", "stop 1", "run", "stop 2"]
    assert capsys.readouterr().err.count("the ServerApp crashed in round 1: a new one resumes the run\n") == 2


def test_servers_that_keep_crashing_fail_the_run(carried: Carry, tmp_path: Path) -> None:
    """After a bounded number of crashes in one round; each later round starts a new count."""
    ended, _ = carried(dies, dies, dies, dies_later, dies_later, dies_later, completes)
    assert ended.phase == "completed"
    RunState(tmp_path).clear()
    with pytest.raises(
        FederationError,
        match=r"crashed 4 times in round 1: see .*servers\.log, and resume with run --resume",
    ):
        carried(dies, dies, dies, dies, completes)
    progress = Progress.load(RunState(tmp_path).progress)
    assert (progress.phase, progress.reason[:29]) == ("failed", "the ServerApp crashed 4 times")


def test_an_unavailable_superlink_is_waited_for(
    carried: Carry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a started run; a new one fails at once, and so does one whose wait is over."""
    with pytest.raises(NoSuperLinkError):
        carried(AWAY, completes)
    ended, superlink = carried(dies, AWAY, AWAY, completes)
    assert (ended.phase, superlink.calls) == ("completed", ["run", "run", "stop 1"])
    assert capsys.readouterr().err.count("no SuperLink answers; retrying\n") == 1
    RunState(tmp_path).clear()  # as `run` does: otherwise the last end may be read before the next ServerApp starts
    with pytest.raises(NoSuperLinkError):
        carried(dies, AWAY, AWAY, completes, wait=0.0)


@pytest.mark.parametrize("over", ["finished:failed", FederationError("Run 1 not found")])
def test_a_server_that_does_not_start_is_replaced(
    carried: Carry, capsys: pytest.CaptureFixture[str], over: str | FederationError
) -> None:
    """Once SuperLink reports that its run is over, or does not know it; until then it may still start."""
    ended, superlink = carried(never_starts, completes, listed=("starting", AWAY, over))
    assert (ended.run, ended.phase) == ("2", "completed")
    assert superlink.listed == []
    assert f"the ServerApp did not start: {over}\n" in capsys.readouterr().err


def test_a_submission_that_succeeded_once_is_retried(
    carried: Carry,
) -> None:
    """Whatever SuperLink replies: an overloaded machine must not fail the run."""
    ended, superlink = carried(never_starts, FederationError("refused"), completes, listed=("finished:failed",))
    assert (ended.phase, superlink.calls) == ("completed", ["run", "run", "stop 1"])


def test_a_stop_signal_stops_the_run(carried: Carry) -> None:
    """Its ServerApp ends by itself, and reports the end."""
    ended, superlink = carried(stops_when_asked)
    assert (ended.phase, ended.reason, superlink.calls) == ("stopped", "stopped in round 1", ["run"])


def test_a_server_that_does_not_stop_is_given_up(carried: Carry, tmp_path: Path) -> None:
    """SuperLink ends it, and the run is recorded as stopped."""
    ended, superlink = carried(hangs)
    assert (ended.phase, superlink.calls) == ("stopped", ["run", "stop 1"])
    progress = Progress.load(RunState(tmp_path).progress)
    assert (progress.phase, progress.reason) == ("stopped", "the run was stopped; resume it with run --resume")
