"""Statement store: the coordinator's journal of a masked run, from which a new process resumes after any crash.

::

    run/contract       the contract, and what its members proved at admission; written before a member is sent it
    run/statements     journal, one JSON line each: a statement with the sealed seed that came with it, or the duration
                       of a round; lines are appended, and on the disk before the request that depends on them
    run/statements-N   journal of the revision N of the run, under a contract of its own
    run/updates/N      masked update of the member N of the cohort, until its round is certified: a proof against a
                       member whose tag is false
    run/evidence       two statements of which a site may sign one

What is due follows from these files. A line that a crash cut short is removed: its site repeats the statement.
"""

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.server.run_state import RunState, patiently
from fedpp import files
from fedpp.aggregation.linear_check import vector_hash
from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.errors import FederationError, ForkError
from fedpp.protocol.membership import Certificate
from fedpp.protocol.run_contract import RunContract
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.site_description import SiteDescription
from fedpp.protocol.statement_chains import StatementChains
from fedpp.values import canonical

MAX_TAKEN = 128  # places of each chain that are verified at once
_LINES = ({"signed", "seed"}, {"round", "seconds"})  # names of a journal line's facts


@dataclass(frozen=True)
class Cohort:
    """The members of a masked run: its contract, and what they proved at admission."""

    contract: RunContract
    certificates: tuple[Certificate, ...]  # in the order of the names
    sites: tuple[SiteDescription, ...]  # likewise
    datasets: Mapping[str, str]  # site -> fingerprint of the dataset that it signed for
    parent: "Cohort | None" = None  # of the contract that a revision continues

    def by_site(self) -> dict[str, Certificate]:
        """Return the certificates by site."""
        return {certificate.member.site: certificate for certificate in self.certificates}


@dataclass(frozen=True)
class CohortFile:
    """The file that holds the cohort of a run that was started."""

    folder: RunState

    @property
    def path(self) -> Path:
        """Return its path."""
        return self.folder.folder / "contract"

    def load(self) -> Cohort | None:
        """Return the cohort of the run, or None before it has one; raise `FederationError` if it is damaged."""
        if not self.path.exists():
            return None
        return _cohort(self.folder.read(self.path)[0])

    def write(self, cohort: Cohort) -> None:
        """Write the cohort, before any member is sent its contract."""
        self.folder.write(self.path, _facts(cohort))

    def remove(self) -> None:
        """Remove the file, before another contract is made."""
        self.path.unlink(missing_ok=True)


def _facts(cohort: Cohort) -> dict[str, Any]:
    return {
        "contract": cohort.contract.to_json(),
        "certificates": [certificate.to_json() for certificate in cohort.certificates],
        "sites": [site.to_mapping() for site in cohort.sites],
        "datasets": dict(cohort.datasets),
        "parent": cohort.parent and _facts(cohort.parent),
    }


def _cohort(facts: Mapping[str, Any]) -> Cohort:
    return Cohort(
        RunContract.from_json(facts["contract"]),
        tuple(map(Certificate.from_json, facts["certificates"])),
        tuple(map(SiteDescription.from_mapping, facts["sites"])),
        facts["datasets"],
        facts["parent"] and _cohort(facts["parent"]),
    )


class StatementStore:
    """All statements of a run that are known, with the sealed seeds and masked updates that belong to them."""

    def __init__(self, folder: RunState, cohort: Cohort, wait_seconds: float) -> None:
        """Read the journal of the run; raise `FederationError` if it is damaged."""
        self._folder, self._contract = folder, cohort.contract
        self._patiently = partial(patiently, seconds=wait_seconds, folder=folder)
        self._seeds: dict[tuple[str, int], str] = {}
        self.seconds: dict[int, float] = {}  # round -> duration
        revision = cohort.contract.revision
        self._journal = folder.folder / (f"statements-{revision}" if revision else "statements")
        self._updates = folder.folder / "updates"
        lines = [line for line in _whole_lines(self._journal) if _is_of(cohort.contract, line)]
        kept = {signed.digest: signed for signed in map(_signed, lines) if signed}
        self.chains = StatementChains.restored(cohort.contract, cohort.by_site(), kept.values())
        for line in lines:
            self._remember(line)

    def add(self, signed: SignedStatement, seed: str = "") -> None:
        """Verify a statement and keep it, with the sealed seed that came with it.

        Raises `MissingLinksError` where others of its site come before it, `ForkError` for one beside another, after
        both are kept as evidence, and `FederationError` for one that is not genuine.
        """
        new = self._take([signed])
        key = signed.statement.site, signed.statement.round
        if new or (seed and key not in self._seeds):
            self._append({"signed": signed.to_mapping(), "seed": seed})

    def add_all(self, statements: Sequence[SignedStatement]) -> list[SignedStatement]:
        """Verify and keep statements of this contract, in any order; return the new ones; raise as `add` does."""
        new = self._take([signed for signed in statements if signed.statement.contract == self._contract.digest])
        self._append(*({"signed": signed.to_mapping(), "seed": ""} for signed in new))
        return new

    def seed(self, site: str, number: int) -> str | None:
        """Return the sealed seed that a site released in a round, or None."""
        return self._seeds.get((site, number))

    def keep_update(self, site: str, values: EncodedUpdate) -> None:
        """Write a site's masked update of the round in progress, before its statement is kept."""
        self._patiently(lambda: files.replace(self._path(site), np.ascontiguousarray(values).data.cast("B")))

    def update(self, signed: SignedStatement, ring: Ring) -> EncodedUpdate | None:
        """Return the masked update that a site's statement is about; None where it is not whole on the disk."""
        path = self._path(signed.statement.site)
        if not path.exists() or path.stat().st_size % ring.dtype.itemsize:
            return None
        values: EncodedUpdate = np.fromfile(path, ring.dtype)
        return values if vector_hash(values) == signed.statement.facts["masked"] else None

    def complete(self, number: int, seconds: float) -> None:
        """Record the duration of a certified round, whose masked updates are not needed any more."""
        if number not in self.seconds:
            self._append({"round": number, "seconds": seconds})
        for path in self._updates.glob("*"):
            path.unlink()

    def since(self, number: int) -> list[SignedStatement]:
        """Return the statements of this round and later ones, in the order of each chain."""
        return [signed for signed in self.chains.after({}) if signed.statement.round >= number]

    def _take(self, statements: Sequence[SignedStatement]) -> list[SignedStatement]:
        """Verify statements and return the new ones; keep the proof against a member that signed two."""
        try:
            return take_in_parts(self.chains, statements)
        except ForkError as error:
            proof = "\n".join(error.proof).encode()
            self._patiently(lambda: files.replace(self._folder.folder / "evidence", proof))
            raise

    def _append(self, *lines: Mapping[str, Any]) -> None:
        if lines:
            self._patiently(lambda: _append(self._journal, lines))
        for line in lines:
            self._remember(line)

    def _remember(self, line: Mapping[str, Any]) -> None:
        if "signed" not in line:
            self.seconds[line["round"]] = line["seconds"]
        elif line["seed"]:
            of = line["signed"]["statement"]
            self._seeds[of["site"], of["round"]] = line["seed"]

    def _path(self, site: str) -> Path:
        return self._updates / str(self._contract.names.index(site))


def take_in_parts(chains: StatementChains, statements: Sequence[SignedStatement]) -> list[SignedStatement]:
    """Add any number of statements to their chains, those of the lowest places first, and return the new ones."""
    ordered = sorted(statements, key=lambda signed: signed.statement.place)
    first = ordered[0].statement.place if ordered else 0
    new = []
    for start in range(first, ordered[-1].statement.place + 1 if ordered else 0, MAX_TAKEN):
        places = range(start, start + MAX_TAKEN)
        some = {signed.digest: signed for signed in ordered if signed.statement.place in places}
        new += chains.take(list(some.values()))
    return new


def _signed(line: Mapping[str, Any]) -> SignedStatement | None:
    return SignedStatement.from_mapping(line["signed"]) if "signed" in line else None


def _is_of(contract: RunContract, line: Mapping[str, Any]) -> bool:
    """Tell whether a line is of this contract, and not of one of the same number that was given up before it."""
    return "signed" not in line or line["signed"]["statement"]["contract"] == contract.digest


def _append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append lines to a file, and wait until they are on the disk; a failure leaves it as it was."""
    content = b"".join(canonical(line) + b"\n" for line in lines)
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            whole = file.write(content) == len(content)
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, before)
            raise
        if not whole:
            os.truncate(path, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _whole_lines(path: Path) -> Iterable[dict[str, Any]]:
    """Yield the lines of a journal, and cut off the last one if a crash left only a part of it."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    for text in whole.splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or line.keys() not in _LINES:
            raise FederationError(
                f"{path} is damaged: move it away, and resume with run --resume: the sites' vaults have its content"
            )
        yield line
