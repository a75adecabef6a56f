"""What a vault signs: contracts that state its own facts, within its policy, and not too many of them."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPLIT, write_dataset
from run_hospitals import DOMAIN, NAMES, NOW, Coordinator, Hospital, contract_of

from fedpp.config.contract_limits import RunLimits
from fedpp.config.site_policy import EvaluationLimits
from fedpp.errors import FederationError, FedppError, PolicyError, VaultError
from fedpp.protocol.membership import NO_BUNDLE
from fedpp.protocol.run_contract import RunContract
from sites.vault.masked_runs import run_limits, run_refusals


def accepted(of: Hospital, contract: RunContract, cohort: list[Hospital]) -> str:
    """Let a hospital accept a contract."""
    return of.vault.accept(contract.to_json(), [each.site.certificate.to_json() for each in cohort])


@pytest.mark.parametrize(
    ("limits", "change", "reason"),
    [
        ({"members": NAMES[:2]}, {}, "South is not among its members"),
        ({"min_honest": 3}, {}, "min-honest is 2, at least 3"),
        ({"colluders": 2}, {}, "colluders is 1, at least 2"),
        ({"max_rounds": 1}, {}, "2 rounds, at most 1"),
        ({"max_learning_rate": 0.01}, {}, "learning-rate 0.05"),
        ({"min_learning_rate": 0.06}, {}, "learning-rate 0.05"),
        ({"max_server_learning_rate": 0.5}, {}, "server-learning-rate 0.7, from 0.001 to 0.5"),
        ({"min_server_learning_rate": 0.8}, {}, "server-learning-rate 0.7, from 0.8 to 1"),
        ({"max_update_value": 4.0}, {}, "max-update-value 8, at most 4"),
        ({"max_step": 3.0}, {}, "max-step 4, from 0.1 to 3"),
        ({"architectures": ("cnn",)}, {}, "architecture cnn-bi-lstm, allowed are cnn"),
        ({"max_batch_share": 0.3}, {}, "batch-size 2, a batch may have 0.3"),
        ({"initial_models": ("endorsed",)}, {}, "the initial model is fresh, allowed is endorsed"),
        ({"initial_models": ("fresh",)}, {"initial": "ab" * 32}, "the initial model is endorsed, allowed is fresh"),
        ({}, {"reporting": "per-site"}, "reporting is per-site"),
        ({"max_epsilon": 8.0}, {}, "no privacy budget"),
        ({"max_days": 29}, {}, "29 days at most"),
        ({"max_runs": 0}, {}, "0 runs within a year, and its policy allows 0"),
    ],
)
def test_a_contract_beyond_the_policy_is_refused(
    cohort: list[Hospital], limits: dict[str, Any], change: dict[str, Any], reason: str
):
    """The text names the limit; with the default limits the same contract is signed."""
    of, contract = cohort[0], contract_of(cohort, **change)
    of.limits = RunLimits(**limits)
    with pytest.raises(FedppError, match=reason):
        accepted(of, contract, cohort)
    of.limits = RunLimits(reporting="per-site")
    if contract.initial == "fresh":
        assert accepted(of, contract, cohort)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_step": 1e-9}, "max-step 1e-09, from 0.1 to 4"),
        ({"max_update_value": 0.04}, "max-update-value 0.04, at least the learning-rate 0.05"),
        (
            {"server_optimizer": "fedadam", "server_learning_rate": 0.5, "server_tau": 1e9},
            "server-tau 1e\\+09, at most 0.1",
        ),
    ],
)
def test_a_contract_that_hardly_moves_the_model_is_refused(cohort: list[Hospital], change: dict[str, Any], reason: str):
    """Sums at two models that hardly differ show what the cohort changed by, whatever makes them."""
    with pytest.raises(PolicyError, match=reason):
        accepted(cohort[0], contract_of(cohort, **change), cohort)


def test_an_adaptive_server_optimizer_moves_no_further_than_the_step_bound(cohort: list[Hospital]):
    """It moves each weight by about its rate, even where all updates are tiny: 0.74 in a trial, of a bound of 0.012."""
    adaptive = {"learning_rate": 0.001, "server_optimizer": "fedadam"}  # 3 local steps, each of 4 rates at most
    beyond = contract_of(cohort, **adaptive, server_learning_rate=0.013)
    with pytest.raises(PolicyError, match=r"server-learning-rate 0.013 of fedadam, .* at most the step bound 0.012"):
        accepted(cohort[0], beyond, cohort)
    assert accepted(cohort[0], contract_of(cohort, **adaptive, server_learning_rate=0.012), cohort)


def test_two_sites_need_the_consent_of_both(cohort: list[Hospital]):
    """They hide nothing from each other."""
    pair = cohort[:2]
    contract = contract_of(pair)
    with pytest.raises(PolicyError, match="two sites hide nothing from each other"):
        accepted(pair[0], contract, pair)
    for of in pair:
        of.limits = RunLimits(two_sites="accepted")
    assert len({stage.to_bytes() for stage in Coordinator(pair, contract).begin().finish()}) == 1


def test_a_split_of_too_few_patients_is_refused_before_anything_is_signed(cohort: list[Hospital]):
    """Counts over few patients give single results away, within a sum too."""
    cohort[0].evaluation = EvaluationLimits(min_patients=3)
    with pytest.raises(PolicyError, match="split validation of East has 2 patients, .* fewer than 3"):
        accepted(cohort[0], contract_of(cohort), cohort)


def test_a_contract_of_other_facts_is_refused(cohort: list[Hospital]):
    """Other sizes, certificate, bundle, domain or task than the vault has; a weight above the cap."""
    of, right = cohort[0], contract_of(cohort)
    own, *others = right.cohort
    more = own.changed(sequences=(7, 2, 3))
    weights = right.spec.changed(examples=19)
    with pytest.raises(FederationError, match="another certificate or other sizes of East"):
        accepted(of, right.changed(cohort=(more.changed(weight=7), *others), spec=weights), cohort)
    with pytest.raises(FederationError, match="its weights are"):
        accepted(of, right.changed(cohort=(own.changed(weight=7), *others), spec=weights), cohort)
    with pytest.raises(FederationError, match="other certificates than"):
        accepted(of, right.changed(cohort=(own.changed(certificate="ab" * 32), *others)), cohort)
    with pytest.raises(PolicyError, match="has not approved bundle"):
        accepted(of, right.changed(bundle="ab" * 32), cohort)
    with pytest.raises(FederationError, match="is for domain"):
        accepted(of, right.changed(spec=right.spec.changed(domain="ab" * 32)), cohort)
    with pytest.raises(FederationError, match="the data are"):
        accepted(of, right.changed(spec=right.spec.changed(channels=2)), cohort)
    with pytest.raises(FederationError, match="is not in the cohort"):
        accepted(of, contract_of(cohort[1:]).changed(colluders=0), cohort[1:])
    assert accepted(of, right, cohort)


def test_a_step_that_the_ring_is_too_coarse_for_is_refused(cohort: list[Hospital]):
    """Small sites' updates would be rounded to nothing."""
    coarse = contract_of(cohort, learning_rate=1e-6, max_update_value=2.0**20, dtype="float32")
    with pytest.raises(FederationError, match="below 4 units of an aggregate"):
        accepted(cohort[0], coarse, cohort)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({"learning_rate": 1e-6, "max_update_value": 2.0**-17}, False),
        ({"learning_rate": 1e-6}, False),
        ({"learning_rate": 1e-5}, True),
        ({"learning_rate": 1e-5, "proximal": 1e6}, False),  # keeps an update near one step, however many there are
        ({"learning_rate": 7e-6}, True),
        ({"learning_rate": 7e-6, "max_update_value": 2.0**-10}, False),
        ({"learning_rate": 1e-6, "max_update_value": 2.0**-17, "dtype": "float64"}, True),
    ],
)
def test_steps_so_small_that_a_sum_tells_its_addends_are_refused(
    cohort: list[Hospital], change: dict[str, Any], *, fits: bool
):
    """Updates in float32 are multiples of its spacing: a sum of few, times the sites' weights, has one reading."""
    contract = contract_of(cohort, **{"dtype": "float32", **change})
    if fits:
        assert accepted(cohort[0], contract, cohort)
    else:
        with pytest.raises(FederationError, match="so small that a sum would show each site's float32 update"):
            accepted(cohort[0], contract, cohort)


def test_a_nonce_names_one_contract(cohort: list[Hospital]):
    """Another contract of a nonce that is taken is refused, whatever it says."""
    accepted(cohort[0], contract_of(cohort), cohort)
    with pytest.raises(FederationError, match="another contract of that nonce"):
        accepted(cohort[0], contract_of(cohort, rounds=7), cohort)


def test_a_vault_has_two_unfinished_runs_at_a_time(cohort: list[Hospital]):
    """A third one waits until one has ended, was abandoned or has expired."""
    runs = [Coordinator(cohort, contract_of(cohort, nonce=f"{k:064x}", rounds=1)) for k in range(5)]
    runs[0].begin()
    runs[1].begin()
    with pytest.raises(VaultError, match="has 2 unfinished runs"):
        accepted(cohort[0], runs[2].contract, cohort)
    runs[0].finish()
    runs[2].begin()
    for of in cohort:
        of.vault.abandon(runs[1].digest)
    assert accepted(cohort[0], runs[3].contract, cohort)
    with pytest.raises(VaultError, match="has 2 unfinished runs"):
        accepted(cohort[0], runs[4].contract, cohort)
    late = contract_of(cohort, nonce="ab" * 32, expires=int((NOW + timedelta(days=50)).timestamp()))
    cohort[0].now = NOW + timedelta(days=31)
    assert accepted(cohort[0], late, cohort)


def test_starts_of_a_day_are_bounded(cohort: list[Hospital]):
    """Nobody asks for coins without end; the next day there are new ones, and a repeated one costs nothing."""
    for of in cohort:
        of.limits = RunLimits(max_starts=1)
    first, second = (Coordinator(cohort, contract_of(cohort, nonce=f"{k:064x}")) for k in range(2))
    first.begin()
    assert cohort[0].vault.coin(first.digest, first.statements)
    second.all_state(lambda of: of.vault.accept(second.contract.to_json(), second.certificates))
    with pytest.raises(PolicyError, match="started 1 runs within a day, and its policy allows 1"):
        cohort[0].vault.coin(second.digest, second.statements)
    for of in cohort:
        of.now = NOW + timedelta(days=1, hours=1)
    second.begin()


def test_contracts_of_a_day_are_bounded(cohort: list[Hospital], monkeypatch: pytest.MonkeyPatch):
    """Also those that were abandoned: nobody has a vault sign contracts without end."""
    monkeypatch.setattr(run_limits, "MAX_ACCEPTED", 1)
    first, second = (Coordinator(cohort, contract_of(cohort, nonce=f"{k:064x}")) for k in range(2))
    accepted(cohort[0], first.contract, cohort)
    cohort[0].vault.abandon(first.digest)
    with pytest.raises(VaultError, match="accepted 1 contracts within a day, and accepts 1 at most"):
        accepted(cohort[0], second.contract, cohort)
    cohort[0].now = NOW + timedelta(days=1, hours=1)
    assert accepted(cohort[0], second.contract, cohort)


def test_runs_of_a_year_are_bounded(cohort: list[Hospital]):
    """Also those that ended count."""
    for of in cohort:
        of.limits = RunLimits(max_runs=1)
    Coordinator(cohort, contract_of(cohort, rounds=1)).begin().finish()
    other = contract_of(cohort, nonce="ab" * 32)
    with pytest.raises(PolicyError, match="took part in 1 runs within a year"):
        accepted(cohort[0], other, cohort)
    cohort[0].now = NOW + timedelta(days=366)
    later = other.changed(expires=int((NOW + timedelta(days=380)).timestamp()))
    assert accepted(cohort[0], later, cohort)


def test_a_run_whose_coin_was_shown_counts_though_it_was_abandoned(cohort: list[Hospital]):
    """Whoever dislikes the first weights has them drawn anew by another run; one without coins costs nothing."""
    for of in cohort:
        of.limits = RunLimits(max_runs=1)
    runs = [Coordinator(cohort, contract_of(cohort, nonce=f"{k:064x}")) for k in range(3)]
    accepted(cohort[0], runs[0].contract, cohort)
    cohort[0].vault.abandon(runs[0].digest)
    runs[1].all_state(lambda of: of.vault.accept(runs[1].contract.to_json(), runs[1].certificates))
    assert cohort[0].vault.coin(runs[1].digest, runs[1].statements)
    cohort[0].vault.abandon(runs[1].digest)
    with pytest.raises(PolicyError, match="took part in 1 runs within a year"):
        accepted(cohort[0], runs[2].contract, cohort)


def test_a_run_ends_with_its_contract_s_expiry(cohort: list[Hospital]):
    """Afterwards nothing new is signed, and with the next contract its keys are forgotten."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    run.train(1)
    first = cohort[0]
    first.now = NOW + timedelta(days=30)
    with pytest.raises(FederationError, match="it is good until"):
        first.vault.release(run.digest, 1, run.statements, run.sum().hash)
    expires = int((first.now + timedelta(days=9)).timestamp())
    accepted(first, contract_of(cohort, nonce="ab" * 32, expires=expires), cohort)
    assert first.journal.row("contracts", "key", digest=run.digest) == (None,)
    assert first.journal.rows("seeds", "context", contract=run.digest) == []


def test_an_unknown_contract_is_not_answered(cohort: list[Hospital]):
    """A digest alone authorises nothing."""
    for phase in (cohort[0].vault.coin, cohort[0].vault.start):
        with pytest.raises(VaultError, match=run_refusals.NO_CONTRACT):
            phase("ab" * 32, [])
    assert cohort[0].vault.where("ab" * 32) == []


def test_figures_of_single_sites_are_signed_only_under_a_contract_that_says_so(cohort: list[Hospital]):
    """With reporting per-site each site signs its own; else none does."""
    for of in cohort:
        of.limits = RunLimits(reporting="per-site")
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    run.finish()
    with pytest.raises(VaultError, match=run_refusals.NO_REPORT):
        cohort[0].vault.report(run.digest)
    open_run = Coordinator(cohort, contract_of(cohort, rounds=1, reporting="per-site", nonce="ab" * 32)).begin()
    open_run.finish()
    reports = [of.vault.report(open_run.digest) for of in cohort]
    assert len(set(reports)) == 3
    assert reports[0] == cohort[0].vault.report(open_run.digest)


def test_a_limit_that_is_tightened_stops_a_run_at_once(cohort: list[Hospital]):
    """A site whose staff no longer trusts another one, or wants no figures of its own to leave, signs nothing more."""
    open_to_all = RunLimits(reporting="per-site")
    for of in cohort:
        of.limits = open_to_all
    run, first = Coordinator(cohort, contract_of(cohort, rounds=1, reporting="per-site")).begin(), cohort[0]
    for limits, reason in (
        (RunLimits(), "reporting is per-site"),
        (RunLimits(members=NAMES[:2], reporting="per-site"), "South is not"),
    ):
        first.limits = limits
        with pytest.raises(PolicyError, match=reason):
            first.vault.train(run.digest, 1, run.statements, first.update(1), first.logits(1, "validation"))
    first.limits = open_to_all
    run.finish()
    first.limits = RunLimits()
    with pytest.raises(PolicyError, match="reporting is per-site, allowed is aggregate"):
        first.vault.report(run.digest)
    assert cohort[1].vault.report(run.digest)


def test_a_vault_with_other_data_masks_nothing_for_a_contract(cohort: list[Hospital], tmp_path: Path):
    """Of the same sizes, too: two rounds over data that differ in a patient would tell what the patient added."""
    run, first = Coordinator(cohort, contract_of(cohort, rounds=1)).begin(), cohort[0]
    kept = first.dataset
    labels = 1 - np.arange(len(SPLIT)) % 2
    first.dataset = write_dataset(tmp_path / "other", DOMAIN, (np.zeros((len(SPLIT), 2, 8, 8, 1)), labels))
    first.restart()
    with pytest.raises(VaultError, match=run_refusals.OTHER_DATA):
        first.vault.train(run.digest, 1, run.statements, first.update(1), first.logits(1, "validation"))
    first.dataset = kept
    first.restart()
    run.finish()


def test_a_policy_that_changes_stops_a_run_at_once(cohort: list[Hospital]):
    """A bundle that is withdrawn makes no more updates, and releases none that it made."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    first = cohort[0]
    first.bundles = ()
    with pytest.raises(PolicyError, match="has not approved bundle"):
        first.vault.train(run.digest, 1, run.statements, first.update(1), first.logits(1, "validation"))
    first.bundles = (NO_BUNDLE,)
    run.train(1)
    first.bundles = ()
    with pytest.raises(PolicyError, match="has not approved bundle"):
        first.vault.release(run.digest, 1, run.statements, run.sum().hash)
