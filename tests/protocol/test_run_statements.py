"""Statements of a run: one purpose each, facts that are checked, and what follows from all members' statements."""

import json
from typing import Any

import pytest
from conftest import ROOT
from members import flips
from run_contracts import Cohort, hashed

from fedpp.errors import FederationError
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.membership import Certificate
from fedpp.protocol.run_contract import NO_HASH, RunContract
from fedpp.protocol.run_statements import (
    BEFORE_RUN,
    FACTS,
    MAX_FIGURES,
    OF_ROUND,
    PURPOSES,
    TAG_PRIME,
    Purpose,
    RunStatement,
    SignedStatement,
    aggregate_id,
    coin_hash,
    context,
    run_id,
)
from fedpp.protocol.state_certificate import StateCertificate
from fedpp.protocol.statement_chains import StatementChains
from fedpp.values import canonical, hyphenated

COHORT = Cohort.of(3).begin()
COHORT.all_sign("train", 1)
SITE = "Site 00"
CERTIFICATE = COHORT.certificates[SITE]
P = 2**255 - 19
SMALL_X25519 = (0, 1, P - 1, P, P + 1)  # everybody knows what is agreed with these keys
GOLDEN = ROOT / "tests" / "vectors" / "run-2"


def number_of(purpose: Purpose) -> int:
    return 7 if purpose in OF_ROUND | {"report"} else 0


def statement_of(purpose: Purpose) -> RunStatement:
    return COHORT.statement(SITE, purpose, number_of(purpose))


def refusal(said: dict[str, Any]) -> str:
    with pytest.raises(FederationError) as raised:
        RunStatement.from_json(canonical(said).decode())
    assert str(raised.value).isprintable()
    return str(raised.value)


def test_lists_of_lists_are_refused_at_every_depth():
    """Also just below the one at which JSON is no longer read: a value that can be read may be too deep to be shown."""
    text = canonical({"signature": "ab" * 64, "statement": {**statement_of("coin").to_mapping(), "site": "@"}}).decode()
    for depth in (*range(900, 1010), *range(9_900, 10_050)):  # around the limits of Python 3.11 and of later ones
        with pytest.raises(FederationError):
            SignedStatement.from_json(text.replace('"@"', "[" * depth + "]" * depth))


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_statement_survives_its_text(purpose: Purpose):
    """It is signed, read and verified again, and its digest is that of the text that is signed."""
    signed = COHORT.signed_by(SITE, statement_of(purpose))
    assert SignedStatement.from_json(signed.to_json()) == signed
    signed.require(CERTIFICATE)
    assert signed.digest == hashed(signed.statement.to_json())


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_signature_serves_no_other_purpose(purpose: Purpose):
    """Signed for any other purpose, of a run or of membership, the same content is refused."""
    statement = statement_of(purpose)
    (member,) = [member for member in COHORT.members if member.name == SITE]
    others = [f"run {other}" for other in PURPOSES if other != purpose]
    for other in (*others, "run", purpose, "statement", "certificate", "request"):
        with pytest.raises(FederationError, match=f"a statement .{purpose}. of Site 00 was not signed by that site"):
            SignedStatement(statement, member.sign(other, statement.content())).require(CERTIFICATE)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_what_is_changed_after_signing_is_refused(purpose: Purpose):
    """Every field and every fact is signed."""
    signed = COHORT.signed_by(SITE, statement_of(purpose))
    said = signed.statement.to_mapping()
    other: dict[str, Any] = {
        **{name: value + 1 for name, value in said.items() if type(value) is int},
        **{name: hashed("other") for name in ("contract", "run", "previous", "log_head", "base")},
    }
    changes = [{name: value} for name, value in other.items()]
    new_facts = {
        "tag": "8",
        "counts": '{"a":1}',
        "figures": '{"a":1}',
        "key": COHORT.statement(SITE, "accept").facts["key"],
    }
    changes += [{"facts": {**said["facts"], name: new_facts.get(name, hashed("other"))}} for name in said["facts"]]
    refused = 0
    for change in changes:
        try:
            altered = signed.changed(statement=RunStatement.from_mapping({**said, **change}))
        except FederationError:
            continue  # the purpose has no use for such a value
        if altered.statement != signed.statement:
            with pytest.raises(FederationError, match="was not signed by that site"):
                altered.require(CERTIFICATE)
            refused += 1
    assert refused >= len(said["facts"]) + 4


def test_every_changed_byte_is_refused():
    """Two bits of each byte of a signed statement are flipped: none is read, or verified, as another."""
    signed = COHORT.signed_by(SITE, statement_of("release"))
    for flip in flips(signed.to_json().encode()):
        with pytest.raises(FederationError):
            SignedStatement.from_json(flip.content.decode("latin-1")).require(CERTIFICATE)


def test_a_site_signs_for_itself():
    """Another member's signature, and a certificate of the same name over another key, are refused."""
    statement = statement_of("train")
    impostor = SiteIdentity(SITE, bytes([99] * 32))
    for signed in (COHORT.signed_by("Site 01", statement), SignedStatement.by(impostor.sign, statement)):
        with pytest.raises(FederationError, match="was not signed by that site"):
            signed.require(CERTIFICATE)
    renamed = COHORT.signed_by("Site 01", statement.changed(site="Site 00"))
    with pytest.raises(FederationError, match="was not signed by that site"):
        renamed.require(COHORT.certificates["Site 01"])


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_statement_has_the_facts_of_its_purpose(purpose: Purpose):
    """One too few, one too many, and one that is no text are refused."""
    said = statement_of(purpose).to_mapping()
    for name in said["facts"]:
        assert f"{purpose} has the facts" in refusal(
            {**said, "facts": {of: value for of, value in said["facts"].items() if of != name}}
        )
        for value in (None, 7, ["a"], {}):
            refusal({**said, "facts": {**said["facts"], name: value}})
    assert f"{purpose} has the facts" in refusal({**said, "facts": {**said["facts"], "more": "x"}})
    for facts in (None, [], "{}", 7):
        assert "facts must be a mapping of names to texts" in refusal({**said, "facts": facts})


@pytest.mark.parametrize(
    ("purpose", "name", "value"),
    [
        *(
            (purpose, name, value)
            for purpose, facts in FACTS.items()
            for name in facts
            if name not in {"tag", "counts", "figures"}
            for value in ("", "ab" * 31, "AB" * 32, "ab" * 32 + "\n", "g" * 64)
        ),
        *(("accept", "key", point.to_bytes(32, "little").hex()) for point in SMALL_X25519),
        *(
            ("release", "tag", value)
            for value in ("", "07", "-1", "0x7", "F", f"{TAG_PRIME:x}", f"{TAG_PRIME + 1:x}", "f" * 33, " 7")
        ),
        *(
            (purpose, name, value)
            for purpose, name in (("step", "counts"), ("report", "figures"))
            for value in (
                "{",
                "[]",
                "7",
                '"x"',
                '{"b":1,"a":2}',
                '{"a": 1}',
                "NaN",
                '{"a":"' + "x" * MAX_FIGURES + '"}',
            )
        ),
    ],
)
def test_a_fact_is_one_of_its_kind(purpose: Purpose, name: str, value: str):
    """Hashes, keys that can be agreed with, tags below the prime, and canonical JSON; the line names the fact."""
    said = statement_of(purpose).to_mapping()
    assert f"{hyphenated(name)} must be " in refusal({**said, "facts": {**said["facts"], name: value}})


@pytest.mark.parametrize(("name", "value"), [("tag", "0"), ("tag", f"{TAG_PRIME - 1:x}"), ("counts", '{"a":[1,2]}')])
def test_facts_at_their_bounds_are_taken(name: str, value: str):
    """The least and the largest tag, and counts."""
    purpose: Purpose = "release" if name == "tag" else "step"
    said = statement_of(purpose).to_mapping()
    assert RunStatement.from_mapping({**said, "facts": {**said["facts"], name: value}}).facts[name] == value


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_statement_names_what_its_purpose_is_about(purpose: Purpose):
    """A run, a round and a base state where they are known; and a chain starts at place 0."""
    said = statement_of(purpose).to_mapping()
    run = hashed("run") if purpose in BEFORE_RUN else NO_HASH
    assert f"{purpose} names {'no' if purpose in BEFORE_RUN else 'a'} run" in refusal({**said, "run": run})
    if purpose in BEFORE_RUN:
        assert f"{purpose} names no round, got 1" in refusal({**said, "round": 1})
    if purpose in {"accept", "abandon", "start"}:
        assert f"{purpose} names no base state" in refusal({**said, "base": hashed("base")})
    if purpose in OF_ROUND:
        assert f"{purpose} names a round from 1 and its base state" in refusal({**said, "round": 0})
        assert f"{purpose} names a round from 1 and its base state" in refusal({**said, "base": NO_HASH})
    assert "a chain starts at place 0" in refusal({**said, "place": 0})
    assert "a chain starts at place 0" in refusal({**said, "previous": NO_HASH})
    assert "purpose must be one of accept, coin, start" in refusal({**said, "purpose": "vote"})


def test_a_coin_is_committed_to():
    """The commitment is to one coin, of one site, in one contract."""
    of = COHORT.contract.digest, SITE, COHORT.coin(SITE)
    others = [(hashed("c"), *of[1:]), (of[0], "Site 01", of[2]), (*of[:2], hashed("coin"))]
    assert len({coin_hash(*each) for each in (of, *others)}) == 4


def test_a_run_s_name_follows_from_all_keys_and_coins():
    """Another contract, key or coin of any member is another run; nobody's coin can be left out."""
    chains = COHORT.chains()
    accepted, coins = chains.of("accept"), chains.of("coin")
    assert run_id(COHORT.contract.digest, accepted, coins) == chains.run_id() == COHORT.run
    names = {COHORT.run, run_id(hashed("c"), accepted, coins)}
    for site in COHORT.contract.names:
        other = Cohort.of(3)
        for name in COHORT.contract.names:
            key = {"key": other.key("another").public_key().public_bytes_raw().hex()} if name == site else {}
            other.sign(name, "accept", **key)
        other.all_sign("coin")
        names.add(run_id(COHORT.contract.digest, other.chains().of("accept"), coins))
        with pytest.raises(FederationError, match="a run needs the coins of all 3 members, got 2"):
            run_id(COHORT.contract.digest, accepted, {of: coin for of, coin in coins.items() if of != site})
    assert len(names) == 5


def test_another_coin_than_the_committed_one_is_refused():
    """A site cannot choose its coin when it has seen the others'."""
    chains = COHORT.chains()
    accepted, coins = chains.of("accept"), chains.of("coin")
    other = COHORT.signed_by(SITE, COHORT.statement(SITE, "coin", coin=hashed("better")))
    with pytest.raises(FederationError, match="the coin of Site 00 is not the one that it committed to"):
        run_id(COHORT.contract.digest, accepted, {**coins, SITE: other})
    with pytest.raises(FederationError, match="a statement coin of Site 00 is due, got accept"):
        run_id(COHORT.contract.digest, accepted, {**coins, SITE: accepted[SITE]})
    with pytest.raises(FederationError, match="a statement accept of Site 00 is due, got accept"):
        run_id(COHORT.contract.digest, {**accepted, SITE: accepted["Site 01"]}, coins)


def test_a_round_has_one_text():
    """Run, round and base state; what has two spellings is refused."""
    run, base = hashed("run"), hashed("base")
    texts = [context(*of) for of in ((run, 1, base), (base, 1, run), (run, 2, base), (run, 1, run))]
    assert len(set(texts)) == 4
    for of in ((run.upper(), 1, base), (run, 1, base[:-1]), (run, 0, base), (run, True, base), (run, 1.0, base)):
        with pytest.raises(FederationError, match="a round has a run, a number from 1 and a base state, got"):
            context(*of)


def test_an_aggregate_s_name_covers_all_that_was_sent():
    """T changes with the context, ring, length, every member's vector and seed, the members, and the sum."""
    trained = COHORT.chains().of("train", 1)
    of = context(COHORT.run, 1, hashed("state 0"))
    usual = (of, 64, 100, trained, hashed("sum"))
    named = {
        aggregate_id(*usual),
        aggregate_id(of, 32, 100, trained, hashed("sum")),
        aggregate_id(of, 64, 101, trained, hashed("sum")),
        aggregate_id(of, 64, 100, trained, hashed("other")),
        aggregate_id(of, 64, 100, {site: trained[site] for site in ("Site 00", "Site 02")}, hashed("sum")),
    }
    for site in trained:
        for name in ("masked", "seed"):
            other = COHORT.signed_by(
                site, trained[site].statement.changed(facts={**trained[site].statement.facts, name: hashed("x")})
            )
            named.add(aggregate_id(of, 64, 100, {**trained, site: other}, hashed("sum")))
    assert len(named) == 11
    assert aggregate_id(of, 64, 100, dict(reversed(trained.items())), hashed("sum")) == aggregate_id(*usual)


def test_vectors_of_another_context_are_in_no_aggregate():
    """A statement of another run, round or base state is refused, and so is one of another purpose or site."""
    trained = COHORT.chains().of("train", 1)
    of = context(COHORT.run, 1, hashed("state 0"))
    signed = trained[SITE].statement
    for change in ({"run": hashed("run")}, {"round": 2}, {"base": hashed("state 1")}):
        other = COHORT.signed_by(SITE, signed.changed(**change))
        with pytest.raises(FederationError, match="the masked update of Site 00 is for another round, or another base"):
            aggregate_id(of, 64, 100, {**trained, SITE: other}, hashed("sum"))
    for wrong in (COHORT.signed[SITE][2], trained["Site 01"]):
        with pytest.raises(FederationError, match="a statement train of Site 00 is due, got"):
            aggregate_id(of, 64, 100, {**trained, SITE: wrong}, hashed("sum"))


def golden() -> dict[str, Any]:
    """Return what the golden vector holds: three members, one round, and all that follows from their statements."""
    cohort = Cohort.of(3, monitor="auc", patience=2).begin().complete(1)
    chains = cohort.chains()
    ctx = context(cohort.run, 1, hashed("state 0"))
    return {
        "contract": cohort.contract.to_json(),
        "certificates": [certificate.to_json() for certificate in cohort.certificates.values()],
        "statements": chains.to_json(),
        "certificate": StateCertificate.made_of(cohort.contract, chains.of("step", 1).values()).to_json(),
        "digest": cohort.contract.digest,
        "run": cohort.run,
        "context": ctx.decode(),
        "aggregate": aggregate_id(ctx, 64, 1000, chains.of("train", 1), hashed("sum")),
    }


def test_an_old_run_reads_as_it_did():
    """Golden vector: texts, digests and signatures of a run are what they were."""
    said = json.loads((GOLDEN / "run.json").read_text())
    contract = RunContract.from_json(said["contract"])
    certificates = {c.member.site: c for c in map(Certificate.from_json, said["certificates"])}
    assert [contract.digest, contract.to_json()] == [said["digest"], said["contract"]]
    chains = StatementChains.from_json(contract, certificates, said["statements"])
    StateCertificate.from_json(said["certificate"]).require(contract, certificates)
    ctx = context(chains.run_id(), 1, hashed("state 0"))
    t = aggregate_id(ctx, 64, 1000, chains.of("train", 1), hashed("sum"))
    assert [chains.run_id(), ctx.decode(), t] == [said["run"], said["context"], said["aggregate"]]


def test_a_run_of_today_is_the_old_one():
    """Golden vector: the same identities, contract and statements make the same bytes."""
    assert json.loads((GOLDEN / "run.json").read_text()) == golden()
