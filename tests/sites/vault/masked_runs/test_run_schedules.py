"""Real vaults under a coordinator that makes any request in any order: what it can open, and that nobody is stuck.

The rules are those of `simulations.symbolic`, which searches them without cryptography. Here hypothesis makes the
requests: two runs from one endorsed model, revisions without a site, false sums, burns, restarts.
"""

import shutil
import tempfile
from collections import defaultdict
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from run_hospitals import DOMAIN, NOW, TINY, Coordinator, Hospital, contract_of, hospitals, revision_of

from fedpp.aggregation.linear_check import ExactSum
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.run_stage import RunStage
from fedpp.config.contract_limits import RunLimits
from fedpp.errors import FedppError
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.run_statements import RunStatement, SignedStatement
from sites.vault.masked_runs.run_endorsements import endorse, model_id
from sites.vault.masked_runs.run_site import digest_key

SITES = 4  # one may collude: three signatures certify a state
MAX_RUNS = 4
SITE, RUN = st.integers(0, SITES - 1), st.integers(0, MAX_RUNS - 1)
SOME = st.sets(SITE, min_size=2)
LIMITS = RunLimits(max_changes=9, max_runs=99, max_starts=99)


class Schedules(RuleBasedStateMachine):
    """A coordinator that forgets nothing, and is refused what would show a site's update."""

    @initialize()
    def begin(self) -> None:
        """Start two runs from one endorsed model."""
        self.folder = Path(tempfile.mkdtemp(prefix="fedpp-"))
        self.sites = hospitals(self.folder, SITES)
        rows = encrypted_initial_weights(TINY, 5, DOMAIN.computing_key())
        model = EncryptedModel(TINY, DOMAIN.card().fingerprint, TINY.task.classes, rows)
        name = model_id(self.sites[0].site, model)
        for of in self.sites:
            of.limits = LIMITS
            endorse(of.folder, of.site, name, NOW + timedelta(days=3), model)
        self.runs = [
            Coordinator(self.sites, contract_of(self.sites, rounds=1, initial=name, nonce=f"{k:064x}"))
            for k in range(2)
        ]
        self.false = False  # whether a false sum was named
        self.weights: dict[tuple[str, int, str], str] = {}  # of a context: contract, round, base
        for run in self.runs:
            run.begin()

    @rule(run=RUN)
    def train(self, run: int) -> None:
        """P1 of all sites, without whom there is no release."""
        for of, coordinator in self.asked(set(range(SITES)), run):
            with suppress(FedppError):
                stage = RunStage.from_bytes(of.vault.stage(coordinator.digest))
                update = of.update(stage.number + 1) if stage.due == "train" else None
                arrays = update, of.logits(stage.number + 1, stage.split or "test")
                reply = of.vault.train(coordinator.digest, stage.number + 1, self.known(coordinator), *arrays)
                assert reply is not None
                statement = SignedStatement.from_json(reply[1]).statement
                coordinator.masked[f"{of.name} {statement.round} {statement.base}"] = reply[0]
                weights = stage.weights_id(digest_key(DOMAIN))
                self.weights[coordinator.digest, statement.round, statement.base] = f"{weights} {stage.due}"
                coordinator.keep([reply[1]])

    @rule(run=RUN, sites=SOME, false=st.sampled_from([0, 0, 0, 1]))
    def release(self, run: int, sites: set[int], false: int) -> None:
        """P2 of some sites, for the sum or for another one."""
        for of, coordinator in self.asked(sites, run):
            for at in self.open_rounds(coordinator):
                total = self.total(coordinator, at)
                total.low[0] += false
                with suppress(FedppError):
                    self.false |= bool(false)
                    statement, sealed = of.vault.release(coordinator.digest, at[0], self.known(coordinator), total.hash)
                    coordinator.keep([statement])
                    coordinator.sealed[f"{of.name} {at[0]} {at[1]}"] = sealed

    @rule(run=RUN, sites=SOME)
    def step(self, run: int, sites: set[int]) -> None:
        """P3 of some sites."""
        for of, coordinator in self.asked(sites, run):
            for at in self.open_rounds(coordinator):
                names = [f"{each.name} {at[0]} {at[1]}" for each in coordinator.cohort]
                if all(name in coordinator.sealed for name in names):
                    total, sealed = self.total(coordinator, at), [coordinator.sealed[name] for name in names]
                    with suppress(FedppError):
                        given = self.known(coordinator)
                        stepped = of.vault.step(coordinator.digest, at[0], given, sealed, total.low, total.carry)
                        coordinator.keep([stepped])

    @precondition(lambda self: self.was_released())
    @rule(run=RUN, without=SITE)
    def revise(self, run: int, without: int) -> None:
        """Go on without a site, as far as the others let a revision start."""
        old = self.runs[run % len(self.runs)]
        if len(self.runs) == MAX_RUNS or len(old.cohort) < SITES:
            return
        cohort = [of for of in self.sites if of.name != self.sites[without].name]
        rounds = [s.round for s in self.stated(old, "step")]
        with suppress(FedppError):
            nonce = f"{len(self.runs):064x}"
            contract = revision_of(old, max(rounds, default=0), cohort, nonce=nonce, initial=old.contract.initial)
            self.runs.append(Coordinator(cohort, contract))
            self.enter(len(self.runs) - 1)

    def enter(self, run: int) -> None:
        """Start a revision, as far as its sites let it."""
        coordinator = self.runs[run]
        accept = coordinator.contract.to_json(), coordinator.certificates
        for phase in ("accept", "coin", "start"):
            for of in coordinator.cohort:
                asked = accept if phase == "accept" else (coordinator.digest, self.known(coordinator))
                with suppress(FedppError):
                    coordinator.keep([getattr(of.vault, phase)(*asked)])

    @precondition(lambda self: self.was_released())
    @rule(run=RUN, site=SITE, abandon=st.booleans())
    def leave(self, run: int, site: int, *, abandon: bool) -> None:
        """Burn, or abandon."""
        for of, coordinator in self.asked({site}, run):
            with suppress(FedppError):
                left = of.vault.abandon(coordinator.digest) if abandon else of.vault.burn(coordinator.digest, "ab" * 32)
                coordinator.keep([left])

    @rule(site=SITE)
    def restart(self, site: int) -> None:
        """End a vault and start it again."""
        self.sites[site].restart()

    @invariant()
    def each_site_names_one_sum(self) -> None:
        """In a context, for ever."""
        for coordinator in getattr(self, "runs", []):
            named = [(s.site, s.round) for s in self.stated(coordinator, "release")]
            assert len(named) == len(set(named))
            both = {(s.site, s.round) for s in self.stated(coordinator, "burn")}
            assert not both & set(named)

    @invariant()
    def a_model_is_opened_once_for_a_site(self) -> None:
        """No site's update of one base stands in two sums that are, or can still be, opened."""
        seen: dict[tuple[str, str], set[tuple[str, int, str]]] = defaultdict(set)
        for coordinator in getattr(self, "runs", []):
            burned = {s.round for s in self.stated(coordinator, "burn")}
            for s in self.stated(coordinator, "release"):
                if s.round not in burned:
                    at = coordinator.digest, s.round, s.base
                    seen[s.site, self.weights[at]].add(at)
        assert all(len(contexts) == 1 for contexts in seen.values()), seen

    @invariant()
    def a_round_has_one_state(self) -> None:
        """All who step sign the same."""
        for coordinator in getattr(self, "runs", []):
            states: dict[int, set[str]] = defaultdict(set)
            for s in self.stated(coordinator, "step"):
                states[s.round].add(s.facts["state"])
            assert all(len(found) == 1 for found in states.values())

    def teardown(self) -> None:
        """With all sites back, a run is completed, unless two were released in, or one was left; end the vaults."""
        if not hasattr(self, "sites"):
            return
        try:
            released = [run for run in self.runs if self.stated(run, "release")]
            left = any(self.stated(run, "burn") or self.stated(run, "abandon") for run in self.runs)
            revised = any(run.contract.parent for run in self.runs)
            if not (left or revised or self.false or len(released) > 1):
                assert self.ends((released or self.runs)[0])
        finally:
            for of in self.sites:
                of.journal.close()
            shutil.rmtree(self.folder)

    def ends(self, coordinator: Coordinator) -> bool:
        """Tell whether a coordinator that means it comes to the end of a run."""
        run, all_sites = self.runs.index(coordinator), set(range(SITES))
        for _ in range(4):
            self.train(run)
            self.release(run, all_sites, 0)
            self.step(run, all_sites)
        return {s.round for s in self.stated(coordinator, "step")} == {1, 2, 3}

    def was_released(self) -> bool:
        """Tell whether an own mask was released: before, there is nothing to be learnt."""
        return any(self.stated(run, "release") for run in self.runs)

    def asked(self, sites: set[int], run: int) -> list[tuple[Hospital, Coordinator]]:
        """Return the run, and which of these sites are its members."""
        coordinator = self.runs[run % len(self.runs)]
        return [(self.sites[site], coordinator) for site in sorted(sites) if self.sites[site] in coordinator.cohort]

    def known(self, coordinator: Coordinator) -> list[str]:
        """Return all statements of a run and of the one that it revises."""
        parent = coordinator.contract.parent
        old = [each for run in self.runs if parent and run.digest == parent.contract for each in run.statements]
        return [*old, *coordinator.statements]

    def open_rounds(self, coordinator: Coordinator) -> list[tuple[int, str]]:
        """Return number and base of the rounds in which all members have masked an update."""
        trained: dict[tuple[int, str], set[str]] = defaultdict(set)
        for s in self.stated(coordinator, "train"):
            trained[s.round, s.base].add(s.site)
        return [at for at, names in trained.items() if len(names) == len(coordinator.cohort)]

    def total(self, coordinator: Coordinator, at: tuple[int, str]) -> ExactSum:
        """Return the sum of a round."""
        masked = [coordinator.masked[f"{of.name} {at[0]} {at[1]}"] for of in coordinator.cohort]
        total = ExactSum(masked[0].size, ring_of(coordinator.contract.spec))
        for each in masked:
            total.add(each)
        return total

    def stated(self, coordinator: Coordinator, purpose: str) -> list[RunStatement]:
        """Return the statements of a run for a purpose."""
        return [signed.statement for signed in coordinator.signed() if signed.statement.purpose == purpose]


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(stateful_step_count=20, max_examples=settings().max_examples // 3)  # 2 s each
