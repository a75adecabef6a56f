"""Revisions: a run continues without a site, with a new one, or not at all."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_hospitals import DOMAIN, NOW, TINY, Coordinator, Hospital, certified, contract_of, opened, revision_of

from fedpp.aggregation.global_state import warm_start
from fedpp.aggregation.run_schedule import RunSchedule
from fedpp.aggregation.run_stage import RunStage
from fedpp.config.contract_limits import RunLimits
from fedpp.errors import FederationError, ForkError, PolicyError, VaultError
from fedpp.keys.sealed_stage import SealedStage
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.run_contract import LiftedLock, Parent, RunContract
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.state_certificate import LACKS_STATE
from sites.vault.masked_runs import run_refusals
from sites.vault.masked_runs.accepted_contract import RESTORED
from sites.vault.masked_runs.run_endorsements import endorse, lift, lock_id
from sites.vault.masked_runs.run_site import digest_key


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


def test_a_revision_carries_the_training_labels_over(five: list[Hospital]):
    """They were opened for the cohort of round 1: its smaller successor opens none, and weighs as before."""
    run = Coordinator(five, contract_of(five, rounds=2, positive_weight=0.0)).begin()
    run.round(1)
    opened = {stage.labels for stage in run.stages()}
    assert opened == {(15, 15)}
    contract = revision_of(run, 1, five[:4])
    after = revised(run, contract.changed(spec=contract.spec.changed(positive_weight=0.0)), five[:4]).begin()
    assert {stage.labels for stage in after.stages()} == opened
    after.round(2)
    assert {stage.labels for stage in after.stages()} == opened
    stated = [s.statement for s in after.signed() if s.statement.purpose == "step" and s.statement.round == 2]
    assert len(stated) == 4
    assert not any('"labels"' in of.facts["counts"] for of in stated)


def test_stored_labels_are_masked_anew_for_the_smaller_cohort(five: list[Hospital]):
    """Before round 1 is opened the revision opens them, as each vault counted them, whatever its policy is now."""
    run = Coordinator(five, contract_of(five, rounds=1, positive_weight=0.0)).begin()
    run.train(1)
    contract = revision_of(run, 0, five[:4])
    after = revised(run, contract.changed(spec=contract.spec.changed(positive_weight=0.0)), five[:4]).begin()
    for of in five[:4]:  # no update is sent: the vault has it
        reply = of.vault.train(after.digest, 1, after.statements)
        assert reply is not None
        after.masked[of.name] = reply[0]
        after.statements.append(reply[1])
    after.release(1)
    after.step(1)
    assert {stage.labels for stage in after.stages()} == {(12, 12)}


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


def test_a_burn_of_a_site_that_stays_moves_no_lock(five: list[Hospital]):
    """The site that is left out has not burned, and may still release."""
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


def test_sites_join_no_run_that_none_but_colluders_were_in(cohort: list[Hospital]):
    """Their staff endorsed a state whose digest a member told them, of weights of its choice, and of no run at all."""
    contract = contract_of(cohort)
    spec, rows = contract.spec, encrypted_initial_weights(TINY, 7, DOMAIN.computing_key())
    model = EncryptedModel(TINY, spec.domain, TINY.task.classes, rows)
    chosen = RunStage(replace(warm_start(model, spec.server_optimizer), round=1), RunSchedule(state=1, chosen=1))
    base = chosen.digest(digest_key(DOMAIN))
    for of in cohort:
        endorse(of.folder, of.site, base, NOW.replace(year=2028))
    run = Coordinator(cohort, contract.changed(revision=1, parent=Parent("cd" * 32, 1, base)))
    run.all_state(lambda of: of.vault.accept(run.contract.to_json(), run.certificates))
    run.all_state(lambda of: of.vault.coin(run.digest, run.statements))
    sealed = b"".join(SealedStage(chosen).seal(DOMAIN.state_sealer(), ""))
    for of in cohort:
        of.vault.load_stage(run.digest, run.statements, [sealed])
        with pytest.raises(VaultError, match=run_refusals.UNVERIFIED):
            of.vault.start(run.digest, run.statements)


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


def locked_round(five: list[Hospital]) -> tuple[Coordinator, Coordinator]:
    """Return a run in which two of five have released, and a revision without the last one, which burned nothing."""
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    run.train(1)
    total = run.sum()
    run.keep(of.vault.release(run.digest, 1, run.statements, total.hash)[0] for of in five[:2])
    lifted = (LiftedLock(five[4].name, 1),)
    return run, revised(run, revision_of(run, 0, five[:4], lifted=lifted), five[:4])


def further(run: Coordinator, contract: RunContract, cohort: Sequence[Hospital]) -> Coordinator:
    """Return the coordinator of a revision of a revision, which has the statements of that one alone."""
    own = [each.to_json() for each in run.signed() if each.statement.contract == run.digest]
    return Coordinator(cohort, contract, own)


def lifted_by(of: Hospital, run: Coordinator, number: int = 1, absent: str = "Xenia", days: int = 9) -> None:
    """Let a hospital's staff lift a lock."""
    lift(of.folder, of.site, run.digest, number, absent, NOW + timedelta(days=days))


def test_a_lock_that_all_staff_lifted_needs_no_burn(five: list[Hospital]):
    """The contract states it; each vault signs it only after its own staff lifted that lock, with or without one."""
    run, after = locked_round(five)
    for of in five[:4]:
        with pytest.raises(VaultError, match=run_refusals.NOT_LIFTED):
            of.vault.accept(after.contract.to_json(), after.certificates)
        lifted_by(of, run)
    after.begin()
    assert len({end.to_bytes() for end in after.finish()}) == 1
    report = json.loads(next((five[0].folder / "reports").glob(f"{after.digest[:16]}*")).read_text())
    assert report["lifted"] == [{"round": 1, "site": "Xenia"}]


@pytest.mark.parametrize("wrong", ["round", "site", "contract", "expired", "endorsed", "other site's"])
def test_a_lift_is_of_one_lock_alone(five: list[Hospital], wrong: str):
    """Of another round, site, contract or hospital, an old one, or an endorsement of the same digest is none."""
    run, after = locked_round(five)
    of = five[0]
    if wrong == "endorsed":
        endorse(of.folder, of.site, lock_id(run.digest, 1, "Xenia"), NOW.replace(year=2028))
        (of.folder / "endorsed").rename(of.folder / "lifted")
    elif wrong == "other site's":
        lift(of.folder, five[1].site, run.digest, 1, "Xenia", NOW + timedelta(days=9))
    else:
        digest = {"contract": after}.get(wrong, run)
        lifted_by(
            of, digest, 2 if wrong == "round" else 1, "West" if wrong == "site" else "Xenia", -(wrong == "expired")
        )
    with pytest.raises(VaultError, match=run_refusals.NOT_LIFTED):
        of.vault.accept(after.contract.to_json(), after.certificates)


def test_a_lift_serves_one_absence(five: list[Hospital]):
    """A lock is not moved by a lift that its contract has stated before: the site had returned since."""
    run, xenia = Coordinator(five, contract_of(five, rounds=1)).begin(), five[4]
    lifted = (LiftedLock("Xenia", 1),)
    after = revised(run, revision_of(run, 0, five[:4], lifted=lifted), five[:4])
    for of in five[:4]:
        lifted_by(of, run)
    after.begin()
    back = further(after, revision_of(after, 0, five, changes=2, lifted=lifted), five)
    assert back.contract.parent is not None
    endorse(xenia.folder, xenia.site, back.contract.parent.base, NOW.replace(year=2028))
    lifted_by(xenia, after)
    back.all_state(lambda of: of.vault.accept(back.contract.to_json(), back.certificates))
    back.all_state(lambda of: of.vault.coin(back.digest, back.statements))
    xenia.vault.load_stage(back.digest, back.statements, list(five[0].vault.sealed_stage(after.digest)))
    back.all_state(lambda of: of.vault.start(back.digest, back.statements))
    back.train(1)
    back.keep(of.vault.release(back.digest, 1, back.statements, back.sum().hash)[0] for of in five[:2])
    again = further(back, revision_of(back, 0, five[:4], changes=3, lifted=lifted), five[:4])
    for of in five[:4]:
        of.limits = RunLimits(max_changes=9)
    again.all_state(lambda of: of.vault.accept(again.contract.to_json(), again.certificates))
    with pytest.raises(VaultError, match=run_refusals.LOCKED):
        five[0].vault.coin(again.digest, again.statements)


@pytest.mark.parametrize("lifted", [(), ("West", "Xenia")])
def test_a_revision_hides_no_lift_and_lifts_for_none_that_stays(five: list[Hospital], lifted: tuple[str, ...]):
    """Earlier lifts stay in it; a new one is of a site that leaves."""
    run, after = locked_round(five)
    for of in five[:4]:
        lifted_by(of, run)
        lifted_by(of, run, absent="West")
    if lifted:
        made = revision_of(run, 0, five[:4], lifted=tuple(LiftedLock(name, 1) for name in lifted))
        last = revised(run, made, five[:4])
    else:
        after.begin()
        after.train(1)
        for of in five[:4]:
            of.limits = RunLimits(max_changes=9)
        last = further(after, revision_of(after, 0, five[:3], nonce="ef" * 32), five[:3])
    last.all_state(lambda of: of.vault.accept(last.contract.to_json(), last.certificates))
    with pytest.raises(FederationError, match="keeps earlier lifted locks, and lifts those"):
        five[0].vault.coin(last.digest, last.statements)


def arrays(of: Hospital) -> int:
    """Return how many arrays a vault keeps."""
    return len(list((of.folder / "arrays").iterdir()))


def test_what_no_run_needs_is_freed(five: list[Hospital]):
    """A run that a revision replaced keeps its states until the revision has one; all arrays go when it has expired."""
    run = Coordinator(five, contract_of(five, rounds=2)).begin()
    run.round(1)
    run.train(2)
    after = revised(run, revision_of(run, 1, five[:4]), five[:4]).begin()
    of = five[0]
    before = of.journal.rows("stages", "round", "round", contract=run.digest)
    assert [number for (number,) in before] == [0, 1]
    after.finish()
    of.restart()
    assert of.vault.where(run.contract.nonce)  # statements stay
    of.vault.stage(after.digest)
    assert of.journal.rows("stages", "round", contract=run.digest) == []
    assert of.journal.rows("updates", "round") == []
    assert 0 < arrays(of) <= 3
    locks = of.journal.rows("locks", "weights")
    of.now = NOW + timedelta(days=31)
    of.restart()
    with pytest.raises(FederationError, match="it is good until"):
        of.vault.stage(after.digest)
    assert arrays(of) == 0
    assert of.journal.rows("locks", "weights") == locks


def test_an_abandoned_revision_costs_the_run_no_update(five: list[Hospital]):
    """The update that the site masked in the run is still there, and a state from which another revision starts."""
    run = Coordinator(five, contract_of(five, rounds=1)).begin()
    run.train(1)
    of, masked = five[0], run.masked[five[0].name]
    one = revised(run, revision_of(run, 0, five[:4]), five[:4])
    of.vault.accept(one.contract.to_json(), one.certificates)
    of.vault.abandon(one.digest)
    of.restart()
    again, _ = run.trained(of, 1)
    np.testing.assert_array_equal(again, masked)
    two = revised(run, revision_of(run, 0, five[:4], nonce="ef" * 32), five[:4]).begin()
    for each in five[:4]:
        each.vault.abandon(two.digest)
        each.restart()
    three = revised(run, revision_of(run, 0, five[:4], nonce="ab" * 32), five[:4]).begin()
    assert three.contract.n == 4
    assert of.vault.train(three.digest, 1, three.statements) is not None  # without training again
