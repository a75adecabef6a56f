"""New contracts: of a run's admitted sites, and revisions that change the cohort alone."""

from collections.abc import Collection
from typing import Any

import pytest
from coordinator_runs import config, describe
from run_contracts import CA, CARD, EXPIRES, Cohort, hashed, identities

from fedpp.config.run_config import RunSettings
from fedpp.errors import FederationError
from fedpp.protocol.membership import Certificate
from fedpp.protocol.new_contract import (
    first_contract,
    lowered_weights,
    require_revision,
    revised_contract,
    small_changes,
)
from fedpp.protocol.run_contract import FRESH, NO_HASH, Parent, RunContract, certificate_hash
from fedpp.protocol.site_description import SiteDescription
from fedpp.protocol.state_certificate import StateCertificate

MEMBERS = identities(12)
CERTIFICATES = {member.name: CA.certify(member.request(), CARD) for member in MEMBERS}
FACTS: dict[str, Any] = {"nonce": hashed("nonce"), "expires": EXPIRES, "bundle": hashed("bundle")}
LATER: dict[str, Any] = {"nonce": hashed("later"), "expires": EXPIRES + 1, "bundle": hashed("later")}


def settings(tmp: Any = "out", **changes: object) -> RunSettings:
    return config(tmp, **{"sites": 3, "secure_aggregation": True, **changes})


def sites(*sizes: int) -> list[SiteDescription]:
    return [
        describe(member.name, sequences=(size, 4, 3), patients=(size, 2, 1))
        for member, size in zip(MEMBERS, sizes, strict=False)
    ]


def first(run: RunSettings, of: Collection[SiteDescription], **changes: Any) -> RunContract:
    contract = first_contract(run, CARD.fingerprint, of, CERTIFICATES, **{**FACTS, **changes})
    contract.require()
    return contract


def test_a_contract_says_what_the_settings_say():
    """Each setting of a run that the sites compute from, or that bounds what is opened, stands in it."""
    run = settings(
        colluders=2, min_honest=3, monitor="auc", patience=2, reporting="per-site", rounds=7, seed=5, sites=5
    )
    contract = first(run, sites(3, 4, 5, 6, 7)[::-1], initial=hashed("endorsed"))
    assert (contract.n, contract.colluders, contract.min_honest, contract.rounds) == (5, 2, 3, 7)
    assert (contract.monitor, contract.patience, contract.reporting) == ("auc", 2, "per-site")
    assert (contract.spec.training, contract.spec.bounds) == (run.training, run.bounds)
    assert contract.spec.server_optimizer == run.server_optimizer
    assert (contract.spec.domain, contract.spec.masked) == (CARD.fingerprint, True)
    assert (contract.nonce, contract.expires, contract.bundle) == (hashed("nonce"), EXPIRES, hashed("bundle"))
    assert contract.initial == hashed("endorsed")
    assert (contract.parent, contract.revision, contract.changes) == (None, 0, 0)
    assert contract.names == tuple(member.name for member in MEMBERS[:5])
    assert contract.certified(list(CERTIFICATES.values())[:5], CARD.ca_key).keys() == set(contract.names)
    member = contract.member("Site 01")
    assert (member.sequences, member.patients, member.weight) == ((4, 4, 3), (4, 2, 1), 4)
    assert member.certificate == certificate_hash(CERTIFICATES["Site 01"])
    assert first(run, sites(3, 4, 5, 6, 7)).initial == FRESH


def test_weights_are_bounded_and_capped():
    """By max-examples, and then by 2/n of all; which were lowered is there to be printed."""
    contract = first(settings(), sites(10, 20, 100))
    assert [member.weight for member in contract.cohort] == [10, 20, 60]
    assert (contract.spec.examples, contract.spec.sites) == (90, 3)
    assert lowered_weights(contract) == {"Site 02": (100, 60)}
    assert lowered_weights(first(settings(), sites(10, 20, 30))) == {}
    bounded = first(settings(max_examples=15), sites(10, 20, 100))
    assert lowered_weights(bounded) == {"Site 01": (20, 15), "Site 02": (100, 15)}


def test_two_sites_have_no_colluders():
    """They hide nothing from each other, whatever the settings say."""
    contract = first(settings(sites=2), sites(10, 1000))
    assert (contract.colluders, contract.threshold) == (0, 2)
    assert [member.weight for member in contract.cohort] == [10, 1000]


@pytest.mark.parametrize(
    ("count", "change", "needed"),
    [
        (1, {"sites": 1}, "colluders=1, which needs 3"),
        (2, {"sites": 4, "min_honest": 3}, "colluders=1, which needs 4"),
        (3, {"sites": 4, "colluders": 2}, "colluders=2, which needs 4"),
        (4, {"sites": 5, "min_honest": 4}, "colluders=1, which needs 5"),
    ],
)
def test_too_few_sites_are_refused_in_one_line(count: int, change: dict[str, object], needed: str):
    """The line says how many there are, how many are needed, and what to do."""
    with pytest.raises(FederationError) as raised:
        first(settings(**change), sites(*range(3, 3 + count)))
    assert str(raised.value).startswith(f"{count} sites are too few for secure aggregation with min-honest=")
    assert needed in str(raised.value)
    assert "ask more sites to join" in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_site_that_cannot_be_a_member_is_named():
    """Without a certificate, without training sequences, or with data of another task."""
    of = sites(3, 4, 5)
    with pytest.raises(FederationError, match="the certificate of Site 02 is missing"):
        first_contract(settings(), CARD.fingerprint, of, {k: CERTIFICATES[k] for k in ("Site 00", "Site 01")}, **FACTS)
    with pytest.raises(FederationError, match="Site 01 has no training sequences"):
        first(settings(), [of[0], of[1].changed(sequences=(0, 4, 3)), of[2]])
    with pytest.raises(FederationError, match="Site 02 has data of another task than Site 00: 9 frames"):
        first(settings(), [*of[:2], of[2].changed(frames=9)])


COHORT = Cohort.of(6, monitor="loss", patience=1).begin().complete(1)
OLD = COHORT.contract
BASE = StateCertificate.made_of(OLD, COHORT.chains().of("step", 1).values())


def revised(count: int, *joining: int, leaving: Collection[int] = ()) -> RunContract:
    names = [number for number in (*range(count), *joining) if number not in leaving]
    of = [describe(MEMBERS[number].name, sequences=(3 + number, 2, 2), patients=(3 + number, 2, 2)) for number in names]
    return revised_contract(OLD, BASE, of, CERTIFICATES, **LATER)


def test_a_revision_changes_the_cohort_alone():
    """It names its parent, and the weights follow from the cohort that continues."""
    contract = revised(6, leaving=[2])
    assert contract.names == ("Site 00", "Site 01", "Site 03", "Site 04", "Site 05")
    assert (contract.parent, contract.revision) == (Parent(OLD.digest, 1, hashed("state 1")), 1)
    assert (contract.start_round, contract.rounds) == (1, OLD.rounds)
    assert contract.spec == OLD.spec.changed(sites=5, examples=contract.total_weight)
    assert contract.spec.examples == 3 + 4 + 6 + 7 + 7
    assert (contract.nonce, contract.expires, contract.bundle) == (hashed("later"), EXPIRES + 1, hashed("later"))
    require_revision(contract, OLD, BASE)


@pytest.mark.parametrize(
    ("leaving", "joining", "changes"),
    [
        *(((), (), 0), ((2,), (), 1), ((2, 3), (), 1), ((), (6,), 1), ((), (6, 7), 1), ((), (6, 7, 8), 0)),
        *(((2,), (6,), 2), ((2,), (6, 7, 8), 1)),
    ],
)
def test_changes_by_few_sites_count(leaving: Collection[int], joining: Collection[int], changes: int):
    """Of three that leave or join, two are honest: their sum hides each of them. Fewer count."""
    contract = revised(6, *joining, leaving=leaving)
    assert contract.changes == changes
    assert small_changes(OLD, contract.cohort) == changes


def test_sites_that_leave_together_and_return_but_for_one_count():
    """Neither change is of few sites, but together they are: the run has one site less than in the beginning."""
    ten = Cohort.of(10).begin().complete(1)
    base = StateCertificate.made_of(ten.contract, ten.chains().of("step", 1).values())
    of = [describe(name, sequences=(3, 2, 2), patients=(3, 2, 2)) for name in ten.contract.names]
    six = revised_contract(ten.contract, base, of[:6], ten.certificates, **LATER)
    after = base.changed(contract=six.digest, round=2)
    nine = revised_contract(six, after, of[:9], ten.certificates, **LATER, earlier=[ten.contract])
    assert (six.changes, nine.changes) == (0, 1)
    with pytest.raises(FederationError, match="changes by few sites: 1 are due, got 0"):
        require_revision(nine.changed(changes=0), six, after, [ten.contract])


def test_a_new_certificate_is_another_member():
    """A re-installed vault leaves and joins: both count."""
    again = CA.certify(identities(30)[20].request(), CARD)
    *others, last = OLD.cohort
    assert small_changes(OLD, [*others, last.changed(certificate=certificate_hash(again))]) == 2


def test_a_member_with_other_data_is_counted():
    """Its new patients' updates are the difference of two sums; it does not hide another one that leaves."""
    grown = [member.changed(sequences=(member.sequences[0] + 1, *member.sequences[1:])) for member in OLD.cohort]
    assert small_changes(OLD, [grown[0], *OLD.cohort[1:]]) == 1
    assert small_changes(OLD, [grown[0], *OLD.cohort[1:-1]]) == 2
    assert small_changes(OLD, grown[:-1]) == 1
    assert small_changes(OLD, grown) == 0


def test_a_revision_needs_t_of_the_members_before_it():
    """With their old certificates: those of another cohort cannot take a run over."""
    assert OLD.threshold == 4
    assert revised(6, 6, 7, leaving=[0, 1]).n == 6
    with pytest.raises(FederationError, match="a revision needs 4 of the 6 members before it, .*, got 3"):
        revised(6, 6, 7, leaving=[0, 1, 2])
    with pytest.raises(FederationError, match="2 sites are too few for 2 honest and 1 colluding ones"):
        revised(2)
    again: Certificate = CA.certify(identities(30)[20].request(), CARD)
    cohort = [
        member
        if member.site > "Site 02"
        else member.changed(certificate=certificate_hash(again.changed(site=member.site)))
        for member in OLD.cohort
    ]
    with pytest.raises(FederationError, match="got 3: wait for more of them"):
        require_revision(revised(6).changed(cohort=cohort, changes=2), OLD, BASE)


@pytest.mark.parametrize(
    "change",
    [
        *({"rounds": 9}, {"max_step": 3.0}, {"monitor": "auc"}, {"patience": 2}, {"initial": hashed("i")}),
        *({"reporting": "per-site"}, {"colluders": 2}, {"min_honest": 3}),
        *({name: value} for name, value in (("learning_rate", 0.5), ("seed", 1), ("epochs", 2), ("domain", NO_HASH))),
    ],
)
def test_a_revision_keeps_what_is_computed(change: dict[str, Any]):
    """Another setting needs another run, from fresh weights: two rounds at one base would tell updates apart."""
    contract = revised(6, leaving=[2])
    name = next(iter(change))
    altered = (
        contract.changed(spec=contract.spec.changed(**change))
        if name in contract.spec.values()
        else contract.changed(**change)
    )
    with pytest.raises(FederationError, match="a revision changes the cohort alone: for other settings start another"):
        require_revision(altered, OLD, BASE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"revision": 2}, "a revision names its parent contract, round and state"),
        ({"parent": Parent(hashed("c"), 1, hashed("state 1"))}, "a revision names its parent contract"),
        ({"parent": Parent(OLD.digest, 2, hashed("state 1"))}, "a revision names its parent contract"),
        ({"parent": Parent(OLD.digest, 1, hashed("state 0"))}, "a revision names its parent contract"),
        ({"changes": 0}, "a revision counts changes by few sites: 1 are due, got 0"),
    ],
)
def test_a_revision_continues_its_parent(change: dict[str, Any], reason: str):
    """From a state of that contract, with its number and changes counted."""
    with pytest.raises(FederationError) as raised:
        require_revision(revised(6, leaving=[2]).changed(**change), OLD, BASE)
    assert reason in str(raised.value)


def test_a_state_of_another_contract_is_no_base():
    """A certificate names its contract."""
    with pytest.raises(FederationError, match="a revision names its parent contract"):
        require_revision(revised(6, leaving=[2]), OLD, BASE.changed(contract=hashed("c")))
