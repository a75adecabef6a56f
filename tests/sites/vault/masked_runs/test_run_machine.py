"""Real vaults and a hostile coordinator with a colluding member, in orders that hypothesis chooses."""

from collections.abc import Callable, Iterator

import pytest
from hostile_coordinator import COLLUDING, HONEST, ROUND, STARTS, Hostile
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from fedpp.aggregation import linear_check, pair_masks
from fedpp.errors import VaultError
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.statement_chains import StatementChains
from sites.vault.masked_runs import member_rounds, run_locks, run_refusals, run_revisions
from sites.vault.masked_runs.member_rounds import MemberRound

SITES = st.permutations((*HONEST, COLLUDING))
MOST_RUNS = 4
RUNS = st.integers(0, MOST_RUNS - 1)  # counted around where there are fewer
VIEWS = st.sampled_from((0, 0, 0, 1))


class HostileMachine(RuleBasedStateMachine):
    """Phases in any order, for some sites or all, repeated or lost; kills, copies, burns, revisions and false sums."""

    def __init__(self) -> None:
        super().__init__()
        self.world = Hostile()

    @rule(sites=SITES, left_out=st.integers(0, 2), run=RUNS, view=VIEWS, phases=st.sampled_from((1, 2, 3)))
    def round(self, sites: list[str], left_out: int, run: int, view: int, phases: int) -> None:
        """Put the first phases of the next round to some sites."""
        for purpose in ROUND[:phases]:
            self._put(run, purpose, sites[left_out if purpose == ROUND[phases - 1] else 0 :], view)

    @rule(purpose=st.sampled_from((*STARTS, *ROUND)), sites=SITES, left_out=st.integers(0, 3), run=RUNS, view=VIEWS)
    def phase(self, purpose: str, sites: list[str], left_out: int, run: int, view: int) -> None:
        """Put one phase to some sites."""
        self._put(run, purpose, sites[left_out:], view)

    @rule(sites=SITES, run=RUNS, view=VIEWS)
    def false_sum(self, sites: list[str], run: int, view: int) -> None:
        """Put a round with another sum than the sum."""
        self._put(run, "train", sites, view)
        self._put(run, "release", sites, view, false=True)
        self._put(run, "step", sites, view, false=True)

    @rule(parent=RUNS, without=st.sampled_from((*HONEST, COLLUDING)), phases=st.sampled_from((6, 6, 3, 2, 1)))
    def revise(self, parent: int, without: str, phases: int) -> None:
        """Put a revision without a site, and begin it, or do its first round as well."""
        if len(self.world.runs) < MOST_RUNS:
            self.world.revise(self.world.runs[parent % len(self.world.runs)], without)
            for purpose in (*STARTS, *ROUND)[:phases]:
                self._put(len(self.world.runs) - 1, purpose, [*HONEST, COLLUDING], 0)

    @rule(
        run=RUNS, site=st.sampled_from((*HONEST, COLLUDING)), purpose=st.sampled_from(("burn", "abandon")), view=VIEWS
    )
    def leave(self, run: int, site: str, purpose: str, view: int) -> None:
        """Ask a site to burn its round or to abandon the run."""
        self._put(run, purpose, [site], view)

    @rule(site=st.sampled_from((*HONEST, COLLUDING)), writes=st.integers(1, 6), written=st.booleans())
    def kill(self, site: str, writes: int, *, written: bool) -> None:
        """Let a vault die at one of its next writes."""
        self.world.kill(site, writes, written=written)

    @rule(run=RUNS, purpose=st.sampled_from(ROUND), view=VIEWS)
    def crossed(self, run: int, purpose: str, view: int) -> None:
        """Show one of the colluder's vaults what its copy has signed: it notices, and signs nothing more."""
        self.world.ask(self.world.runs[run % len(self.world.runs)], purpose, COLLUDING, view, crossed=True)

    @rule()
    def copy(self) -> None:
        """Copy the colluder's vault."""
        self.world.copy()

    @rule()
    def restore(self) -> None:
        """Put the copy in place of the colluder's vault, as from a backup."""
        self.world.restore()

    @invariant()
    def one_sum_is_known(self) -> None:
        """Whoever adds and subtracts what it saw knows one plain sum of each base, over two honest sites or more."""
        assert self.world.known() == ""

    @invariant()
    def one_state_is_signed(self) -> None:
        """All honest sites sign one state of a round, and name one sum in a context."""
        assert all(len(states) == 1 for states in self.world.states.values())
        assert all(len(named) == 1 for named in self.world.named.values())

    @invariant()
    def no_false_sum_is_stepped(self) -> None:
        """No honest site takes a step by a sum that is not the sum."""
        assert self.world.deceived == set(), "a sum was stepped that is not the sum"

    @invariant()
    def one_statement_is_signed(self) -> None:
        """No vault signs two statements in one place of its chain."""
        assert all(len(signed) == 1 for signed in self.world.places.values())

    def teardown(self) -> None:
        """With all sites back nobody is stuck, and two statements in one place are noticed; end the vaults."""
        try:
            self.no_false_sum_is_stepped()
            self.world.require_noticed()
            self.world.require_an_end()
        finally:
            self.world.close()

    def _put(self, run: int, purpose: str, sites: list[str], view: int, *, false: bool = False) -> None:
        asked = self.world.runs[run % len(self.world.runs)]
        for site in sites:
            self.world.ask(asked, purpose, site, view, false=false)


class PatientMachine(HostileMachine):
    """Phases, kills and revisions in any order, and no act by which a run may end early: then one comes to its end."""

    false_sum = leave = copy = restore = crossed = None  # type: ignore[assignment]


def without_lock(patch: pytest.MonkeyPatch) -> None:
    """Let a vault release for any inputs."""
    patch.setattr(member_rounds, "require_free", lambda *_: None)
    patch.setattr(run_revisions, "require_unlocked", lambda *_: None)


def without_stored_lock(patch: pytest.MonkeyPatch) -> None:
    """Let a vault forget what it released for."""
    patch.setattr(member_rounds, "lock", lambda *_: None)


def without_burn(patch: pytest.MonkeyPatch) -> None:
    """Let a lock move without the burn of who is left out."""
    patch.setattr(run_locks, "_is_moved", lambda *_: True)


def with_one_own_mask(patch: pytest.MonkeyPatch) -> None:
    """Let a vault use one own mask in all rounds."""
    patch.setattr(MemberRound, "_new_seed", lambda self, _: self.of.own_secret("own mask", b""))


def with_one_pair_mask(patch: pytest.MonkeyPatch) -> None:
    """Let vaults use one pair mask in all rounds of a run."""
    made = pair_masks.pair_key
    patch.setattr(pair_masks, "pair_key", lambda own, other, _, one, two: made(own, other, b"", one, two))


def without_linear_check(patch: pytest.MonkeyPatch) -> None:
    """Let a vault step any sum."""
    patch.setattr(linear_check, "require_sum", lambda *_: None)


def without_repeats(patch: pytest.MonkeyPatch) -> None:
    """Let a vault refuse a release that it has made, also where the reply was lost."""

    def refuse(*_: object) -> None:
        raise VaultError(run_refusals.OTHER_ROUND)

    patch.setattr(MemberRound, "_released", refuse)


def without_forks(patch: pytest.MonkeyPatch) -> None:
    """Let a vault skip a second statement in a place as if it were the first."""

    def is_known(self: StatementChains, signed: SignedStatement) -> bool:
        return signed.statement.place < self.places[signed.statement.site]

    patch.setattr(StatementChains, "_is_known", is_known)


BROKEN = {
    without_lock: "known",
    without_stored_lock: "known",
    without_burn: "known",
    with_one_own_mask: "known",
    with_one_pair_mask: "known",
    without_linear_check: "not the sum",
}


def run_machine(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    """Run a state machine as hypothesis does, reproducibly."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            phases=(Phase.generate,),
        ),
    )


DEEP = pytest.param(200, 40, marks=pytest.mark.slow)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("examples", "steps"), [(12, 20), DEEP])
def test_no_order_breaks_a_promise(examples: int, steps: int):
    """Nothing more than one sum is known, one state is signed, and no false sum is stepped."""
    run_machine(HostileMachine, examples, steps)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("examples", "steps"), [(6, 12), DEEP])
def test_no_order_leaves_all_runs_stuck(examples: int, steps: int):
    """Whatever was asked, killed and revised: with all sites back an honest coordinator comes to an end."""
    run_machine(PatientMachine, examples, steps)


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_rule_is_found(broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch):
    """With any of these rules of the vault left out, some order breaks a promise."""
    broken(monkeypatch)
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        run_machine(HostileMachine, 100, 30)


@pytest.fixture
def world() -> Iterator[Hostile]:
    """Return hospitals that have started a run."""
    made = Hostile()
    yield made
    made.close()


@pytest.mark.parametrize("is_refused", [True, False])
def test_a_copied_vault_is_noticed(world: Hostile, monkeypatch: pytest.MonkeyPatch, *, is_refused: bool):
    """By its two statements in one place; where a vault skips the second one, the machine's check fails."""
    world.copy()
    assert world.ask(world.runs[0], "train", COLLUDING, 0)
    assert world.ask(world.runs[0], "train", COLLUDING, 1)
    if is_refused:
        world.require_noticed()
        return
    without_forks(monkeypatch)
    with pytest.raises(AssertionError, match="has not noticed"):
        world.require_noticed()


@pytest.mark.parametrize("is_repeated", [True, False])
def test_a_lost_release_is_sent_again(world: Hostile, monkeypatch: pytest.MonkeyPatch, *, is_repeated: bool):
    """After a vault died between its release and the reply; where it refuses, the machine's check of an end fails."""
    (run,) = world.runs
    for site in (*HONEST, COLLUDING):
        assert world.ask(run, "train", site)
    south = world.vaults["South", 0]
    while not any('"purpose":"release"' in text for text in south.vault.where(run.digest)):
        world.kill("South", 2, written=True)  # the first write is that of its start
        assert not world.ask(run, "release", "South")
    if is_repeated:
        world.require_an_end()
        return
    without_repeats(monkeypatch)
    with pytest.raises(AssertionError, match="no run comes to its end"):
        world.require_an_end()
