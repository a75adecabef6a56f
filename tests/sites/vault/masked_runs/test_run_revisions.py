"""Revisions: a run continues without a site, with a new one, or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from run_hospitals import NOW, Coordinator, Hospital, certified, contract_of, opened, revision_of

from fedpp.config.contract_limits import RunLimits
from fedpp.errors import FederationError, ForkError, PolicyError, VaultError
from fedpp.protocol.run_contract import RunContract
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.state_certificate import LACKS_STATE
from sites.vault.masked_runs import run_refusals
from sites.vault.masked_runs.accepted_contract import RESTORED
from sites.vault.masked_runs.run_endorsements import endorse


def revised(run: Coordinator, contract: RunContract, cohort: Sequence[Hospital]) -> Coordinator:
    """Return the coordinator of a revision, which also has the statements of the old run."""
    return Coordinator(cohort, contract, list(run.statements))


@pytest.fixture
def five(five: list[Hospital]) -> list[Hospital]:
    """Let the sites allow changes of so small a cohort."""
    for of in five:
        of.limits = RunLimits(max_changes=2)
    return five


def test_a_run_goes_on_without_a_site_that_is_away(five: list[Hospital]):
    """Between two rounds: four of five continue from the certified state, in the numbers of its rounds."""
    run = Coordinator(five, contract_of(five, rounds=2)).begin()
    run.round(1)
    after = revised(run, revision_of(run, 1, five[:4]), five[:4]).begin()
    assert {stage.to_bytes() for stage in after.stages()} == {run.stages()[4].to_bytes()}
    ends = after.finish()
    assert len({end.to_bytes() for end in ends}) == 1
    assert (ends[0].number, ends[0].due) == (4, "end")


def test_the_stored_update_is_masked_anew_for_the_smaller_cohort(five: list[Hospital]):
    """A site goes away after P1: the others' updates are not made again, and the old round is never released."""
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    run.train(1)
    after = revised(run, revision_of(run, 0, five[:4]), five[:4]).begin()
    for of in five[:4]:  # no update is sent: the vault has it
        reply = of.vault.train(after.digest, 1, after.statements)
        assert reply is not None
        after.masked[of.name] = reply[0]
        after.statements.append(reply[1])
        with pytest.raises(VaultError, match=run_refusals.OVER):
            of.vault.release(run.digest, 1, run.statements, run.sum().hash)
    after.release(1)
    after.step(1)
    assert len({end.to_bytes() for end in after.finish()}) == 1


def test_a_lock_moves_only_after_the_absent_site_has_burned(five: list[Hospital]):
    """After some have released, the revision needs the burn of who has not; then the first sum is never opened."""
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    run.train(1)
    total, absent = run.sum(), five[4]
    replies = [of.vault.release(run.digest, 1, run.statements, total.hash) for of in five[:2]]
    run.keep(statement for statement, _ in replies)
    after = revised(run, revision_of(run, 0, five[:4]), five[:4])
    after.all_state(lambda of: of.vault.accept(after.contract.to_json(), after.certificates))
    with pytest.raises(VaultError, match=run_refusals.LOCKED):
        five[0].vault.coin(after.digest, after.statements)
    burned = absent.vault.burn(run.digest, run.signed()[-1].statement.facts["aggregate"])
    assert absent.vault.burn(run.digest, run.signed()[-1].statement.facts["aggregate"]) == burned
    with pytest.raises(VaultError, match=run_refusals.BURNED):
        absent.vault.release(run.digest, 1, run.statements, total.hash)
    run.keep([burned])
    for of in five[:4]:
        after.keep([of.vault.coin(after.digest, list(dict.fromkeys([*after.statements, *run.statements])))])
    after.all_state(lambda of: of.vault.start(after.digest, after.statements))
    assert len({end.to_bytes() for end in after.finish()}) == 1
    absent.restart()
    with pytest.raises(VaultError, match=run_refusals.BURNED):
        absent.vault.release(run.digest, 1, run.statements, total.hash)


def test_who_has_released_cannot_burn(five: list[Hospital]):
    """Its mask may be known."""
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    run.train(1)
    five[0].vault.release(run.digest, 1, run.statements, run.sum().hash)
    with pytest.raises(VaultError, match=run_refusals.RELEASED):
        five[0].vault.burn(run.digest, "ab" * 32)


def test_a_lock_never_moves_to_a_cohort_without_a_burn_of_each(five: list[Hospital]):
    """A burn by one of two absent sites is not enough; one of a site that stays does not count."""
    for of in five:
        of.limits = RunLimits(max_changes=2, min_honest=2)
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    run.train(1)
    statement, _ = five[0].vault.release(run.digest, 1, run.statements, run.sum().hash)
    run.keep([statement, five[3].vault.burn(run.digest, "ab" * 32)])
    after = revised(run, revision_of(run, 0, five[:4]), five[:4])
    after.all_state(lambda of: of.vault.accept(after.contract.to_json(), after.certificates))
    with pytest.raises(VaultError, match=run_refusals.LOCKED):
        five[0].vault.coin(after.digest, list(dict.fromkeys([*after.statements, *run.statements])))


def test_a_site_that_was_installed_again_is_another_one(tmp_path: Path):
    """Its old identity has not burned, and may still release: a lock does not move to its new one."""
    with opened(tmp_path, 7) as seven:
        for of in seven:
            of.limits = RunLimits(max_changes=9)
        run = Coordinator(seven, contract_of(seven, rounds=1)).begin()
        run.train(1)
        statement, _ = seven[0].vault.release(run.digest, 1, run.statements, run.sum().hash)
        run.keep([statement, seven[5].vault.burn(run.digest, "ab" * 32)])
        again = Hospital("Zenith", certified("Zenith", 99), seven[6].dataset, tmp_path / "again", seven[6].limits)
        cohort = [*seven[:5], again.open()]
        after = revised(run, revision_of(run, 0, cohort), cohort)
        assert after.contract.parent is not None
        endorse(again.folder, again.site, after.contract.parent.base, NOW.replace(year=2028))
        after.all_state(lambda of: of.vault.accept(after.contract.to_json(), after.certificates))
        with pytest.raises(VaultError, match=run_refusals.LOCKED):
            seven[0].vault.coin(after.digest, after.statements)
        again.journal.close()


def test_a_proof_of_two_statements_is_as_good_as_a_burn(five: list[Hospital]):
    """Whoever signs two statements in one place does not hold a run up."""
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    run.train(1)
    liar = five[4]
    statement, _ = five[0].vault.release(run.digest, 1, run.statements, run.sum().hash)
    run.keep([statement])
    (signed,) = [s for s in run.signed() if (s.statement.site, s.statement.purpose) == (liar.name, "train")]
    other = signed.statement.changed(facts={**signed.statement.facts, "seed": "ab" * 32})
    proof = SignedStatement.by(liar.site.identity.sign, other).to_json()
    after = revised(run, revision_of(run, 0, five[:4]), five[:4])
    after.all_state(lambda of: of.vault.accept(after.contract.to_json(), after.certificates))
    with pytest.raises(VaultError, match=run_refusals.LOCKED):
        five[0].vault.coin(after.digest, after.statements)
    with pytest.raises(ForkError):
        five[0].vault.coin(after.digest, [proof])
    five[0].restart()
    after.all_state(lambda of: of.vault.coin(after.digest, after.statements))
    after.all_state(lambda of: of.vault.start(after.digest, after.statements))
    assert len({end.to_bytes() for end in after.finish()}) == 1


def test_a_lock_does_not_move_to_another_plan(five: list[Hospital]):
    """Other code may make another update of the same model: what was released is not masked again for it."""
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    run.train(1)
    statement, _ = five[0].vault.release(run.digest, 1, run.statements, run.sum().hash)
    run.keep([statement, five[4].vault.burn(run.digest, "ab" * 32)])
    for of in five:
        of.bundles = (*of.bundles, "ab" * 32)
    after = revised(run, revision_of(run, 0, five[:4], bundle="ab" * 32), five[:4])
    after.all_state(lambda of: of.vault.accept(after.contract.to_json(), after.certificates))
    with pytest.raises(VaultError, match=run_refusals.LOCKED):
        five[0].vault.coin(after.digest, after.statements)
    assert five[1].vault.coin(after.digest, after.statements)


def test_who_has_burned_masks_nothing_in_that_round(five: list[Hospital]):
    """Also if it had not masked before."""
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    of = five[0]
    of.vault.burn(run.digest, "ab" * 32)
    with pytest.raises(VaultError, match=run_refusals.BURNED):
        of.vault.train(run.digest, 1, run.statements, of.update(1), of.logits(1, "validation"))


def test_a_site_is_in_one_successor_at_a_time(five: list[Hospital]):
    """It abandons one, for ever, before it signs another; then it cannot go back."""
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    one = revised(run, revision_of(run, 0, five[:4]), five[:4])
    two = revised(run, revision_of(run, 0, five[1:], nonce="ef" * 32), five[1:])
    one.all_state(lambda of: of.vault.accept(one.contract.to_json(), one.certificates))
    with pytest.raises(FederationError, match="another revision of that run"):
        five[1].vault.accept(two.contract.to_json(), two.certificates)
    one.all_state(lambda of: of.vault.coin(one.digest, one.statements))
    with pytest.raises(VaultError, match=run_refusals.OVER):  # it has revealed its coin in the revision
        five[1].vault.train(run.digest, 1, run.statements, five[1].update(1), five[1].logits(1, "validation"))
    abandoned = [of.vault.abandon(one.digest) for of in five[:4]]
    assert abandoned == [of.vault.abandon(one.digest) for of in five[:4]]
    with pytest.raises(VaultError, match=run_refusals.OVER):
        five[1].vault.start(one.digest, one.statements)
    two.begin()
    assert len({end.to_bytes() for end in two.finish()}) == 1


def test_a_run_that_trained_is_not_abandoned(five: list[Hospital]):
    """A masked update is out: the site stays, and another successor needs it to."""
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    run.train(1)
    with pytest.raises(VaultError, match=run_refusals.TRAINED):
        five[0].vault.abandon(run.digest)


def test_a_site_that_trained_leaves_a_revision_that_another_one_left(five: list[Hospital]):
    """A request to train that came late must not bind it for ever to a run that can never release."""
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    one = revised(run, revision_of(run, 0, five[:4]), five[:4]).begin()
    _, late = one.trained(five[1], 1)
    one.keep([late])
    with pytest.raises(VaultError, match=run_refusals.TRAINED):
        five[1].vault.abandon(one.digest)
    one.keep([five[0].vault.abandon(one.digest)])
    assert five[1].vault.train(one.digest, 1, one.statements) is not None  # it learns that the other one left
    for of in five[1:4]:
        of.vault.abandon(one.digest)
    with pytest.raises(VaultError, match=run_refusals.OVER):
        five[2].vault.train(one.digest, 1, one.statements)
    two = revised(run, revision_of(run, 0, five[1:], nonce="ef" * 32), five[1:]).begin()
    assert len({end.to_bytes() for end in two.finish()}) == 1


def test_an_abandoned_revision_leaves_the_old_run_alive(five: list[Hospital]):
    """The site that was away comes back before the revision started."""
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    after = revised(run, revision_of(run, 0, five[:4]), five[:4])
    after.all_state(lambda of: of.vault.accept(after.contract.to_json(), after.certificates))
    after.all_state(lambda of: of.vault.coin(after.digest, after.statements))
    for of in five[:4]:
        of.vault.abandon(after.digest)
    assert len({end.to_bytes() for end in run.finish()}) == 1


def test_a_new_site_joins_at_a_state_that_its_staff_endorsed(five: list[Hospital]):
    """It is given the state by another member, and contributes from the next round on."""
    old, joining = five[:4], five[4]
    run = Coordinator(old, contract_of(old, rounds=2)).begin()
    run.round(1)
    after = revised(run, revision_of(run, 1, five), five)
    assert after.contract.parent is not None
    with pytest.raises(VaultError, match=run_refusals.UNENDORSED):
        joining.vault.accept(after.contract.to_json(), after.certificates)
    endorse(joining.folder, joining.site, after.contract.parent.base, NOW.replace(year=2028))
    after.all_state(lambda of: of.vault.accept(after.contract.to_json(), after.certificates))
    after.all_state(lambda of: of.vault.coin(after.digest, after.statements))
    with pytest.raises(VaultError, match=LACKS_STATE):
        joining.vault.start(after.digest, after.statements)
    joining.vault.load_stage(after.digest, after.statements, list(old[0].vault.sealed_stage(run.digest)))
    after.all_state(lambda of: of.vault.start(after.digest, after.statements))
    assert len({end.to_bytes() for end in after.finish()}) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"changes": 0}, "counts changes"),
        ({"rounds": 5}, "changes the cohort alone"),
        ({"max_step": 3.0}, "changes the cohort alone"),
        ({"revision": 2}, "names its parent"),
        ({"monitor": "loss"}, "changes the cohort alone"),
        ({"colluders": 2}, "changes the cohort alone"),
    ],
)
def test_a_revision_that_is_none_is_refused(five: list[Hospital], change: dict[str, Any], reason: str):
    """It continues one run, from one certified state, with other members and nothing else."""
    run = Coordinator(five, contract_of(five, rounds=2)).begin()
    after = revised(run, revision_of(run, 0, five[:4], **change), five[:4])
    after.all_state(lambda of: of.vault.accept(after.contract.to_json(), after.certificates))
    with pytest.raises(FederationError, match=reason):
        five[0].vault.coin(after.digest, after.statements)


def test_changes_of_a_small_cohort_need_the_staff(five: list[Hospital]):
    """By default a run of five waits for who is away."""
    run = Coordinator(five, contract_of(five, rounds=2)).begin()
    after = revised(run, revision_of(run, 0, five[:4]), five[:4])
    for of in five:
        of.limits = RunLimits()
    with pytest.raises(PolicyError, match="allows 0 changes"):
        five[0].vault.accept(after.contract.to_json(), after.certificates)


def test_changes_count_against_all_cohorts_of_a_run(tmp_path: Path):
    """Four sites leave ten, and three come back: no sum may then be of all but one of the ten."""
    with opened(tmp_path, 10) as ten:
        run = Coordinator(ten, contract_of(ten, rounds=2)).begin()
        six, nine = revised(run, revision_of(run, 0, ten[:6]), ten[:6]).begin(), ten[:9]
        starts = [signed.to_json() for signed in six.signed() if signed.statement.contract == six.digest]
        last = Coordinator(nine, revision_of(six, 0, nine, nonce="ef" * 32), starts)
        assert last.contract.parent is not None
        for of in nine[6:]:
            endorse(of.folder, of.site, last.contract.parent.base, NOW.replace(year=2028))
        last.keep([of.vault.accept(last.contract.to_json(), last.certificates) for of in nine])
        with pytest.raises(FederationError, match="changes by few sites: 1 are due, got 0"):
            ten[0].vault.coin(last.digest, last.statements)


def test_a_restored_vault_enters_no_revision_of_its_run(five: list[Hospital]):
    """It has left that run for good."""
    run = Coordinator(five, contract_of(five, rounds=2)).begin()
    after = revised(run, revision_of(run, 0, five[:4]), five[:4])
    with five[0].journal.writing():
        five[0].journal.update("contracts", {"ended": RESTORED}, digest=run.digest)
    with pytest.raises(VaultError, match=run_refusals.RESTORED):
        five[0].vault.accept(after.contract.to_json(), after.certificates)
