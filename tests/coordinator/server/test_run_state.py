"""What a run keeps on the disk: whole or not at all, one process at a time, and patient while the disk is full."""

import errno
import fcntl
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from coordinator_runs import describe

from coordinator.server import run_state
from coordinator.server.progress import Progress, ProgressFile
from coordinator.server.run_state import Checkpoint, ClosedAggregate, Position, RunState, StoppedError, patiently
from fedpp import files
from fedpp.aggregation.round_context import Aggregate, Contribution
from fedpp.errors import FederationError
from fedpp.protocol import messages
from fedpp.protocol.run_record import RoundRecord
from simulations.benchmarks.simulated_client import counted

SITE = describe("a")
POSITION = Position(2, 1, {"a": SITE}, {"a": "cd" * 32}, {"b": "its words"})
OF = Aggregate((Contribution("a", "ab" * 32, 3, 2),), 7)
CLOSED = ClosedAggregate(
    2, 1, OF, messages.WORDS, np.arange(9, dtype="<u8"), {"b": "late"}, {"a": "far"}, b"\x00 moments"
)
ROUND = RoundRecord(1, ("a",), {"a": counted(SITE, 2)}, 1.5, 2, {"b": "late"}, {"a": "far"})
CHECKPOINT = Checkpoint(1, "ef" * 32, b"\n state \x00", (ROUND,), 3.5, b"\x00 moments")


@pytest.fixture
def folder(tmp_path: Path) -> RunState:
    made = RunState(tmp_path)
    with made.held():
        return made


def test_what_is_kept_is_read_back(folder: RunState) -> None:
    """Position, sum and checkpoint are what they were, to the bit; before they are kept there are none."""
    assert (folder.position(), folder.closed(POSITION), folder.checkpoint(TINY)) == (None, None, None)
    folder.begin(POSITION)
    folder.close(CLOSED)
    folder.keep(CHECKPOINT)
    assert folder.position() == POSITION
    closed = folder.closed(POSITION)
    assert closed is not None
    np.testing.assert_array_equal(closed.words, CLOSED.words)
    assert replace(closed, words=CLOSED.words) == CLOSED
    assert folder.checkpoint(TINY) == CHECKPOINT
    folder.finish()
    assert (folder.position(), folder.closed(POSITION), folder.checkpoint(TINY)) == (None, None, None)


def test_a_sum_of_another_attempt_is_none(folder: RunState) -> None:
    """What was closed for an attempt is not sent for the next."""
    folder.close(CLOSED)
    for other in (replace(POSITION, attempt=2), replace(POSITION, round=3)):
        assert folder.closed(other) is None


def test_a_run_s_nonce_is_drawn_once(folder: RunState) -> None:
    """Who goes on has the nonce of who began: masks, seals and the sites' memory are bound to it."""
    assert [folder.nonce("1" * 64), folder.nonce("2" * 64)] == ["1" * 64] * 2


@pytest.mark.parametrize("name", ["position", "sum", "checkpoint", "nonce"])
def test_every_damage_is_seen(name: str, folder: RunState) -> None:
    """A file with a byte changed, cut or added is refused in one line that says what to do."""
    folder.nonce("1" * 64)
    folder.begin(POSITION)
    folder.close(CLOSED)
    folder.keep(CHECKPOINT)
    read = {
        "position": folder.position,
        "sum": lambda: folder.closed(POSITION),
        "checkpoint": lambda: folder.checkpoint(TINY),
        "nonce": lambda: folder.nonce("2" * 64),
    }[name]
    path = folder.folder / name
    whole = path.read_bytes()
    places = range(0, len(whole), 1 if len(whole) < 2000 else 11)
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places]
    for content in (*damaged, b"", whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(FederationError, match="is damaged: begin a new run, with --model"):
            read()
    path.write_bytes(whole)
    assert read() is not None


def test_one_process_at_a_time_has_a_run(folder: RunState, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another is refused while the first lives, and let in when it was killed."""
    monkeypatch.setattr(run_state, "HELD_SECONDS", 0.1)
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    holder = context.Process(target=_hold, args=(folder.out, begun))
    holder.start()
    assert begun.wait(10)
    assert folder.is_held()
    with pytest.raises(FederationError, match="another process runs the federation of"), folder.held():
        pass
    holder.kill()
    holder.join()
    assert not folder.is_held()
    with folder.held():
        assert folder.is_held()


def test_who_only_looks_on_keeps_nobody_out(folder: RunState) -> None:
    """A look takes the lock for a moment: who begins a run waits for that long."""
    with (folder.folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        looked = threading.Timer(0.2, fcntl.flock, (lock, fcntl.LOCK_UN))
        looked.start()
        with folder.held():
            assert folder.is_held()
        looked.join()


def _hold(out: Path, begun: "multiprocessing.synchronize.Event") -> None:
    with RunState(out).held():
        begun.set()
        time.sleep(60)


def test_what_a_killed_writer_left_is_removed(folder: RunState) -> None:
    """A file that was half-written does not stay beside the whole one."""
    left = folder.folder / ".checkpoint.abc.tmp"
    left.write_bytes(b"half")
    with folder.held():
        assert not left.exists()


def full(times: int) -> "tuple[list[float], object]":
    """Return a write that fails so many times as on a full disk, and when it was tried."""
    tried: list[float] = []

    def write() -> None:
        tried.append(time.monotonic())
        if len(tried) <= times:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return tried, write


def test_a_full_disk_is_waited_for(
    folder: RunState, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The write is tried again until there is room, and told of once."""
    monkeypatch.setattr(run_state, "RETRY_SECONDS", 0.01)
    tried, write = full(3)
    patiently(write, 60.0, folder)
    assert len(tried) == 4
    assert capsys.readouterr().err.count("is full: free some space; trying again for 60 s") == 1


def test_a_disk_that_stays_full_fails_the_run_in_bounded_time(
    folder: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one line says what to do; another error of the disk is none to wait for."""
    monkeypatch.setattr(run_state, "RETRY_SECONDS", 0.01)
    _, write = full(10**6)
    with pytest.raises(FederationError, match="is full: free some space, and go on with run --resume"):
        patiently(write, 0.05, folder)

    def broken() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error"):
        patiently(broken, 60.0, folder)


def test_somebody_may_stop_a_run(folder: RunState) -> None:
    """Who stopped it is obeyed until it is begun again."""
    folder.require_going()
    folder.stop.touch()
    with pytest.raises(StoppedError, match="the run was stopped; go on with run --resume"):
        folder.require_going()
    folder.clear()
    folder.require_going()


def test_progress_is_for_whoever_looks_on(tmp_path: Path) -> None:
    """What was told last is read back; who is late and how long it takes follow from it; no file is no progress yet."""
    path = tmp_path / "progress"
    assert Progress.load(path) == Progress()
    told = ProgressFile(path, Progress(run="7", rounds=5), now=lambda: 11.0)
    told.tell(phase="training", round=2, sites={"a": "asked", "b": "asked"}, round_seconds=30.0)
    told.site("b", "answered")
    seen = Progress.load(path)
    assert seen == Progress("7", "training", 2, 5, 1, {"a": "asked", "b": "answered"}, 0.0, 11.0, 30.0)
    assert (seen.late, seen.eta, seen.ended) == (("a",), 120.0, False)
    told.tell(phase="completed")
    assert (Progress.load(path).eta, Progress.load(path).ended) == (0.0, True)
    path.write_text("{")
    assert Progress.load(path) == Progress()


def test_progress_that_cannot_be_written_costs_the_run_nothing(tmp_path: Path) -> None:
    """Its folder is gone, or full: the run goes on."""
    gone = ProgressFile(tmp_path / "progress", Progress())
    (tmp_path / "progress").unlink()
    (tmp_path / "progress").mkdir()  # nothing can be renamed to a folder's name
    gone.tell(phase="training")
    assert [path.name for path in tmp_path.iterdir()] == ["progress"]


def test_the_end_is_told_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs it would start another for ever: the end takes the place of what was told before."""
    told = ProgressFile(tmp_path / "progress", Progress(run="7"))

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "replace", fails)
    told.tell(phase="training")
    assert Progress.load(tmp_path / "progress").phase == "waiting"
    told.tell(phase="failed", reason="the disk is full")
    seen = Progress.load(tmp_path / "progress")
    assert (seen.run, seen.phase, seen.reason) == ("7", "failed", "the disk is full")
