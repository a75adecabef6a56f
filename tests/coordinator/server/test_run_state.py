"""Run state on the disk: whole or damaged, held by one process, and patient while the disk is full."""

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
from coordinator.server.run_state import Checkpoint, JournalEntry, RoundAggregate, RunState, StoppedError, patiently
from fedpp import files
from fedpp.aggregation.round_context import Aggregate, Contribution
from fedpp.errors import FederationError
from fedpp.protocol import messages
from fedpp.protocol.run_record import RoundRecord
from simulations.benchmarks.simulated_client import counted

SITE = describe("a")
ENTRY = JournalEntry(2, 1, {"a": SITE}, {"a": "cd" * 32}, {"b": "its update"})
OF = Aggregate((Contribution("a", 3),))
AGGREGATE = RoundAggregate(
    2, 1, OF, messages.WORDS, np.arange(9, dtype="<u8"), {"b": "late"}, {"a": "far"}, b"\x00 moments", (4, 2)
)
ROUND = RoundRecord(1, ("a",), {"a": counted(SITE, 2)}, 1.5, 2, {"b": "late"}, {"a": "far"})
CHECKPOINT = Checkpoint(1, "ef" * 32, b"\n state \x00", (ROUND,), 3.5, b"\x00 moments", (4, 2))


@pytest.fixture
def folder(tmp_path: Path) -> RunState:
    made = RunState(tmp_path)
    with made.held():
        return made


def write(folder: RunState) -> None:
    folder.write_journal(ENTRY)
    folder.write_aggregate(AGGREGATE)
    folder.write_checkpoint(CHECKPOINT)


def test_what_is_written_is_read_back(folder: RunState) -> None:
    """Journal, aggregate and checkpoint are equal to the bit; there are none before they are written."""
    assert (folder.journal(), folder.aggregate(ENTRY), folder.checkpoint(TINY)) == (None, None, None)
    write(folder)
    assert folder.journal() == ENTRY
    aggregate = folder.aggregate(ENTRY)
    assert aggregate is not None
    np.testing.assert_array_equal(aggregate.content, AGGREGATE.content)
    assert vars(aggregate) | {"content": ()} == vars(AGGREGATE) | {"content": ()}
    assert folder.checkpoint(TINY) == CHECKPOINT
    folder.finish()
    assert (folder.journal(), folder.aggregate(ENTRY), folder.checkpoint(TINY)) == (None, None, None)


def test_the_aggregate_of_another_attempt_is_not_used(folder: RunState) -> None:
    """An attempt's aggregate is not sent for the next attempt or round."""
    folder.write_aggregate(AGGREGATE)
    for other in (replace(ENTRY, attempt=2), replace(ENTRY, round=3)):
        assert folder.aggregate(other) is None


def test_a_run_s_nonce_is_drawn_once(folder: RunState) -> None:
    """A resumed run has the nonce of the first start: masks, seals and the sites' reply caches are bound to it."""
    assert [folder.nonce("1" * 64), folder.nonce("2" * 64)] == ["1" * 64] * 2


def test_nonce_and_end_of_a_run_can_be_fixed_before_its_start(folder: RunState) -> None:
    """A run takes what was fixed, and else what its ServerApp chooses."""
    assert folder.expires(7) == 7
    folder.fix("3" * 64, 5)
    assert (folder.nonce("1" * 64), folder.expires(7)) == ("3" * 64, 5)


@pytest.mark.parametrize("name", ["journal", "aggregate", "checkpoint", "nonce"])
def test_every_damage_is_detected(name: str, folder: RunState) -> None:
    """A file with a byte changed, cut or added is refused in one line that says what to do."""
    folder.nonce("1" * 64)
    write(folder)
    read = {
        "journal": folder.journal,
        "aggregate": lambda: folder.aggregate(ENTRY),
        "checkpoint": lambda: folder.checkpoint(TINY),
        "nonce": lambda: folder.nonce("2" * 64),
    }[name]
    path = folder.folder / name
    whole = path.read_bytes()
    places = range(0, len(whole), 1 if len(whole) < 2000 else 11)
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places]
    for content in (*damaged, b"", whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(FederationError, match="is damaged: start a new run, with --model"):
            read()
    path.write_bytes(whole)
    assert read() is not None


def test_one_process_at_a_time_holds_a_run(folder: RunState, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process is refused while the first runs, and accepted after the first was killed."""
    monkeypatch.setattr(run_state, "HELD_SECONDS", 0.1)
    context = multiprocessing.get_context("fork")
    started = context.Event()
    holder = context.Process(target=_hold, args=(folder.out, started))
    holder.start()
    assert started.wait(10)
    assert folder.is_held()
    with pytest.raises(FederationError, match="another process runs the federation of"), folder.held():
        pass
    holder.kill()
    holder.join()
    assert not folder.is_held()
    with folder.held():
        assert folder.is_held()


def test_status_does_not_keep_a_run_from_starting(folder: RunState) -> None:
    """`status` holds the lock for a moment, and a start waits for that long."""
    with (folder.folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        looked = threading.Timer(0.2, fcntl.flock, (lock, fcntl.LOCK_UN))
        looked.start()
        with folder.held():
            assert folder.is_held()
        looked.join()


def _hold(out: Path, started: "multiprocessing.synchronize.Event") -> None:
    with RunState(out).held():
        started.set()
        time.sleep(60)


def test_a_killed_writer_s_temporary_file_is_removed(folder: RunState) -> None:
    """A half-written file does not stay beside the whole one."""
    left = folder.folder / ".checkpoint.abc.tmp"
    left.write_bytes(b"half")
    with folder.held():
        assert not left.exists()


def full(times: int) -> "tuple[list[float], object]":
    """Return a write that fails so many times as on a full disk, and the moments of its calls."""
    tried: list[float] = []

    def write() -> None:
        tried.append(time.monotonic())
        if len(tried) <= times:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return tried, write


def test_a_full_disk_is_waited_for(
    folder: RunState, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The write is retried until there is room, and one line is logged."""
    monkeypatch.setattr(run_state, "RETRY_SECONDS", 0.01)
    tried, call = full(3)
    patiently(call, 60.0, folder)
    assert len(tried) == 4
    assert capsys.readouterr().err.count("is full: free some space; retrying for 60 s") == 1


def test_a_disk_that_stays_full_fails_the_run_in_bounded_time(
    folder: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to do; another error of the disk is raised at once."""
    monkeypatch.setattr(run_state, "RETRY_SECONDS", 0.01)
    _, call = full(10**6)
    with pytest.raises(FederationError, match="is full: free some space, and resume with run --resume"):
        patiently(call, 0.05, folder)

    def broken() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error"):
        patiently(broken, 60.0, folder)


def test_the_operator_may_stop_a_run(folder: RunState) -> None:
    """The run stays stopped until it is cleared for a resume."""
    folder.require_not_stopped()
    folder.stop.touch()
    with pytest.raises(StoppedError, match="the run was stopped; resume it with run --resume"):
        folder.require_not_stopped()
    folder.clear()
    folder.require_not_stopped()


def test_progress_is_read_back(tmp_path: Path) -> None:
    """The last update is read back, with the pending sites and the remaining time; no file means no progress yet."""
    path = tmp_path / "progress"
    assert Progress.load(path) == Progress()
    file = ProgressFile(path, Progress(run="7", rounds=5), now=lambda: 11.0)
    file.update(phase="training", round=2, sites={"a": "pending", "b": "pending"}, round_seconds=30.0)
    file.site("b", "replied")
    seen = Progress.load(path)
    assert seen == Progress("7", "training", 2, 5, 1, {"a": "pending", "b": "replied"}, 0.0, 11.0, 30.0)
    assert (seen.pending, seen.eta, seen.ended) == (("a",), 120.0, False)
    file.update(phase="completed")
    assert (Progress.load(path).eta, Progress.load(path).ended) == (0.0, True)
    path.write_text("{")
    assert Progress.load(path) == Progress()


def test_progress_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    """Its folder is gone, or the disk full: the run continues."""
    gone = ProgressFile(tmp_path / "progress", Progress())
    (tmp_path / "progress").unlink()
    (tmp_path / "progress").mkdir()  # nothing can be renamed to a folder's name
    gone.update(phase="training")
    assert [path.name for path in tmp_path.iterdir()] == ["progress"]


def test_the_end_is_written_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` would restart the ServerApp for ever: the end overwrites the last progress in place."""
    file = ProgressFile(tmp_path / "progress", Progress(run="7"))

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "replace", fails)
    file.update(phase="training")
    assert Progress.load(tmp_path / "progress").phase == "waiting"
    file.update(phase="failed", reason="the disk is full")
    seen = Progress.load(tmp_path / "progress")
    assert (seen.run, seen.phase, seen.reason) == ("7", "failed", "the disk is full")
