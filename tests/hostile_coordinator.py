"""A hostile coordinator with a colluding member, for tests: it asks real vaults anything, and keeps what it has seen.

West colludes: it has two vaults of one identity, of which the second is a copy of the first at some moment. What the
coordinator learns is computed as in `simulations.symbolic`, from the keys that the vaults really used: masks are the
same symbol exactly where they are the same key.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from run_hospitals import Hospital, contract_of, hospitals

from fedpp.aggregation import pair_masks
from fedpp.aggregation.linear_check import ExactSum, sum_hash
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.run_stage import RunStage
from fedpp.config.contract_limits import RunLimits
from fedpp.errors import FedppError, ForkError
from fedpp.protocol.new_contract import small_changes
from fedpp.protocol.run_contract import Parent, RunContract
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.state_certificate import StateCertificate
from simulations.symbolic.known_sums import Mask, Symbol, Update, known_sums, violation
from sites.vault.masked_runs import own_update
from sites.vault.masked_runs.accepted_contract import AcceptedContract
from sites.vault.masked_runs.member_rounds import MemberRound
from sites.vault.masked_runs.run_journal import RunJournal
from sites.vault.masked_runs.run_locks import RoundContext

HONEST, COLLUDING = ("East", "North", "South"), "West"
LIMITS = RunLimits(max_changes=9, max_runs=99, max_starts=99)
STARTS, ROUND = ("accept", "coin", "start"), ("train", "release", "step")
MIN_HONEST = 2
LEAVING = ("burn", "abandon")


class PowerLossError(Exception):
    """The vault's machine is gone."""


class DyingJournal(RunJournal):
    """A journal whose process dies at one of its next writes, before it is on the disk or right after."""

    left = 0  # writes until then
    written = False  # before the death

    def commit(self) -> None:
        """Write, or die."""
        self.left -= 1
        if self.left:
            super().commit()
            return
        if self.written:
            super().commit()
        raise PowerLossError


@cache
def _datasets() -> list[Hospital]:
    """Return hospitals whose keys and data serve all examples."""
    made = hospitals(Path(mkdtemp(prefix="fedpp-hostile-")), 4)
    for of in made:
        of.journal.close()
    return made


@dataclass
class Run:
    """One contract, and what was seen under it; colluders' values by which of West's vaults made them."""

    contract: RunContract
    parent: "Run | None" = None
    signed: list[tuple[str, int, str]] = field(default_factory=list)  # site, vault, statement
    masked: dict[tuple[int, str, int], np.ndarray] = field(default_factory=dict)
    sealed: dict[tuple[int, str, int], bytes] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Return the contract's digest."""
        return self.contract.digest

    def shown(self, view: int) -> list[str]:
        """Return all statements of this run and those before it, West's by one of its vaults."""
        before = self.parent.shown(view) if self.parent else []
        return [*before, *(text for site, vault, text in self.signed if site != COLLUDING or vault == view)]

    def own(self, site: str, vault: int) -> set[str]:
        """Return what one of a site's vaults has signed."""
        return {text for name, of, text in self.signed if (name, of) == (site, vault)}

    def read(self, purpose: str, number: int, view: int = 0) -> dict[str, SignedStatement]:
        """Return the statements of a purpose and round."""
        read = [SignedStatement.from_json(text) for text in self.shown(view)]
        of = [each for each in read if each.statement.contract == self.digest]
        return {s.statement.site: s for s in of if (s.statement.purpose, s.statement.round) == (purpose, number)}


class Hostile:
    """Four hospitals and what the adversary does with them."""

    def __init__(self) -> None:
        """Open the vaults, and put a first contract."""
        self.folder = Path(mkdtemp(prefix="fedpp-runs-"))
        self.vaults: dict[tuple[str, int], Hospital] = {}
        for of in _datasets():
            folder = self.folder / of.name
            self.vaults[of.name, 0] = Hospital(of.name, of.site, of.dataset, folder, LIMITS).open()
        self.runs = [Run(contract_of(self.of_names((*HONEST, COLLUDING)), rounds=1, nonce="00" * 32))]
        self.seen: list[Mapping[Symbol, int]] = []
        self.kept: dict[tuple[str, str], dict[Symbol, int]] = {}  # by site and context, with the own mask
        self.made: dict[Update, str] = {}  # hashes of the honest sites' updates
        self.states: dict[tuple[str, int], set[str]] = {}  # that honest sites signed
        self.named: dict[tuple[str, str], set[str]] = {}  # T that a site named in a context
        self.places: dict[tuple[str, str, int], set[str]] = {}
        self.deceived: set[str] = set()  # honest sites that took a step by a false sum
        self.is_restored = False
        self.has_differed = False  # whether one of West's vaults signed what the other saw, or what is lost by now
        self.is_false = False  # whether a false sum was named
        self.begin()

    def begin(self) -> None:
        """Start the first run."""
        for purpose in STARTS:
            for site in (*HONEST, COLLUDING):
                assert self.ask(self.runs[0], purpose, site)

    def close(self) -> None:
        """End the vaults."""
        for of in self.vaults.values():
            of.journal.close()
        shutil.rmtree(self.folder)

    def of_names(self, names: Sequence[str]) -> list[Hospital]:
        """Return hospitals by name."""
        return [self.vaults[name, 0] for name in names]

    def ask(
        self, run: Run, purpose: str, site: str, view: int = 0, *, false: bool = False, crossed: bool = False
    ) -> bool:
        """Ask a vault for a phase; return whether it replied. A vault that dies is started again.

        A colluder's vault is shown its own statements, or those of its copy if `crossed`.
        """
        vault = (1 - view if crossed else view) if (site, 1) in self.vaults else 0
        if site not in run.contract.names:
            return False
        other = run.own(site, view) - run.own(site, vault)
        self.has_differed |= bool(other)
        try:
            replied = self._asked(run, purpose, site, vault, view, false=false)
        except PowerLossError:
            self.vaults[site, vault].restart()
        except FedppError:
            pass
        else:
            assert not (replied and other and purpose in ROUND), f"{site} continues beside its copy"
            self.is_false |= replied and false and purpose == "release"
            return replied
        return False

    def copy(self) -> None:
        """Copy West's vault as it is now; its second vault is then the older one."""
        first = self.vaults[COLLUDING, 0]
        folder = self.folder / "copy"
        if (COLLUDING, 1) in self.vaults:
            self.has_differed |= any(run.own(COLLUDING, 1) - run.own(COLLUDING, 0) for run in self.runs)
            self.vaults[COLLUDING, 1].journal.close()
            shutil.rmtree(folder)
        first.journal.close()
        shutil.copytree(first.folder, folder)
        first.open()
        self.vaults[COLLUDING, 1] = Hospital(COLLUDING, first.site, first.dataset, folder, LIMITS).open()
        for run in self.runs:
            run.signed = [each for each in run.signed if each[:2] != (COLLUDING, 1)]
            run.signed += [(site, 1, text) for site, vault, text in run.signed if (site, vault) == (COLLUDING, 0)]
            for of in (run.masked, run.sealed):
                for key in [key for key in of if key[1:] == (COLLUDING, 1)]:
                    del of[key]
                of.update({(n, s, 1): v for (n, s, vault), v in list(of.items()) if (s, vault) == (COLLUDING, 0)})

    def restore(self) -> None:
        """Put the copy of West's vault in place of it, as from a backup; the second view has what the first signed."""
        if (COLLUDING, 1) not in self.vaults:
            return
        first, copy = self.vaults[COLLUDING, 0], self.vaults.pop((COLLUDING, 1))
        first.journal.close()
        copy.journal.close()
        shutil.rmtree(first.folder)
        copy.folder.rename(first.folder)
        first.open()
        self.is_restored = True
        for run in self.runs:
            run.signed = [(site, 1 - vault if site == COLLUDING else 0, text) for site, vault, text in run.signed]
            run.masked = {_other_vault(key): values for key, values in run.masked.items()}
            run.sealed = {_other_vault(key): seed for key, seed in run.sealed.items()}

    def is_over(self, run: Run) -> bool:
        """Tell whether all members are at the end of a run, after an honest coordinator did what it can."""
        for _ in (*HONEST, COLLUDING):  # each of them may die at a write
            if all(self._ended(run, site) for site in run.contract.names):
                return True
            for purpose in (*STARTS, *(3 * ROUND)):
                for site in run.contract.names:
                    self.ask(run, purpose, site)
        return all(self._ended(run, site) for site in run.contract.names)

    def _ended(self, run: Run, site: str) -> bool:
        try:
            return RunStage.from_bytes(self.vaults[site, 0].vault.stage(run.digest)).due == "end"
        except PowerLossError:
            self.vaults[site, 0].restart()
        except FedppError:
            pass
        return False

    def require_noticed(self) -> None:
        """Fail unless each honest vault refuses two statements that West's vaults signed in one place of a run."""
        self._fetch_lost()
        for run in filter(self.is_forked, self.runs):
            for site in set(run.contract.names) & {*HONEST}:
                assert self._has_noticed(run, site), f"{site} has not noticed that {COLLUDING} was copied"

    def require_an_end(self) -> None:
        """Fail if no run comes to its end with all sites back, unless one was left, a sum was false, or West copied.

        A revision that cannot start, since some of its members are locked, is abandoned by those who are in it.
        """
        left = any(f'"purpose":"{how}"' in text for run in self.runs for *_, text in run.signed for how in LEAVING)
        if left or self.is_false or self.is_restored or self.has_differed or any(map(self.is_forked, self.runs)):
            return
        for run in reversed(self.runs):
            if self.is_over(run):
                return
            for site in run.contract.names:
                self.ask(run, "abandon", site)
        raise AssertionError("with all sites back no run comes to its end")

    def _fetch_lost(self) -> None:
        """Take what each vault has signed and whose reply was lost, as a coordinator does by `where`."""
        for (site, vault), of in self.vaults.items():
            of.restart()
            for run in self.runs:
                for text in of.vault.where(run.digest):
                    signed = SignedStatement.from_json(text).statement
                    if (signed.site, signed.contract) == (site, run.digest):
                        self._keep(run, site, vault, text)

    def is_forked(self, run: Run) -> bool:
        """Tell whether West's vaults signed different statements in one place of a run."""
        by_place: dict[int, set[str]] = {}
        for site, _, text in run.signed:
            signed = SignedStatement.from_json(text)
            if site == COLLUDING:
                by_place.setdefault(signed.statement.place, set()).add(signed.digest)
        return any(len(at) > 1 for at in by_place.values())

    def _has_noticed(self, run: Run, site: str) -> bool:
        """Show a vault what one of West's vaults has signed, and then what the other has."""
        vault = self.vaults[site, 0].restart().vault
        for view in (0, 1):
            try:
                vault.train(run.digest, 1, run.shown(view))
            except ForkError:
                return True
            except FedppError:
                pass
        return False

    def kill(self, site: str, writes: int, *, written: bool) -> None:
        """Let a vault die at one of its next writes."""
        kind = type("Dying", (DyingJournal,), {"left": writes, "written": written})
        self.vaults[site, 0].restart(kind)

    def revise(self, parent: Run, without: str) -> None:
        """Put a contract by which a run continues from its newest certified state without a site."""
        certified = [n for n in range(1, 4) if len(parent.read("step", n)) >= parent.contract.threshold]
        number = max(certified, default=parent.contract.start_round)
        signed = parent.read("step" if number > parent.contract.start_round else "start", number)
        names = [name for name in parent.contract.names if name != without]
        made = contract_of(self.of_names(names), rounds=1, nonce=f"{len(self.runs):02x}" * 32, colluders=1)
        try:
            base = StateCertificate.made_of(parent.contract, signed.values())
        except FedppError:
            return
        changes = parent.contract.changes + small_changes(parent.contract, made.cohort)
        named = Parent(parent.digest, number, base.state)
        revision = parent.contract.revision + 1
        self.runs.append(Run(made.changed(revision=revision, parent=named, changes=changes), parent))

    def total(self, run: Run, number: int, view: int) -> ExactSum | None:
        """Return the sum of the masked updates of a round, or None if one is missing."""
        values = [run.masked.get((number, name, view if name == COLLUDING else 0)) for name in run.contract.names]
        known = [each for each in values if each is not None]
        if len(known) < len(values):
            return None
        result = ExactSum(known[0].size, ring_of(run.contract.spec))
        for each in known:
            result.add(each)
        return result

    def _opened(self) -> set[str]:
        """Return the base models of which a sum is known."""
        return {of.weights for vector in known_sums(self.seen) for of, _ in vector if isinstance(of, Update)}

    def known(self) -> str:
        """Return how the sums that the adversary knows break the promise, or an empty text."""
        return violation(known_sums(self.seen), MIN_HONEST)

    def _asked(self, run: Run, purpose: str, site: str, vault: int, view: int, *, false: bool) -> bool:
        of, shown = self.vaults[site, vault], run.shown(view)
        if purpose == "accept":
            certificates = [self.vaults[name, 0].site.certificate.to_json() for name in run.contract.names]
            self._keep(run, site, vault, of.vault.accept(run.contract.to_json(), certificates))
        elif purpose in {"coin", "start"}:
            self._keep(run, site, vault, getattr(of.vault, purpose)(run.digest, shown))
        elif purpose == "abandon":
            self._keep(run, site, vault, of.vault.abandon(run.digest))
        elif purpose == "burn":
            self._keep(run, site, vault, of.vault.burn(run.digest, "ab" * 32))
        else:
            stage = RunStage.from_bytes(of.vault.stage(run.digest))
            number = stage.number + 1
            if purpose == "train":
                return self._train(run, site, vault, shown, stage)
            total = self.total(run, number, view)
            if total is None:
                return False
            low = total.low + low_of(total, false=false)
            hashed = sum_hash(low, total.carry)
            if purpose == "release":
                return self._release(run, site, vault, shown, number, hashed)
            sealed = [run.sealed.get((number, name, view if name == COLLUDING else 0)) for name in run.contract.names]
            self._step(run, site, vault, shown, number, [each or b"" for each in sealed], low, total, false=false)
        return True

    def _train(self, run: Run, site: str, vault: int, shown: list[str], stage: RunStage) -> bool:
        of, number = self.vaults[site, vault], stage.number + 1
        reply = of.vault.train(run.digest, number, shown)
        if reply is None:
            drawn = number + 50 * vault  # West's second vault trains otherwise
            update = of.update(drawn) if stage.due == "train" else None
            reply = of.vault.train(run.digest, number, shown, update, of.logits(drawn, stage.split))
        assert reply is not None
        run.masked[number, site, vault] = reply[0]
        self._keep(run, site, vault, reply[1])
        if site != COLLUDING:
            self._see(run, of, number, reply[0], SignedStatement.from_json(reply[1]))
        return True

    def _release(self, run: Run, site: str, vault: int, shown: list[str], number: int, hashed: str) -> bool:
        known = self._opened()
        statement, sealed = self.vaults[site, vault].vault.release(run.digest, number, shown, hashed)
        run.sealed[number, site, vault] = sealed
        self._keep(run, site, vault, statement)
        if site != COLLUDING:
            signed = SignedStatement.from_json(statement)
            at, named = _context_of(signed), signed.statement.facts["aggregate"]
            vector = self.kept[site, at]
            if COLLUDING in run.contract.names and not any(named in of for of in self.named.values()):
                assert not known & {of.weights for of in vector if isinstance(of, Update)}, "the sum was known before"
            self.named.setdefault((site, at), set()).add(named)
            self.seen.append({s: c for s, c in vector.items() if isinstance(s, Update) or len(s.sites) > 1})
        return True

    def _step(
        self,
        run: Run,
        site: str,
        vault: int,
        shown: list[str],
        number: int,
        sealed: list[bytes],
        low: np.ndarray,
        total: ExactSum,
        *,
        false: bool,
    ) -> None:
        statement = self.vaults[site, vault].vault.step(run.digest, number, shown, sealed, low, total.carry)
        self._keep(run, site, vault, statement)
        if site != COLLUDING:
            self.deceived |= {site} if false else set()
            state = SignedStatement.from_json(statement).statement.facts["state"]
            self.states.setdefault((run.digest, number), set()).add(state)

    def _keep(self, run: Run, site: str, vault: int, statement: str) -> None:
        signed = SignedStatement.from_json(statement)
        if site != COLLUDING:
            self.places.setdefault((run.digest, site, signed.statement.place), set()).add(signed.digest)
        if (site, vault, statement) not in run.signed:
            run.signed.append((site, vault, statement))

    def _see(self, run: Run, of: Hospital, number: int, y: np.ndarray, signed: SignedStatement) -> None:
        """Note a masked update as symbols: the update, and the masks by the keys that the vault used."""
        at = MemberRound.of_number(
            of.vault._of, AcceptedContract.load(of.vault._of, run.digest), of.vault._stages, number
        )
        own = own_update.stored(at.of, at.inputs)
        assert own is not None
        x, ring = at._encoded(own), at.ring
        pairs = dict(_pairs(run, of, at.at.content))
        signs = [(key, 1 if of.name < other else -1) for other, key in pairs.items()]
        assert np.array_equal(
            np.concatenate(list(pair_masks.masked(x, ring, at._seed(), signs))), y
        )  # the symbols are the values
        place = HONEST.index(of.name)
        weights = f"{at.inputs.weights} {at.inputs.purpose}"
        update = Update(place, weights, at.inputs.plan)
        made = self.made.setdefault(update, sha256(x.tobytes()).hexdigest())
        assert made == sha256(x.tobytes()).hexdigest(), f"{of.name} made two updates for the same inputs"
        vector: dict[Symbol, int] = {update: 1}
        for other, key in pairs.items():
            if other != COLLUDING:
                both = sorted((place, HONEST.index(other)))
                vector[Mask(tuple(both), (sha256(key).hexdigest(),))] = 1 if of.name < other else -1
        vector[Mask((place,), (sha256(at._seed()).hexdigest(),))] = 1
        self.kept[of.name, _context_of(signed)] = vector
        self.seen.append(vector)


def _other_vault(key: tuple[int, str, int]) -> tuple[int, str, int]:
    number, site, vault = key
    return number, site, 1 - vault if site == COLLUDING else 0


def low_of(total: ExactSum, *, false: bool) -> np.ndarray:
    """Return what is added to a sum: nothing, or one in its first number."""
    change = np.zeros_like(total.low)
    change[0] = int(false)
    return change


def _context_of(signed: SignedStatement) -> str:
    of = signed.statement
    return RoundContext(of.run, of.round, of.base).id


def _pairs(run: Run, of: Hospital, content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the pair keys of a vault in a round by the other site, from its own key and the keys that it was shown."""
    row = of.journal.row("contracts", "key", digest=run.digest)
    assert row is not None
    key = X25519PrivateKey.from_private_bytes(of.journal.unseal(row[0], f"key {run.digest}"))
    accepted: Any = AcceptedContract.load(of.vault._of, run.digest).chains.of("accept")
    for other, signed in accepted.items():
        if other != of.name:
            yield other, pair_masks.pair_key(key, bytes.fromhex(signed.statement.facts["key"]), content, of.name, other)
