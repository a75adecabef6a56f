"""Durable run state: all that is needed to resume a run after a crash, in the folder `run` of its results.

::

    run/lock           held by the running ServerApp; the lock of a dead one is free
    run/configuration  the settings that `run` was given
    run/app            sources of the submitted bundle, as they were at the start
    run/nonce          the run's nonce
    run/expires        the end of the run's contract, where it was fixed before the start
    run/given-up       contracts of a masked run that did not start, and members that may still be in them
    run/rebuild        there if the run is one whose folder was lost: the vaults know its contract
    run/change         sites that leave or join a masked run when it is resumed, and whose locks were lifted
    run/journal        round and attempt in progress, with the sites of its run specification; written before a request
    run/aggregate      result of an attempt's aggregation and whose updates it is of; written before a site is sent it
    run/checkpoint     last accepted round: its state, the records of all rounds, the strategy state
    run/progress       current phase, for people (`coordinator.server.progress`)
    run/log            messages for people, one a line

Each file is replaced as a whole: a crash leaves the old one or the new one. A masked run has files of its own
(`coordinator.server.masked.statement_store`).
"""

import errno
import fcntl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedpp import container, files
from fedpp.aggregation.ring import EncodedUpdate
from fedpp.aggregation.round_context import Aggregate
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import FederationError
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import FindingCounts
from fedpp.protocol.label_counts import LabelCounts
from fedpp.protocol.run_record import RoundRecord
from fedpp.protocol.site_description import SiteDescription
from fedpp.texts import one_line

FORMAT = "fedpp-run-2"
MAX_HEADER = 2**28  # bytes: a checkpoint has the evaluation counts of every round
FULL = (errno.ENOSPC, errno.EDQUOT)
RETRY_SECONDS = 2.0
LOCK_SECONDS = 0.05  # between two tries to get the lock
HELD_SECONDS = 10.0  # a stopped ServerApp may take a moment to end, and `status` holds the lock for one


@dataclass(frozen=True)
class CohortChange:
    """Sites that leave a masked run when it is resumed, and sites that join it, by the operator's decision."""

    leaving: tuple[str, ...] = ()
    joining: tuple[str, ...] = ()
    lifted: tuple[str, ...] = ()  # that leave without a burn, and whose locks the staff of all others lifted
    contract: str = ""  # digest of the one that it changes; empty: whichever the run has

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return bool(self.leaving or self.joining or self.lifted)

    def __str__(self) -> str:
        """Return it as a log shows it."""
        parts = (("without", self.leaving), ("with", self.joining))
        return " and ".join(f"{word} {', '.join(sites)}" for word, sites in parts if sites)


@dataclass(frozen=True)
class JournalEntry:
    """Attempt in progress, and the sites whose run specification it follows."""

    round: int
    attempt: int
    sites: Mapping[str, SiteDescription]  # all that were admitted so far, by name
    datasets: Mapping[str, str]  # site -> fingerprint of the dataset that it signed for
    quarantined: Mapping[str, str]  # site -> reason


@dataclass(frozen=True)
class RoundAggregate:
    """Result of aggregating an attempt's updates."""

    round: int
    attempt: int
    contributions: Aggregate
    name: str  # of the array that the sites are sent
    content: EncodedUpdate  # of that array
    excluded: Mapping[str, str]  # site -> reason
    flagged: Mapping[str, str]  # site -> what is odd about its update
    strategy_state: bytes  # for the next round's aggregation, if the sites accept this one's model
    labels: LabelCounts  # training labels of all sites of round 1, where they balance the loss


@dataclass(frozen=True)
class Checkpoint:
    """Last round whose model the sites accepted; round 0 is the initial state."""

    round: int
    digest: str  # of the state, as the sites reported it
    state: bytes  # as a site sent it
    rounds: tuple[RoundRecord, ...]
    seconds: float  # duration of the accepted attempts so far
    strategy_state: bytes = b""
    labels: LabelCounts = ()  # training labels of all sites of round 1, where they balance the loss


class StoppedError(FederationError):
    """The run was stopped by the operator."""

    def __init__(self) -> None:
        super().__init__("the run was stopped; resume it with run --resume")


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
        """Return the file of messages."""
        return self.folder / "log"

    @property
    def progress(self) -> Path:
        """Return the file of the current phase."""
        return self.folder / "progress"

    @property
    def configuration(self) -> Path:
        """Return the file of the settings that the run was started with."""
        return self.folder / "configuration"

    @property
    def app(self) -> Path:
        """Return the folder of the sources that the run was started with."""
        return self.folder / "app"

    @property
    def stop(self) -> Path:
        """Return the file whose presence stops the run."""
        return self.folder / "stop"

    def note(self, text: str) -> None:
        """Log one line: on stderr, and in the log unless the disk is full."""
        line = one_line(text)
        print(line, file=sys.stderr, flush=True)
        with suppress(OSError), self.log.open("a") as log:
            log.write(f"{line}\n")

    def require_not_stopped(self) -> None:
        """Raise `StoppedError` if the operator stopped the run."""
        if self.stop.exists():
            raise StoppedError

    def clear(self) -> None:
        """Remove the traces of how the run ended, so that it can be resumed."""
        for left in (self.stop, self.progress):
            left.unlink(missing_ok=True)

    def was_started(self) -> bool:
        """Tell whether a ServerApp has started the run."""
        return (self.folder / "nonce").exists()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run's lock; raise `FederationError` while another process holds it."""
        files.make_folder(self.folder, 0o700)
        with (self.folder / "lock").open("w") as lock:
            deadline = time.monotonic() + HELD_SECONDS
            while not _locked(lock.fileno(), fcntl.LOCK_EX):
                if time.monotonic() >= deadline:
                    raise FederationError(f"another process runs the federation of {self.out}: wait until it ends")
                time.sleep(LOCK_SECONDS)
            for left in self.folder.glob(".*.tmp"):  # by a process that was killed while it wrote
                left.unlink()
            yield

    def is_held(self) -> bool:
        """Tell whether a process holds the run's lock."""
        with suppress(FileNotFoundError), (self.folder / "lock").open() as lock:
            return not _locked(lock.fileno(), fcntl.LOCK_SH)
        return False

    def nonce(self, drawn: str) -> str:
        """Return the run's nonce; on the first call, that is the one `drawn`."""
        if not (path := self.folder / "nonce").exists():
            self.write(path, {"nonce": drawn})
        return str(self.read(path)[0]["nonce"])

    def renew(self, drawn: str) -> None:
        """Take another nonce, for another contract, which no site knows."""
        self.write(self.folder / "nonce", {"nonce": drawn})
        (self.folder / "rebuild").unlink(missing_ok=True)

    def rebuild(self, nonce: str) -> None:
        """Record that the run of this nonce, whose folder was lost, continues here as its sites know it."""
        self.write(self.folder / "nonce", {"nonce": nonce})
        (self.folder / "rebuild").touch()

    def is_rebuilding(self) -> bool:
        """Tell whether the run's contract is one that its sites know."""
        return (self.folder / "rebuild").exists()

    def expires(self, chosen: int) -> int:
        """Return the end of the run's contract in seconds since 1970: the one that was fixed, or that `chosen`."""
        path = self.folder / "expires"
        return int(self.read(path)[0]["expires"]) if path.exists() else chosen

    def fix(self, nonce: str, expires: int) -> None:
        """Fix nonce and end before the start: whoever fixes all keys, too, can repeat the run to the same weights."""
        files.make_folder(self.folder, 0o700)
        self.write(self.folder / "nonce", {"nonce": nonce})
        self.write(self.folder / "expires", {"expires": expires})

    def change(self) -> CohortChange:
        """Return which sites leave or join a masked run when it is resumed."""
        path = self.folder / "change"
        if not path.exists():
            return CohortChange()
        facts = self.read(path)[0]
        leaving, joining, lifted = (tuple(facts[name]) for name in ("leaving", "joining", "lifted"))
        return CohortChange(leaving, joining, lifted, facts["contract"])

    def plan(self, change: CohortChange) -> None:
        """Record which sites leave or join the run when it is resumed; none, once it has a contract of the others."""
        path = self.folder / "change"
        if change:
            self.write(path, vars(change))
        else:
            path.unlink(missing_ok=True)

    def journal(self) -> JournalEntry | None:
        """Return the attempt that was started last, or None."""
        if not (path := self.folder / "journal").exists():
            return None
        facts, _ = self.read(path)
        sites = {name: SiteDescription.from_mapping(site) for name, site in facts.pop("sites").items()}
        return JournalEntry(**facts, sites=sites)

    def write_journal(self, entry: JournalEntry) -> None:
        """Record the attempt in progress."""
        sites = {name: site.to_mapping() for name, site in entry.sites.items()}
        self.write(self.folder / "journal", {**vars(entry), "sites": sites})

    def aggregate(self, at: JournalEntry) -> RoundAggregate | None:
        """Return the aggregate of this attempt, or None if it has none yet."""
        if not (path := self.folder / "aggregate").exists():
            return None
        facts, content = self.read(path)
        if (facts["round"], facts["attempt"]) != (at.round, at.attempt):
            return None
        size = len(content) - facts.pop("strategy_state")
        array: EncodedUpdate = np.frombuffer(content[:size], np.dtype(facts.pop("dtype")))
        facts |= {
            "contributions": Aggregate.from_json(facts["contributions"]),
            "labels": tuple(facts["labels"]),
        }
        return RoundAggregate(**facts, content=array, strategy_state=bytes(content[size:]))

    def write_aggregate(self, made: RoundAggregate) -> None:
        """Record an attempt's aggregate: the sites are sent no second one, of other sites."""
        facts = {name: value for name, value in vars(made).items() if name != "content"}
        facts |= {"contributions": made.contributions.to_json(), "dtype": made.content.dtype.str}
        facts["strategy_state"] = len(made.strategy_state)
        self.write(self.folder / "aggregate", facts, made.content.tobytes(), made.strategy_state)

    def checkpoint(self, network: ModelSpec) -> Checkpoint | None:
        """Return the last accepted round of a run of this model specification, or None."""
        if not (path := self.folder / "checkpoint").exists():
            return None
        facts, content = self.read(path)
        kind = FindingCounts if network.task.multi_label else Counts
        facts["rounds"] = tuple(RoundRecord.from_mapping(of, kind) for of in facts["rounds"])
        facts["labels"] = tuple(facts["labels"])
        size = len(content) - facts.pop("strategy_state")
        return Checkpoint(**facts, state=bytes(content[:size]), strategy_state=bytes(content[size:]))

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Record an accepted round in place of the previous one."""
        facts = {name: value for name, value in vars(checkpoint).items() if name != "state"}
        facts |= {"rounds": [of.to_mapping() for of in checkpoint.rounds]}
        facts["strategy_state"] = len(checkpoint.strategy_state)
        self.write(self.folder / "checkpoint", facts, checkpoint.state, checkpoint.strategy_state)

    def finish(self) -> None:
        """Remove what is needed to resume, once the run is complete."""
        for name in ("aggregate", "journal", "checkpoint"):
            (self.folder / name).unlink(missing_ok=True)

    def write(self, path: Path, facts: container.Facts, *content: bytes) -> None:
        """Replace a file of the run."""
        files.replace(path, *container.parts(FORMAT, facts, *content))

    def read(self, path: Path) -> tuple[container.Facts, memoryview]:
        """Return what `write` wrote; raise `FederationError` for anything else."""
        try:
            return container.unpack(FORMAT, path.read_bytes(), MAX_HEADER)
        except OSError as error:
            raise FederationError(f"cannot read {path}: {error.strerror}; the run cannot be resumed") from None
        except ValueError:
            raise FederationError(
                f"{path} is damaged: start a new run, with --model from the last model in {path.parents[1]}"
            ) from None


def _locked(descriptor: int, kind: int) -> bool:
    """Lock a file if that needs no wait; tell whether it is locked now."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def patiently(write: Callable[[], None], seconds: float, folder: RunState) -> None:
    """Call `write`, and retry while the disk is full, for so many seconds; raise `FederationError` after that."""
    deadline, noted = time.monotonic() + seconds, False
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in FULL:
                raise
            if not noted:
                folder.note(f"the disk of {folder.out} is full: free some space; retrying for {seconds:.0f} s")
                noted = True
            if time.monotonic() >= deadline:
                raise FederationError(
                    f"the disk of {folder.out} is full: free some space, and resume with run --resume"
                ) from None
            time.sleep(RETRY_SECONDS)
