"""What a run has on the disk while it goes on, in the folder `run` of its results: enough to go on after any death.

::

    run/lock        held by the ServerApp that runs: no other one writes, and who died holds nothing
    run/order       the settings that `run` was given
    run/app         the sources of the bundle that it submits, as they were then
    run/nonce       the run's nonce
    run/position    which attempt at which round is made, and whose plan it follows; written before a site is asked
    run/sum         the sum of an attempt, or what a strategy made of it, and of whose updates; written before a site is
                    sent it
    run/checkpoint  the last round that the sites adopted: its state, all rounds so far, and what a strategy remembers
    run/progress    for people: where the run is (see `coordinator.server.progress`)
    run/log         what the run tells, line by line

Each file is replaced as a whole: who dies in between leaves the old one or the new one.
"""

import errno
import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fedpp import files
from fedpp.aggregation.ring import EncodedUpdate
from fedpp.aggregation.round_context import Aggregate
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import FederationError
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import FindingCounts
from fedpp.protocol.run_record import RoundRecord
from fedpp.protocol.site_description import SiteDescription
from fedpp.texts import one_line

FORMAT = "fedpp-run-1"
FULL = (errno.ENOSPC, errno.EDQUOT)
RETRY_SECONDS = 2.0
LOCK_SECONDS = 0.05  # between two tries to get the lock
HELD_SECONDS = 10.0  # a ServerApp that was told to end may take a moment, and who looks on holds the lock for one
_SUM_BYTES = 32


@dataclass(frozen=True)
class Position:
    """Which attempt is made, and which sites' plan it follows."""

    round: int
    attempt: int
    sites: Mapping[str, SiteDescription]  # all that were admitted so far, by name
    datasets: Mapping[str, str]  # site -> fingerprint of the dataset that it signed for
    quarantined: Mapping[str, str]  # site -> reason


@dataclass(frozen=True)
class ClosedAggregate:
    """What became of an attempt's updates."""

    round: int
    attempt: int
    total: Aggregate  # whose they are
    name: str  # of the array that the sites are sent
    words: EncodedUpdate
    left_out: Mapping[str, str]  # site -> reason
    flagged: Mapping[str, str]  # site -> what is odd about its update
    memory: bytes  # of the aggregation, for the next round, should the sites adopt what came of this one


@dataclass(frozen=True)
class Checkpoint:
    """The last round that the sites adopted; of round 0 nothing but the initial state."""

    round: int
    digest: str  # of the state in it, as the sites named it
    state: bytes  # as a site sent it, sealed or in clear
    rounds: tuple[RoundRecord, ...]
    seconds: float  # that the run took so far, but for what was done in vain
    memory: bytes = b""  # of the aggregation, which began with none


class StoppedError(FederationError):
    """Somebody stopped the run."""

    def __init__(self) -> None:
        super().__init__("the run was stopped; go on with run --resume")


@dataclass(frozen=True)
class RunState:
    """The folder `run` of a run's results."""

    out: Path

    @property
    def folder(self) -> Path:
        """Return its path."""
        return self.out / "run"

    @property
    def log(self) -> Path:
        """Return the file of what the run tells."""
        return self.folder / "log"

    @property
    def progress(self) -> Path:
        """Return the file of where the run is."""
        return self.folder / "progress"

    @property
    def order(self) -> Path:
        """Return the file of the settings that the run was begun with."""
        return self.folder / "order"

    @property
    def app(self) -> Path:
        """Return the folder of the sources that the run was begun with."""
        return self.folder / "app"

    @property
    def stop(self) -> Path:
        """Return the file that stops the run, if it is there."""
        return self.folder / "stop"

    def note(self, text: str) -> None:
        """Tell the user how far the run is, in one line: on stderr, and in the log unless the disk is full."""
        line = one_line(text)
        print(line, file=sys.stderr, flush=True)
        with suppress(OSError), self.log.open("a") as log:
            log.write(f"{line}\n")

    def require_going(self) -> None:
        """Raise `StoppedError` if somebody stopped the run."""
        if self.stop.exists():
            raise StoppedError

    def clear(self) -> None:
        """Forget how the run ended: it goes on."""
        for left in (self.stop, self.progress):
            left.unlink(missing_ok=True)

    def was_begun(self) -> bool:
        """Tell whether the run was begun by a ServerApp."""
        return (self.folder / "nonce").exists()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the run to this process; raise `FederationError` while another has it."""
        files.make_folder(self.folder, 0o700)
        with (self.folder / "lock").open("w") as lock:
            deadline = time.monotonic() + HELD_SECONDS
            while not _locked(lock.fileno(), fcntl.LOCK_EX):
                if time.monotonic() >= deadline:
                    raise FederationError(f"another process runs the federation of {self.out}: wait until it ends")
                time.sleep(LOCK_SECONDS)
            for left in self.folder.glob(".*.tmp"):  # of who was killed while it wrote
                left.unlink()
            yield

    def is_held(self) -> bool:
        """Tell whether a process has the run."""
        with suppress(FileNotFoundError), (self.folder / "lock").open() as lock:
            return not _locked(lock.fileno(), fcntl.LOCK_SH)
        return False

    def nonce(self, drawn: str) -> str:
        """Return the run's nonce; one that begins gets the one that was drawn."""
        if not (path := self.folder / "nonce").exists():
            self._write(path, {"nonce": drawn}, b"")
        return str(self._read(path)[0]["nonce"])

    def position(self) -> Position | None:
        """Return the attempt that was begun last, if one was."""
        if not (path := self.folder / "position").exists():
            return None
        facts, _ = self._read(path)
        sites = {name: SiteDescription.from_mapping(site) for name, site in facts.pop("sites").items()}
        return Position(**facts, sites=sites)

    def begin(self, position: Position) -> None:
        """Keep which attempt is made."""
        sites = {name: site.to_mapping() for name, site in position.sites.items()}
        self._write(self.folder / "position", {**vars(position), "sites": sites}, b"")

    def closed(self, at: Position) -> ClosedAggregate | None:
        """Return the sum of this attempt, if it was closed."""
        if not (path := self.folder / "sum").exists():
            return None
        facts, content = self._read(path)
        if (facts["round"], facts["attempt"]) != (at.round, at.attempt):
            return None
        size = facts.pop("memory")
        words = np.frombuffer(content[: len(content) - size], facts.pop("dtype"))
        memory = content[len(content) - size :]
        return ClosedAggregate(**{**facts, "total": Aggregate.from_json(facts["total"])}, words=words, memory=memory)

    def close(self, closed: ClosedAggregate) -> None:
        """Keep an attempt's sum: a second one, of other sites, no vault would unmask."""
        facts = {name: value for name, value in vars(closed).items() if name != "words"}
        facts |= {"total": closed.total.to_json(), "dtype": closed.words.dtype.str, "memory": len(closed.memory)}
        self._write(self.folder / "sum", facts, closed.words.tobytes() + closed.memory)

    def checkpoint(self, network: ModelSpec) -> Checkpoint | None:
        """Return the last adopted round, if there is one, of a run of this network."""
        if not (path := self.folder / "checkpoint").exists():
            return None
        facts, content = self._read(path)
        kind = FindingCounts if network.multi_label else Counts
        rounds = tuple(RoundRecord.from_mapping(of, kind) for of in facts.pop("rounds"))
        size = facts.pop("memory")
        state, memory = content[: len(content) - size], content[len(content) - size :]
        return Checkpoint(**facts, state=state, rounds=rounds, memory=memory)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Keep an adopted round in place of the one before."""
        facts = {name: value for name, value in vars(checkpoint).items() if name != "state"}
        facts |= {"rounds": [of.to_mapping() for of in checkpoint.rounds], "memory": len(checkpoint.memory)}
        self._write(self.folder / "checkpoint", facts, checkpoint.state + checkpoint.memory)

    def finish(self) -> None:
        """Remove what a run needs to go on: it is over."""
        for name in ("sum", "position", "checkpoint"):
            (self.folder / name).unlink(missing_ok=True)

    def _write(self, path: Path, facts: Mapping[str, Any], content: bytes) -> None:
        header = json.dumps({"format": FORMAT, **facts}).encode() + b"\n"
        total = sha256(header)
        total.update(content)
        files.replace(path, b"".join((header, content, total.digest())))

    def _read(self, path: Path) -> tuple[dict[str, Any], bytes]:
        """Return what `_write` wrote; raise `FederationError` for anything else."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise FederationError(f"cannot read {path}: {error.strerror}; the run cannot go on") from None
        try:
            return _parsed(content)
        except (ValueError, KeyError, AttributeError):
            raise FederationError(
                f"{path} is damaged: begin a new run, with --model from the last model in {path.parents[1]}"
            ) from None


def _locked(descriptor: int, kind: int) -> bool:
    """Lock a file, if that needs no waiting, and tell whether it did not."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parsed(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the facts and the content of a file; raise `ValueError`, `KeyError` or `AttributeError` if it is none."""
    if sha256(memoryview(content)[:-_SUM_BYTES]).digest() != content[-_SUM_BYTES:]:
        raise ValueError
    end = content.index(b"\n")
    facts = json.loads(content[:end])
    if facts.pop("format") != FORMAT:
        raise ValueError
    return facts, content[end + 1 : -_SUM_BYTES]


def patiently(write: Callable[[], None], seconds: float, folder: RunState) -> None:
    """Write; while the disk is full, say so and try again, for so long; raise `FederationError` after that."""
    deadline, told = time.monotonic() + seconds, False
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in FULL:
                raise
            if not told:
                folder.note(f"the disk of {folder.out} is full: free some space; trying again for {seconds:.0f} s")
                told = True
            if time.monotonic() >= deadline:
                raise FederationError(
                    f"the disk of {folder.out} is full: free some space, and go on with run --resume"
                ) from None
            time.sleep(RETRY_SECONDS)
