"""Chains of statements: contiguous, of one contract and run, and two statements where one is due are a proof."""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_contracts import Cohort, hashed

from fedpp.errors import FederationError, ForkError, MissingLinksError
from fedpp.protocol.run_contract import NO_HASH, Parent
from fedpp.protocol.run_statements import Purpose, SignedStatement
from fedpp.protocol.statement_chains import MAX_NEW, MAX_REPORTS, StatementChains

SITE = "Site 01"
BEGUN: tuple[tuple[Purpose, int], ...] = (("accept", 0), ("coin", 0), ("start", 0))
WHOLE = Cohort.of(3).begin().complete(1).complete(2)
SIGNED = WHOLE.all_signed()


def empty(cohort: Cohort) -> StatementChains:
    return StatementChains(cohort.contract, cohort.certificates)


def unchanged(chains: StatementChains, given: Sequence[SignedStatement]) -> FederationError:
    """Return the error with which a list is refused; nothing of it may be kept."""
    before = chains.to_json()
    with pytest.raises(FederationError) as raised:
        chains.take(given)
    assert chains.to_json() == before
    assert StatementChains.from_json(chains.contract, WHOLE.certificates, before).places == chains.places
    assert str(raised.value).isprintable()
    return raised.value


def test_all_that_members_sign_in_a_run_is_taken_in_any_order():
    """Two rounds of three members, in one list, and again without an effect."""
    chains = empty(WHOLE)
    assert chains.take(SIGNED[::-1]) == SIGNED
    assert chains.take(SIGNED) == []
    assert chains.after({}) == SIGNED
    assert chains.run_id() == WHOLE.run
    assert chains.places == dict.fromkeys(WHOLE.contract.names, 9)
    assert chains.newest(SITE) == WHOLE.signed[SITE][-1]
    assert list(chains.all_of("release", 2).values()) == [WHOLE.signed[site][7] for site in WHOLE.contract.names]
    assert chains.of("train", 3) == {}
    assert chains.after({"Site 00": 9, SITE: 7}) == [*WHOLE.signed[SITE][7:], *WHOLE.signed["Site 02"]]


@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_whatever_comes_first_the_chains_are_the_same(drawn: random.Random, size: int):
    """Lists of any statements in any order: each is taken, or asks for what is missing; in the end all is there."""
    chains = empty(WHOLE)
    for _ in range(5):
        shuffled = drawn.sample(SIGNED, len(SIGNED))
        for start in range(0, len(shuffled), size):
            try:
                chains.take(shuffled[start : start + size])
            except MissingLinksError as error:
                chains.take([each for each in SIGNED if each.statement.place < 3])
                chains.take(StatementChains.after(whole(), error.places))
    assert chains.after({}) == SIGNED


def whole() -> StatementChains:
    chains = empty(WHOLE)
    chains.take(SIGNED)
    return chains


def test_chains_survive_their_text():
    """They are verified anew when they are read, and what is no list of statements is refused."""
    text = whole().to_json()
    assert StatementChains.from_json(WHOLE.contract, WHOLE.certificates, text).after({}) == SIGNED
    for damaged in (
        "",
        "{}",
        "null",
        "[7]",
        text[:-1],
        text.replace('"signature":"', '"signature":"00', 1),
        "[" * 9999,
    ):
        with pytest.raises(FederationError):
            StatementChains.from_json(WHOLE.contract, WHOLE.certificates, damaged)
    forged = text.replace(SIGNED[0].signature, "0" * 128)
    with pytest.raises(FederationError, match="was not signed by that site"):
        StatementChains.from_json(WHOLE.contract, WHOLE.certificates, forged)


def test_what_was_verified_before_is_restored_without_signatures():
    """Statements from a program's own disk: they must follow one another all the same."""
    forged = [SignedStatement(SIGNED[0].statement, "0" * 128), *SIGNED[1:]]
    assert StatementChains.restored(WHOLE.contract, WHOLE.certificates, forged).after({}) == forged
    with pytest.raises(FederationError, match="out of order"):
        StatementChains.restored(WHOLE.contract, WHOLE.certificates, SIGNED[1:])


def test_a_gap_is_asked_for():
    """The error names the first place that is missing of each site, and its message says so to another program."""
    chains = empty(WHOLE)
    chains.take([each for each in SIGNED if each.statement.place < 3])
    error = unchanged(chains, [WHOLE.signed["Site 00"][4], WHOLE.signed["Site 02"][5], WHOLE.signed[SITE][3]])
    assert isinstance(error, MissingLinksError)
    assert error.places == {"Site 00": 3, "Site 02": 3}
    read = MissingLinksError.of_text(f"refused: {error} (7)")
    assert read is not None
    assert read.places == error.places


def test_coins_that_are_missing_are_asked_for():
    """A start can be checked only when all members' coins are there."""
    chains = empty(WHOLE)
    error = unchanged(chains, [*WHOLE.signed["Site 00"][:3], *WHOLE.signed[SITE][:1]])
    assert isinstance(error, MissingLinksError)
    assert error.places == {SITE: 1, "Site 02": 0}


@pytest.mark.parametrize("rest", ["", "[3]", '{"East": -1}', '{"East": "3"}', '{"East": true}', "{" * 9999, "7"])
def test_another_text_names_no_places(rest: str):
    """A refusal of another kind, or a damaged one, asks for nothing."""
    begin = str(MissingLinksError({})).partition("{")[0]
    assert MissingLinksError.of_text(begin + rest) is None
    assert MissingLinksError.of_text("it does not allow this") is None


def test_a_second_statement_at_a_place_is_a_proof():
    """The error holds both; a third party verifies them with the site's certificate."""
    cohort = Cohort.of(3).begin()
    chains = cohort.chains()
    other = cohort.signed_by(SITE, cohort.statement(SITE, "train", 1, masked=hashed("other")))
    one = cohort.sign(SITE, "train", 1)
    chains.take([one])
    error = unchanged(chains, [other])
    assert isinstance(error, ForkError)
    assert (error.site, error.proof) == (SITE, (one.to_json(), other.to_json()))
    for text in error.proof:
        SignedStatement.from_json(text).require(cohort.certificates[SITE])


@pytest.mark.parametrize(
    ("purpose", "second", "number"),
    [
        ("accept", "accept", 0),
        ("coin", "coin", 0),
        ("start", "start", 0),
        ("train", "train", 1),
        ("release", "release", 1),
        ("step", "step", 1),
        ("burn", "burn", 1),
        ("release", "burn", 1),
        ("burn", "release", 1),
        ("abandon", "abandon", 0),
    ],
)
def test_a_site_signs_once_for_a_purpose_and_a_round(purpose: Purpose, second: Purpose, number: int):
    """Two of them in one chain are a proof as well, whatever they say; so is a release beside a burn."""
    cohort = Cohort.of(3)
    for before in ("accept", "coin", *(() if purpose == "abandon" else ("start", "train"))):
        cohort.all_sign(before, 1 if before == "train" else 0)
    if purpose not in {"accept", "coin", "start", "train"}:
        cohort.sign(SITE, purpose, number)
    cohort.sign(SITE, second, number)
    error = unchanged(empty(cohort), cohort.all_signed())
    assert isinstance(error, ForkError)
    first = next(each for each in cohort.signed[SITE] if each.statement.purpose == purpose)
    assert error.proof == (first.to_json(), cohort.signed[SITE][-1].to_json())


def test_nobody_is_accused_by_a_forgery():
    """Another statement at a known place without the site's signature proves nothing."""
    cohort = Cohort.of(3).begin()
    chains = cohort.chains()
    forged = cohort.signed_by("Site 00", cohort.signed[SITE][2].statement.changed(log_records=9))
    error = unchanged(chains, [forged])
    assert not isinstance(error, ForkError)
    assert "a statement (start) of Site 01 was not signed by that site" in str(error)


def test_another_signature_of_a_known_statement_changes_nothing():
    """What counts is what was said: it is kept as it first came."""
    chains = whole()
    assert chains.take([SignedStatement(SIGNED[5].statement, "0" * 128)]) == []
    assert chains.after({}) == SIGNED


def test_lists_are_counted_and_compared_before_signatures_are_verified():
    """A list that is too long, or names a place twice, costs no signature, and a false one in it is not looked at."""
    forged = SignedStatement(SIGNED[0].statement, "0" * 128)
    chains = empty(WHOLE)
    error = unchanged(chains, [forged] * (3 * MAX_NEW + 1))
    assert str(error) == f"a list of {3 * MAX_NEW + 1} statements is too long: at most {3 * MAX_NEW} in one request"
    assert "names place 0 of Site 00 twice" in str(unchanged(chains, [forged] * (3 * MAX_NEW)))
    assert str(unchanged(chains, [forged, SIGNED[0]])) == "a list of statements names place 0 of Site 00 twice"
    begun = time.process_time()
    for _ in range(100):
        with pytest.raises(FederationError):
            chains.take([*SIGNED, SIGNED[0]])
    assert time.process_time() - begun < 100 * len(SIGNED) * 0.0001  # verifying takes three times as long


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"contract": hashed("c")}, "is of another contract, or another site"),
        ({"site": "Site 03"}, "is of another contract, or another site"),
        ({"previous": hashed("p")}, "place 3 of Site 01 follows another statement than the one before it"),
        ({"log_records": 1}, "the audit log of Site 01 went back to 1 records: it was cut"),
        ({"log_records": 2}, "the audit log of Site 01 has two records 2: it was changed"),
        ({"run": hashed("r")}, "the contract's is"),
        ({"round": 6}, "Site 01 signed round 6, the contract has 1 to 5"),
    ],
)
def test_what_does_not_follow_is_refused(change: dict[str, Any], reason: str):
    """Signed by the site as it is, but of another contract, chain, run or log."""
    cohort = Cohort.of(3).begin()
    chains = cohort.chains()
    signed = cohort.signed_by(SITE, cohort.statement(SITE, "train", 1).changed(**change))
    assert reason in str(unchanged(chains, [signed]))


@pytest.mark.parametrize(
    ("reporting", "purpose", "number", "facts", "reason"),
    [
        ("aggregate", "report", 1, {}, "signed a report of round 1, and the contract has none"),
        ("per-site", "report", 6, {}, "signed a report of round 6, and the contract has none"),
        ("per-site", "step", 1, {"counts": f'{{"a":"{"b" * 10_000}"}}'}, "the counts that Site 01 signed are longer"),
    ],
)
def test_no_member_fills_the_others_disks(
    reporting: str, purpose: Purpose, number: int, facts: dict[str, str], reason: str
):
    """Vaults keep all that is signed: reports of endless rounds, and counts of any length, are none of a run's."""
    cohort = Cohort.of(3, reporting=reporting).begin()
    chains = cohort.chains()
    assert reason in str(unchanged(chains, [cohort.sign(SITE, purpose, number, **facts)]))


def test_reports_of_a_member_are_few():
    """Each may have a quarter of a MiB, and vaults keep them in memory, too."""
    cohort = Cohort.of(3, reporting="per-site", rounds=50).begin()
    chains = cohort.chains()
    assert len(chains.take([cohort.sign(SITE, "report", number) for number in range(MAX_REPORTS)])) == MAX_REPORTS
    assert "signed more than 8 reports" in str(unchanged(chains, [cohort.sign(SITE, "report", MAX_REPORTS)]))


def test_a_log_without_new_records_is_no_cut():
    """Two statements may name one record, if it is the same."""
    cohort = Cohort.of(3).begin()
    chains = cohort.chains()
    last = cohort.signed[SITE][-1].statement
    cohort.sign(SITE, "train", 1, log_records=last.log_records, log_head=last.log_head)
    assert len(chains.take(cohort.signed[SITE])) == 1


@pytest.mark.parametrize(
    "steps",
    [
        (("coin", 0),),
        (("abandon", 0),),
        (("accept", 0), ("start", 0)),
        (("accept", 0), ("train", 1)),
        (("accept", 0), ("coin", 0), ("train", 1)),
        (("accept", 0), ("coin", 0), ("report", 1)),
        (*BEGUN, ("release", 1)),
        (*BEGUN, ("train", 1), ("release", 2)),
        (*BEGUN, ("train", 1), ("release", 1), ("abandon", 0)),
        (*BEGUN, ("abandon", 0), ("train", 1)),
        (("accept", 0), ("abandon", 0), ("coin", 0)),
    ],
)
def test_a_site_signs_in_the_order_of_the_protocol(steps: Sequence[tuple[Purpose, int]]):
    """No phase before the one that it needs, and none after a contract was abandoned."""
    cohort = Cohort.of(3)
    for purpose in ("accept", "coin"):
        for site in ("Site 00", "Site 02"):
            cohort.sign(site, purpose)
    for purpose, number in steps:
        run = {} if purpose in {"accept", "coin", "abandon"} else {"run": hashed("run")}
        cohort.sign(SITE, purpose, number, **run)
    purpose, number = steps[-1]
    assert (
        str(unchanged(empty(cohort), cohort.all_signed())) == f"Site 01 signed {purpose} of round {number} out of order"
    )


@pytest.mark.parametrize(
    "steps",
    [
        (("accept", 0), ("abandon", 0)),
        (*BEGUN, ("abandon", 0)),
        (*BEGUN, ("train", 1), ("abandon", 0)),
        (*BEGUN, ("burn", 1)),
        (*BEGUN, ("step", 1), ("train", 2), ("release", 2), ("step", 2)),
        (*BEGUN, ("train", 1), ("burn", 1)),
        (*BEGUN, ("train", 1), ("release", 1), ("train", 2), ("step", 1)),
        (*BEGUN, ("train", 4), ("release", 4), ("train", 5), ("step", 5), ("report", 5)),
    ],
)
def test_a_site_may_miss_a_step(steps: Sequence[tuple[Purpose, int]]):
    """It signs no state that it did not compute, may burn what it never masked, and abandons what it never trained."""
    cohort = Cohort.of(3, reporting="per-site")
    for purpose in ("accept", "coin"):
        for site in ("Site 00", "Site 02"):
            cohort.sign(site, purpose)
    for purpose, number in steps[:2]:
        cohort.sign(SITE, purpose, number)
    for purpose, number in steps[2:]:
        cohort.sign(SITE, purpose, number)
    assert len(empty(cohort).take(cohort.all_signed())) == 4 + len(steps)


def test_a_coin_that_was_not_committed_to_is_refused():
    """As soon as it comes, before the others' are there."""
    cohort = Cohort.of(3)
    cohort.all_sign("accept")
    chains = cohort.chains()
    assert "the coin of Site 01 is not the one that it committed to" in str(
        unchanged(chains, [cohort.sign(SITE, "coin", coin=hashed("better"))])
    )


def test_a_coin_names_the_base_of_its_revision_or_none():
    """A site that joins knows none; nobody vouches for another state than the contract's."""
    cohort = Cohort.of(3, revision=1, parent=Parent(hashed("old"), 4, hashed("base")))
    cohort.all_sign("accept")
    chains = cohort.chains()
    statement = cohort.statement(SITE, "coin", base=hashed("another"))
    assert "a coin for another base than the contract's" in str(unchanged(chains, [cohort.signed_by(SITE, statement)]))
    for site, base in ((SITE, hashed("base")), ("Site 02", NO_HASH)):
        assert len(chains.take([cohort.sign(site, "coin", base=base)])) == 1


def test_a_revision_starts_from_its_parent_s_round():
    """Its first round has the next number; earlier ones are of the parent."""
    cohort = Cohort.of(3, revision=1, parent=Parent(hashed("c"), 2, hashed("b")))
    for purpose in ("accept", "coin"):
        cohort.all_sign(purpose)
    chains = cohort.chains()
    early = cohort.signed_by(SITE, cohort.statement(SITE, "start"))
    assert "Site 01 starts from round 0, the contract from round 2" in str(unchanged(chains, [early]))
    chains.take(cohort.all_sign("start", 2))
    late = cohort.signed_by(SITE, cohort.statement(SITE, "train", 2))
    assert "Site 01 signed round 2, the contract has 3 to 5" in str(unchanged(chains, [late]))
    chains.take(cohort.all_sign("train", 3))
    assert len(chains.all_of("train", 3)) == 3


def test_a_member_that_has_not_signed_is_named():
    """`all_of` asks for the next statement of those that are missing."""
    cohort = Cohort.of(3).begin()
    cohort.sign(SITE, "train", 1)
    with pytest.raises(MissingLinksError) as raised:
        cohort.chains().all_of("train", 1)
    assert raised.value.places == {"Site 00": 3, "Site 02": 3}
    ask: Callable[[str], object] = cohort.chains().newest
    with pytest.raises(FederationError, match="'Site 03' is not in the cohort"):
        ask("Site 03")
