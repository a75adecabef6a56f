"""What a vault refuses in a round: false sums, tags and masks, missing statements, and a second sum."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from run_hospitals import DOMAIN, NOW, TINY, Coordinator, Hospital, contract_of

from fedpp.aggregation.linear_check import ExactSum
from fedpp.aggregation.run_stage import RunStage
from fedpp.errors import FederationError, MissingLinksError, VaultError
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.sealed_stage import SealedStage
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.run_statements import SignedStatement
from sites.vault.masked_runs import run_refusals
from sites.vault.masked_runs.accepted_contract import AcceptedContract
from sites.vault.masked_runs.member_rounds import MemberRound, _sealed
from sites.vault.masked_runs.run_endorsements import ENDORSED, endorse, model_id


def released(cohort: list[Hospital]) -> Coordinator:
    """Return a run whose first round is released."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    run.train(1)
    run.release(1)
    return run


def stepped(run: Coordinator, total: ExactSum, sealed: list[bytes], statements: list[str] | None = None) -> str:
    """Ask the first vault to step."""
    given = run.statements if statements is None else statements
    return run.cohort[0].vault.step(run.digest, 1, given, sealed, total.low, total.carry)


def resigned(of: Hospital, text: str, **facts: str) -> str:
    """Return a statement of a dishonest hospital: other facts, its own signature."""
    signed = SignedStatement.from_json(text)
    statement = signed.statement.changed(facts={**signed.statement.facts, **facts})
    return SignedStatement.by(of.site.identity.sign, statement).to_json()


def of_site(run: Coordinator, name: str, purpose: str) -> str:
    """Return the newest statement of a site and purpose."""
    found = [s for s in run.signed() if (s.statement.site, s.statement.purpose) == (name, purpose)]
    return found[-1].to_json()


def one_more(total: ExactSum) -> None:
    total.low[0] += 1


def a_ring_more(total: ExactSum) -> None:
    total.carry[3] += 1


def a_carry_of_three(total: ExactSum) -> None:
    total.carry[:] = 3


@pytest.mark.parametrize("change", [one_more, a_ring_more, a_carry_of_three])
def test_a_sum_that_is_not_the_sum_is_not_opened(cohort: list[Hospital], change: Callable[[ExactSum], None]):
    """One word, or one carry, that is another: its hash is not the one that all members named."""
    run = released(cohort)
    sealed = [run.sealed[of.name] for of in cohort]
    total = run.sum()
    change(total)
    with pytest.raises(VaultError, match=run_refusals.FALSE_SUM):
        stepped(run, total, sealed)
    assert stepped(run, run.sum(), sealed)


@pytest.mark.parametrize("change", [one_more, a_ring_more])
def test_a_false_sum_that_was_named_before_the_release_does_not_fit_the_tags(
    cohort: list[Hospital], change: Callable[[ExactSum], None]
):
    """The challenge follows from the hash of the false sum: no tag of an honest site fits it."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    run.train(1)
    total = run.sum()
    change(total)
    replies = {of.name: of.vault.release(run.digest, 1, run.statements, total.hash) for of in cohort}
    run.keep(statement for statement, _ in replies.values())
    with pytest.raises(VaultError, match=run_refusals.FALSE_SUM):
        stepped(run, total, [sealed for _, sealed in replies.values()])
    assert cohort[0].vault.stage(run.digest) == cohort[1].vault.stage(run.digest)  # still the first one


def test_a_second_sum_is_never_released_for(cohort: list[Hospital]):
    """After T for one sum a vault names no other, whatever is asked, also after a restart."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    run.train(1)
    statement, sealed = cohort[0].vault.release(run.digest, 1, run.statements, run.sum().hash)
    for _ in range(2):
        with pytest.raises(VaultError, match=run_refusals.OTHER_REQUEST):
            cohort[0].vault.release(run.digest, 1, run.statements, sha256(b"another").hexdigest())
        cohort[0].restart()
    assert cohort[0].vault.release(run.digest, 1, run.statements, run.sum().hash) == (statement, sealed)


def test_seals_of_other_sites_or_too_few_are_refused(cohort: list[Hospital]):
    """Each member's own mask comes in its place."""
    run = released(cohort)
    seals = [run.sealed[of.name] for of in cohort]
    for wrong in ([seals[1], seals[0], seals[2]], seals[:2], [*seals, seals[0]], [*seals[:2], b""]):
        with pytest.raises(VaultError, match=run_refusals.FALSE_SUM):
            stepped(run, run.sum(), wrong)
    assert stepped(run, run.sum(), seals)


@pytest.mark.parametrize("wrong", ["seed", "site", "sum", "domain"])
def test_a_member_that_seals_another_mask_stops_the_round(cohort: list[Hospital], wrong: str):
    """A seed whose hash it did not sign, or one that is bound to another site or sum, or sealed by another key."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    run.train(1)
    total, dishonest = run.sum(), cohort[2]
    replies = {of.name: of.vault.release(run.digest, 1, run.statements, total.hash) for of in cohort}
    text, _ = replies[dishonest.name]
    of, stages = dishonest.vault._of, dishonest.vault._stages
    at = MemberRound.of_number(of, AcceptedContract.load(of, run.digest), stages, 1)
    aggregate = SignedStatement.from_json(text).statement.facts["aggregate"]
    bound = at._bound("ab" * 32 if wrong == "sum" else aggregate, "East" if wrong == "site" else dishonest.name)
    sealer = of if wrong != "domain" else replace(of, site=replace(of.site, domain=KeyDomain.of_secret(bytes(32), n=2)))
    sealed = _sealed(sealer, bytes(32) if wrong == "seed" else at._seed(), bound)
    run.keep([replies[of.name][0] for of in cohort[:2]])
    run.keep([resigned(dishonest, text, sealed=sha256(sealed).hexdigest())])
    with pytest.raises(VaultError, match=run_refusals.FALSE_SUM):
        stepped(run, total, [*(replies[of.name][1] for of in cohort[:2]), sealed])


@pytest.mark.parametrize("facts", [{"tag": "5"}, {"aggregate": "ab" * 32}, {"sealed": "cd" * 32}])
def test_a_member_that_signs_another_release_stops_the_round(cohort: list[Hospital], facts: dict[str, str]):
    """A tag of its own, another sum, another seal: nobody steps, and the state before stays the newest."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    run.train(1)
    total, dishonest = run.sum(), cohort[2]
    replies = {of.name: of.vault.release(run.digest, 1, run.statements, total.hash) for of in cohort}
    text, _ = replies[dishonest.name]
    run.keep([replies[of.name][0] for of in cohort[:2]] + [resigned(dishonest, text, **facts)])
    before = cohort[0].vault.stage(run.digest)
    with pytest.raises(VaultError, match=run_refusals.FALSE_SUM):
        stepped(run, total, [sealed for _, sealed in replies.values()])
    assert cohort[0].vault.stage(run.digest) == before


def test_a_missing_statement_is_asked_for_by_its_place(cohort: list[Hospital]):
    """Each phase needs the statements of all members of the one before; the refusal names what is missing."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1))
    first = cohort[0]
    run.all_state(lambda of: of.vault.accept(run.contract.to_json(), run.certificates))
    with pytest.raises(MissingLinksError, match="North"):
        first.vault.coin(run.digest, [text for text in run.statements if "North" not in text])
    run.all_state(lambda of: of.vault.coin(run.digest, run.statements))
    with pytest.raises(MissingLinksError) as missing:
        first.vault.start(run.digest, run.statements[:-1])
    assert missing.value.places == {"South": 1}
    run.all_state(lambda of: of.vault.start(run.digest, run.statements))
    with pytest.raises(MissingLinksError):
        first.vault.train(run.digest, 1, run.statements[:-1], first.update(1), first.logits(1, "validation"))
    run.train(1)
    with pytest.raises(MissingLinksError):
        first.vault.release(run.digest, 1, run.statements[:-1], run.sum().hash)
    run.release(1)
    with pytest.raises(MissingLinksError):
        stepped(run, run.sum(), [run.sealed[of.name] for of in cohort], run.statements[:-1])


def test_a_round_needs_the_certificate_of_its_base(five: list[Hospital]):
    """Three signatures of five are none; four are one, and the fifth site's is not needed."""
    run = Coordinator(five, contract_of(five, rounds=2)).begin()
    run.train(1)
    run.release(1)
    total, sealed = run.sum(), [run.sealed[of.name] for of in five]
    steps = [of.vault.step(run.digest, 1, run.statements, sealed, total.low, total.carry) for of in five[:4]]
    arrays = five[0].update(2), five[0].logits(2, "validation")
    with pytest.raises(FederationError, match="too few for a certificate"):
        five[0].vault.train(run.digest, 2, [*run.statements, *steps[1:3]], *arrays)
    assert five[0].vault.train(run.digest, 2, [*run.statements, *steps], *arrays)


def test_a_state_that_the_others_certified_counts_and_not_the_own(five: list[Hospital]):
    """A vault that computed another one masks nothing on it; it takes the certified one."""
    run = Coordinator(five, contract_of(five, rounds=2)).begin()
    run.train(1)
    run.release(1)
    total, sealed = run.sum(), [run.sealed[of.name] for of in five]
    of, others = five[0], five[1:]
    arguments = run.digest, 1, list(run.statements), sealed, total.low, total.carry
    steps = [each.vault.step(*arguments) for each in others]
    of.vault.step(*arguments)
    key = of.vault._of.digest_key
    certified = replace(RunStage.from_bytes(of.vault.stage(run.digest)), aggregate="ab" * 32)
    signed = [resigned(each, text, state=certified.digest(key)) for each, text in zip(others, steps, strict=True)]
    arrays = of.update(2), of.logits(2, "validation")
    with pytest.raises(VaultError, match=run_refusals.UNLIKE):
        of.vault.train(run.digest, 2, signed, *arrays)
    content = list(SealedStage(certified).seal(DOMAIN.state_sealer(), "by the others"))
    of.vault.load_stage(run.digest, [], content)
    assert of.vault.stage(run.digest) == certified.to_bytes()
    assert of.vault.train(run.digest, 2, [], *arrays)


def test_rounds_come_one_after_another(cohort: list[Hospital]):
    """Neither a later round nor one that is over is masked; a run that has ended has no next one."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    first = cohort[0]
    with pytest.raises(VaultError, match="the certified state is missing"):
        first.vault.train(run.digest, 2, run.statements)
    run.finish()
    with pytest.raises(VaultError, match=run_refusals.OTHER_ROUND):
        first.vault.train(run.digest, 1, run.statements)
    with pytest.raises(VaultError, match=run_refusals.OTHER_ROUND):
        first.vault.train(run.digest, 4, run.statements)


def test_an_update_that_cannot_be_masked_has_one_text(cohort: list[Hospital], caplog: pytest.LogCaptureFixture):
    """What is wrong with a site's values stands in its own log alone."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    first = cohort[0]
    update, logits = first.update(1), first.logits(1, "validation")
    update[5] = np.nan
    with pytest.raises(VaultError) as bad_update:
        first.vault.train(run.digest, 1, run.statements, update, logits)
    logits[0] = np.inf
    with pytest.raises(VaultError) as bad_logits:
        first.vault.train(run.digest, 1, run.statements, first.update(1), logits)
    assert str(bad_update.value) == str(bad_logits.value) == run_refusals.NO_UPDATE
    assert "the update holds values that are not finite" in caplog.text
    assert "the predictions are not finite" in caplog.text


def test_an_update_beyond_the_bound_is_clipped(cohort: list[Hospital], caplog: pytest.LogCaptureFixture):
    """The vault scales it, says so in its own log, and the run continues."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    first = cohort[0]
    large = first.update(1) * 1000.0
    assert first.vault.train(run.digest, 1, run.statements, large, first.logits(1, "validation"))
    assert "was scaled to its bound" in caplog.text
    assert len({stage.to_bytes() for stage in run.finish()}) == 1


@pytest.mark.parametrize("change", [{}, {"learning_rate": 0.04}, {"rounds": 7}])
def test_two_runs_from_one_endorsed_model_are_not_both_opened(cohort: list[Hospital], change: dict[str, Any]):
    """What was released for a model's weights is released nowhere else: same plan, another one, longer."""
    model = endorsed(cohort)
    run = Coordinator(cohort, contract_of(cohort, rounds=1, initial=model)).begin()
    other = Coordinator(
        cohort, contract_of(cohort, **{"rounds": 1, "initial": model, "nonce": "ab" * 32, **change})
    ).begin()
    assert (
        run.stages()[0].state.rows["logits/kernel"].tobytes() == other.stages()[0].state.rows["logits/kernel"].tobytes()
    )
    run.train(1)
    run.release(1)
    for of in cohort:
        with pytest.raises(VaultError, match=run_refusals.LOCKED):
            of.vault.train(other.digest, 1, other.statements, of.update(1), of.logits(1, "validation"))
    run.step(1)
    assert len({stage.to_bytes() for stage in run.finish()}) == 1


def test_a_masked_update_is_not_released_in_a_second_run(cohort: list[Hospital]):
    """Masked in two runs before either was released: the first sum wins, and the other is never opened."""
    model = endorsed(cohort)
    run = Coordinator(cohort, contract_of(cohort, rounds=1, initial=model)).begin()
    other = Coordinator(cohort, contract_of(cohort, rounds=1, initial=model, nonce="ab" * 32)).begin()
    run.train(1)
    other.train(1)
    run.release(1)
    with pytest.raises(VaultError, match=run_refusals.LOCKED):
        cohort[0].vault.release(other.digest, 1, other.statements, other.sum().hash)


def test_a_run_from_an_endorsed_model_opens_no_counts_of_it(cohort: list[Hospital]):
    """Another run may have opened those of the same weights, over other sites."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1, initial=endorsed(cohort))).begin()
    run.round(1)
    first, after = run.stages()[0].counts, run.finish()[0].counts
    assert first is not None
    assert after is not None
    assert (first.examples, after.examples) == (0, 9)


@pytest.mark.parametrize("wrong", ["missing", "expired", "other site", "other model"])
def test_a_model_without_this_site_s_endorsement_is_refused(cohort: list[Hospital], wrong: str):
    """Each hospital endorses for itself, for a time, one model."""
    model, of = endorsed(cohort), cohort[0]
    file = of.folder / ENDORSED / f"{model}.json"
    if wrong == "missing":
        file.unlink()
    elif wrong == "expired":
        endorse(of.folder, of.site, model, NOW)
    elif wrong == "other site":
        shutil.copy(cohort[1].folder / ENDORSED / file.name, file)
    else:
        file.write_text(file.read_text().replace(model, "ab" * 32))
    run = Coordinator(cohort, contract_of(cohort, initial=model))
    with pytest.raises(VaultError, match=run_refusals.UNENDORSED):
        of.vault.accept(run.contract.to_json(), run.certificates)
    assert cohort[1].vault.accept(run.contract.to_json(), run.certificates)


def test_an_endorsement_that_is_withdrawn_before_the_start_counts_no_more(cohort: list[Hospital]):
    """Between contract and start may be weeks, in which it expires, or the staff removes it."""
    run = Coordinator(cohort, contract_of(cohort, initial=endorsed(cohort)))
    run.all_state(lambda of: of.vault.accept(run.contract.to_json(), run.certificates))
    run.all_state(lambda of: of.vault.coin(run.digest, run.statements))
    cohort[0].now = NOW + timedelta(days=4)
    (cohort[1].folder / ENDORSED / f"{run.contract.initial}.json").unlink()
    for of in cohort[:2]:
        with pytest.raises(VaultError, match=run_refusals.UNENDORSED):
            of.vault.start(run.digest, run.statements)
    assert cohort[2].vault.start(run.digest, run.statements)


def endorsed(cohort: list[Hospital]) -> str:
    """Let all hospitals endorse one model; return its identifier."""
    rows = encrypted_initial_weights(TINY, 5, DOMAIN.computing_key())
    model = EncryptedModel(TINY, DOMAIN.card().fingerprint, TINY.task.classes, rows)
    (identifier,) = {model_id(of.site, model) for of in cohort}
    for of in cohort:
        endorse(of.folder, of.site, identifier, NOW + timedelta(days=3), model)
    return identifier


def test_lists_are_counted_before_one_of_them_is_parsed(cohort: list[Hospital]):
    """40,000 certificates, or statements, in one request would keep a vault busy for a minute."""
    run = Coordinator(cohort, contract_of(cohort))
    repeated = [*[cohort[0].site.certificate.to_json()] * 4, "no certificate"]
    with pytest.raises(FederationError, match="its 3 members have other certificates than the 4 beside it"):
        cohort[0].vault.accept(run.contract.to_json(), repeated)
    run.begin()
    with pytest.raises(FederationError, match="a list of 769 statements is too long: at most 768"):
        cohort[0].vault.train(run.digest, 1, ["no statement"] * 769)
