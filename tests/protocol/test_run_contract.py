"""A run contract: one text, no contradiction, enough honest sites in each sum, and weights below the cap."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from run_contracts import CA, CARD, EXPIRES, Cohort, hashed, identities

from fedpp.errors import FederationError
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.membership import CLOCK_SKEW, Certificate
from fedpp.protocol.run_contract import (
    CLOSING_ROUNDS,
    MIN_HONEST,
    NO_HASH,
    VALIDITY,
    CohortMember,
    LiftedLock,
    Parent,
    RunContract,
    capped_weights,
    certificate_hash,
)

COHORT = Cohort.of(3)
CONTRACT = COHORT.contract
SAID = json.loads(CONTRACT.to_json())
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def changed(**changes: Any) -> RunContract:
    return CONTRACT.changed(**changes)


def refusal(text: str) -> str:
    with pytest.raises(FederationError) as raised:
        RunContract.from_json(text)
    assert str(raised.value).isprintable()
    return str(raised.value)


def test_a_contract_is_one_text():
    """It survives its text, and its digest is that of the text."""
    assert RunContract.from_json(CONTRACT.to_json()) == CONTRACT
    assert CONTRACT.digest == hashed(CONTRACT.to_json())
    assert "damaged" in refusal(json.dumps(SAID))


@pytest.mark.parametrize("name", list(SAID))
def test_a_contract_leaves_nothing_to_defaults(name: str):
    """A text without one of its names is refused, also where a contract that is made has a default."""
    refusal(json.dumps({key: value for key, value in SAID.items() if key != name}, sort_keys=True))


@given(st.sampled_from([*SAID, *(f"spec.{name}" for name in SAID["spec"])]), ANY)
def test_any_value_is_a_contract_s_or_refused(name: str, value: Any):
    """Whatever stands in a contract, it is one that reads the same again and has another digest, or it is refused."""
    outer, _, inner = name.partition(".")
    said = {**SAID, outer: {**SAID["spec"], inner: value} if inner else value}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    try:
        read = RunContract.from_json(text)
    except FederationError as error:
        assert str(error).isprintable()
    else:
        assert RunContract.from_json(read.to_json()) == read
        assert (read.digest == CONTRACT.digest) == (text == CONTRACT.to_json())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spec": CONTRACT.spec.changed(masked=False)}, "runs in clear have no contract"),
        ({"spec": CONTRACT.spec.changed(sites=4)}, "it is of 3 sites that weigh 12, its run specification of"),
        ({"spec": CONTRACT.spec.changed(examples=13)}, "it is of 3 sites that weigh 12, its run specification of"),
        ({"cohort": CONTRACT.cohort[::-1]}, "its cohort must be in the order of distinct names"),
        ({"cohort": (CONTRACT.cohort[0], *CONTRACT.cohort[:2])}, "its cohort must be in the order of distinct names"),
        (
            {"cohort": (*CONTRACT.cohort[:2], CONTRACT.cohort[2].changed(certificate=CONTRACT.cohort[0].certificate))},
            "names one certificate twice",
        ),
        ({"cohort": ()}, "cohort must be a list of at least 1"),
        ({"revision": 1}, "a revision has a parent and a number from 1, got revision 1"),
        ({"parent": Parent(hashed("c"), 3, hashed("b"))}, "a revision has a parent and a number from 1"),
        ({"changes": 1}, "a revision has three changes at most, got 1 in 0 revisions"),
        ({"patience": 2}, "patience needs monitor loss or auc, got patience 2 and monitor last"),
        ({"protocol": 1}, "protocol must be a whole number from 2 to 2, got 1"),
        ({"privacy": "on"}, "privacy must be one of off"),
        ({"initial": "model.npz"}, "initial must be fresh, or 64 hexadecimal digits in lower case, got"),
        ({"max_step": 0}, "max-step must be a finite number above 0"),
        ({"rounds": 0}, "rounds must be a whole number from 1"),
        ({"nonce": "AB" * 32}, "nonce must be 64 hexadecimal digits"),
    ],
)
def test_a_contract_does_not_contradict_itself(change: dict[str, Any], reason: str):
    """Each fact has one place and one spelling; the line names the value."""
    with pytest.raises(FederationError, match="run contract: ") as raised:
        changed(**change)
    assert reason in str(raised.value)
    with pytest.raises(FederationError, match="run contract: "):
        replace(CONTRACT, **change)  # also where it is made, and not read


@pytest.mark.parametrize(
    ("n", "colluders", "min_honest", "threshold"),
    # The table of the protocol, the smallest cohorts, and two sites, that hide nothing from each other.
    [
        *((2, 0, 2, 2), (3, 1, 2, 3), (4, 1, 2, 3), (5, 1, 2, 4), (6, 1, 2, 4), (8, 1, 2, 5), (10, 1, 2, 6)),
        *((20, 1, 2, 11), (5, 3, 2, 5), (6, 3, 2, 5), (8, 3, 2, 6), (10, 3, 2, 7), (20, 3, 2, 12), (4, 1, 3, 3)),
    ],
)
def test_states_are_certified_by_more_than_half_of_all_and_the_colluders(
    n: int, colluders: int, min_honest: int, threshold: int
):
    """Two groups of t members share an honest one: 2 t > n + c; and honest sites alone need not be t."""
    contract = Cohort.of(n, colluders=colluders, min_honest=min_honest).contract
    contract.require()
    assert contract.threshold == threshold
    assert 2 * threshold - n > colluders
    assert threshold <= n


@pytest.mark.parametrize(
    ("n", "change", "reason"),
    [
        (1, {"colluders": 0}, "1 sites are too few for 2 honest and 0 colluding ones"),
        (1, {"colluders": 0, "min_honest": 1}, "1 sites are too few"),
        (2, {"colluders": 1}, "2 sites are too few for 2 honest and 1 colluding ones"),
        (2, {"min_honest": 3}, "2 sites are too few for 3 honest and 0 colluding ones"),
        (3, {"colluders": 0}, "two sites have 0 colluders and more have at least 1, got 3 sites and 0 colluders"),
        (3, {"colluders": 2}, "3 sites are too few for 2 honest and 2 colluding ones"),
        (3, {"min_honest": 3}, "3 sites are too few for 3 honest and 1 colluding ones"),
        (4, {"min_honest": 1}, "4 sites are too few for 1 honest and 1 colluding ones"),
        (4, {"colluders": 3}, "4 sites are too few for 2 honest and 3 colluding ones"),
    ],
)
def test_a_cohort_too_small_to_hide_a_site_is_refused(n: int, change: dict[str, Any], reason: str):
    """A sum has the updates of two honest sites at least, whatever a contract says."""
    with pytest.raises(FederationError) as raised:
        Cohort.of(n, **change).contract.require()
    assert reason in str(raised.value)


def test_a_split_may_be_empty():
    """A site without validation or test patients is a member; one without training sequences has no weight."""
    cohort = Cohort.of(4).contract.cohort
    member = cohort[0].changed(sequences=(3, 0, 0), patients=(3, 0, 0))
    Cohort.of(4, cohort=(member, *cohort[1:])).contract.require()
    with pytest.raises(FederationError, match="weight must be a whole number from 1"):
        member.changed(sequences=(0, 0, 0), weight=0)


def test_counts_of_a_split_are_of_as_many_sites_as_an_update():
    """Where one site alone has test patients, the cohort's sum is its figures, which per-site runs report."""
    cohort = CONTRACT.cohort
    for having in (2, 1, 0):
        without = [member.changed(sequences=(*member.sequences[:2], 0)) for member in cohort[having:]]
        contract = changed(cohort=(*cohort[:having], *without))
        if having:
            with pytest.raises(FederationError, match=f"{having} of its sites have a split test, .* 3 or more"):
                contract.require()
            contract = contract.changed(reporting="per-site")
        contract.require()


def test_weights_are_those_of_the_sizes():
    """A coordinator cannot choose a weight: it follows from the training split, the bound and the cap."""
    for sizes, weights in (
        ((3, 4, 5), (3, 4, 5)),
        ((3, 9, 5), (3, 7, 5)),
        ((1, 1, 5), (1, 1, 4)),
        ((1, 1, 1), (1,) * 3),
    ):
        contract = Cohort(identities(3), sizes=sizes).contract
        assert tuple(member.weight for member in contract.cohort) == weights
        assert contract.total_weight == contract.spec.examples == sum(weights)
        contract.require()
        for number, member in enumerate(contract.cohort):
            cohort = list(contract.cohort)
            cohort[number] = member.changed(weight=member.weight + 1)
            altered = contract.changed(cohort=cohort, spec=contract.spec.changed(examples=sum(weights) + 1))
            with pytest.raises(FederationError, match="its weights are .*, those of its training splits are"):
                altered.require()


def repeated(sizes: Sequence[int]) -> tuple[int, ...]:
    """Lower weights above 2/n of the total to 2/n, rounded down, until none is above."""
    weights, n = list(sizes), len(sizes)
    while any(weight * n > 2 * sum(weights) for weight in weights):
        cap = 2 * sum(weights) // n
        weights = [min(weight, cap) for weight in weights]
    return tuple(weights)


SIZES = st.lists(st.integers(1, 40) | st.integers(1, 2**31), min_size=3, max_size=12)


@example([1, 1, 2**31])
@example([1] * 11 + [2**31] * 5)
@given(SIZES)
def test_no_weight_is_above_two_nths_of_all(sizes: list[int]):
    """The weights are those of the rule applied step by step, and only those above the cap are lowered."""
    weights = capped_weights(sizes)
    n, total = len(sizes), sum(weights)
    assert weights == repeated(sizes)
    assert all(0 < weight <= size and weight * n <= 2 * total for weight, size in zip(weights, sizes, strict=True))
    lowered = {weight for weight, size in zip(weights, sizes, strict=True) if weight < size}
    assert lowered in (set(), {max(weights)})


@given(SIZES, st.randoms(use_true_random=False))
def test_weights_do_not_depend_on_the_order(sizes: list[int], random: Any):
    """A site's weight follows from its size and those of the others."""
    order = random.sample(range(len(sizes)), len(sizes))
    shuffled = capped_weights([sizes[number] for number in order])
    assert shuffled == tuple(capped_weights(sizes)[number] for number in order)


@pytest.mark.parametrize("sizes", [(), (7,), (1, 1000), (1000, 1)])
def test_two_sites_keep_their_weights(sizes: tuple[int, ...]):
    """2/n of the total is all of it."""
    assert capped_weights(sizes) == sizes


def test_weights_of_a_thousand_sites_are_quick():
    """Where half of the sites are just above the cap, step by step it would take seconds."""
    sizes = [1] * 501 + [2**31] * 499
    weights = capped_weights(sizes)
    assert weights[0] == 1
    assert 1000 * weights[-1] <= 2 * sum(weights) < 1000 * (weights[-1] + 1) + 2 * 499


@pytest.mark.parametrize(
    ("left", "good"),
    [
        (timedelta(seconds=1), True),
        (VALIDITY, True),
        (VALIDITY + CLOCK_SKEW, True),
        (timedelta(0), False),
        (-timedelta(days=1), False),
        (VALIDITY + timedelta(hours=2), False),
    ],
)
def test_a_contract_ends(left: timedelta, good: bool):
    """It is good for sixty days at most, whatever it says."""
    now = datetime.fromtimestamp(EXPIRES, UTC) - left
    if good:
        CONTRACT.require_current(now)
    else:
        with pytest.raises(FederationError, match=f"it is good until {EXPIRES} s since 1970, and it is"):
            CONTRACT.require_current(now)


def test_rounds_of_a_revision_continue_those_of_its_parent():
    """What a site has trained on the parent's state has the same number there."""
    assert (CONTRACT.start_round, CONTRACT.last_round) == (0, 3 + CLOSING_ROUNDS)
    revision = changed(revision=2, parent=Parent(hashed("c"), 2, hashed("b")))
    assert (revision.start_round, revision.last_round) == (2, 3 + CLOSING_ROUNDS)
    assert changed(revision=1, parent=Parent(hashed("c"), 4, hashed("b"))).last_round == 4 + CLOSING_ROUNDS


def test_a_member_is_found_by_its_name():
    """Names stand in order; another name is refused."""
    assert CONTRACT.names == ("Site 00", "Site 01", "Site 02")
    assert CONTRACT.member("Site 01") == CONTRACT.cohort[1]
    with pytest.raises(FederationError, match="'Site 03' is not in the cohort of contract"):
        CONTRACT.member("Site 03")


def certified(certificates: Sequence[Certificate], ca_key: str = CARD.ca_key) -> set[str]:
    return set(CONTRACT.certified(certificates, ca_key))


def test_the_cohort_s_certificates_are_taken_in_any_order():
    """They are returned by name."""
    given = list(COHORT.certificates.values())
    assert CONTRACT.certified(given[::-1], CARD.ca_key) == COHORT.certificates


def test_other_certificates_are_refused():
    """One too few, too many, twice, of another key or domain, and one that the domain did not make."""
    one, two, three = COHORT.certificates.values()
    stranger = CA.certify(SiteIdentity("Site 02", bytes([77] * 32)).request(), CARD)
    extra = CA.certify(SiteIdentity("Site 03", bytes([4] * 32)).request(), CARD)
    for others in (
        [],
        [one, two],
        [one, two, three, extra],
        [one, two, two],
        [one, two, stranger],
        [one, one, two, three],
    ):
        with pytest.raises(FederationError, match="its 3 members have other certificates than the"):
            certified(others)
    with pytest.raises(FederationError, match="was not made by domain"):
        certified([one, two, three], DomainCA(bytes(32)).public_key)
    forged = DomainCA(bytes(32)).certify(identities(3)[2].request(), CARD)
    contract = changed(cohort=(*CONTRACT.cohort[:2], CONTRACT.cohort[2].changed(certificate=certificate_hash(forged))))
    with pytest.raises(FederationError, match="the certificate of Site 02 was not made by domain"):
        contract.certified([one, two, forged], CARD.ca_key)


def test_one_key_is_one_member():
    """A site with two certificates, under two names, is not two honest sites."""
    one, two, _ = COHORT.certificates.values()
    again = CA.certify(SiteIdentity("Site 02", bytes([2] * 32)).request(), CARD)  # the seed of Site 01
    cohort = (*CONTRACT.cohort[:2], CONTRACT.cohort[2].changed(certificate=certificate_hash(again)))
    with pytest.raises(FederationError, match="two of its members sign with one key"):
        changed(cohort=cohort).certified([one, two, again], CARD.ca_key)


def test_every_fact_changes_the_digest():
    """No two contracts have one digest: each field, of a member and of the parent too, is signed."""
    parent = Parent(hashed("c"), 2, hashed("b"))
    revision = changed(revision=1, parent=parent, monitor="auc")
    changes: list[dict[str, Any]] = [
        {"nonce": hashed("n")},
        {"expires": EXPIRES + 1},
        {"bundle": NO_HASH},
        {"colluders": 2},
        {"rounds": 4},
        {"min_honest": MIN_HONEST + 1},
        {"max_step": 3.5},
        {"monitor": "loss"},
        {"patience": 1},
        {"initial": hashed("i")},
        {"reporting": "per-site"},
        {"revision": 2},
        {"changes": 1},
        {"lifted": (LiftedLock("East", 3),)},
        *(
            {"parent": parent.changed(**{name: value})}
            for name, value in (("contract", NO_HASH), ("round", 1), ("base", NO_HASH))
        ),
        *(
            {"cohort": (*revision.cohort[:2], revision.cohort[2].changed(**{name: value}))}
            for name, value in (
                ("site", "X"),
                ("certificate", NO_HASH),
                ("sequences", (5, 2, 3)),
                ("patients", (5, 2, 3)),
            )
        ),
        {"spec": revision.spec.changed(seed=1)},
    ]
    digests = {revision.digest, *(revision.changed(**change).digest for change in changes)}
    assert len(digests) == len(changes) + 1
    covered = {name for change in changes for name in change}
    assert covered | {"protocol", "privacy"} == set(RunContract.declarations())
    assert set(CohortMember.declarations()) == {"site", "certificate", "sequences", "patients", "weight"}
