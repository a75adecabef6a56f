"""Three vaults and a plain coordinator, from the contract to the certificate of the end."""

import json
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from conftest import SPLIT, write_dataset
from run_hospitals import DOMAIN, Coordinator, Hospital, contract_of

from fedpp.aggregation.global_state import unflat
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.run_stage import mean_bound, site_bound
from fedpp.aggregation.server_step import step
from fedpp.aggregation.step_bounds import clipped
from fedpp.errors import FederationError, MaskError, VaultError
from fedpp.keys import encryption
from fedpp.protocol.counts import Counts
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.state_certificate import LACKS_STATE, StateCertificate
from fedpp.protocol.statement_chains import StatementChains
from fedpp.values import canonical
from sites.vault.masked_runs.own_report import OwnReport
from sites.vault.masked_runs.run_journal import RunJournal


def test_a_masked_run_is_averaging_in_clear_bit_for_bit(cohort: list[Hospital]):
    """From S1 to the end: all vaults sign one state, that of averaging the encoded updates without any mask."""
    run = Coordinator(cohort, contract_of(cohort, rounds=2)).begin()
    contract, network, algebra = run.contract, run.contract.spec.network, DOMAIN.evaluation_key().algebra()
    state, ring = run.stages()[0].state, ring_of(run.contract.spec)
    for number in (1, 2):
        total = np.zeros(network.parameters() * DOMAIN.n, np.int64)
        for of in cohort:
            rows, _ = clipped(unflat(of.update(number), network, DOMAIN.n), algebra, site_bound(contract, 6))
            flat = np.concatenate([rows[spec.name].reshape(-1) for spec in network.weights()])
            total += np.rint(flat * (6 * 2.0**ring.fraction)).astype(np.int64)
        mean, _ = clipped(unflat(total / (18 * 2.0**ring.fraction), network, DOMAIN.n), algebra, mean_bound(contract))
        state = step(state, mean, contract.spec.server_optimizer, algebra)
    ends = run.finish()
    assert {end.state.to_bytes() for end in ends} == {state.to_bytes()}
    assert {end.due for end in ends} == {"end"}
    chains = StatementChains(contract, {of.name: of.site.certificate for of in cohort})
    chains.take([SignedStatement.from_json(text) for text in run.statements])
    certificate = StateCertificate.made_of(contract, chains.of("step", 4).values())
    assert certificate.signers == ("East", "North", "South")


def test_the_opened_counts_are_the_sum_of_the_sites_own_reports(cohort: list[Hospital]):
    """Figures of one site are in its own folder; what all members sign are those of the cohort."""
    run = Coordinator(cohort, contract_of(cohort, rounds=2)).begin()
    run.finish()
    reports = [OwnReport(of.folder, run.contract).rounds() for of in cohort]
    assert {tuple(report) for report in reports} == {("0 validation", "1 validation", "2 test", "2 validation")}
    stated = {(s.statement.round, s.statement.facts["counts"]) for s in run.signed() if s.statement.purpose == "step"}
    for number, name in enumerate(("0 validation", "1 validation", "2 validation", "2 test"), start=1):
        both = [Counts.from_mapping(report[name]) for report in reports]
        assert (number, canonical((both[0] + both[1] + both[2]).to_mapping()).decode()) in stated
        assert all(json.dumps(report[name]) not in "".join(run.statements) for report in reports)
    assert len(stated) == 4


def test_a_report_has_the_whole_digest_in_its_name(cohort: list[Hospital]):
    """In 2^32 tries a coordinator finds two contracts that begin alike, and one with per-site reports among them."""
    contract = contract_of(cohort)
    assert OwnReport(cohort[0].folder, contract).path.stem == contract.digest


def labels_of(cohort: Sequence[Hospital]) -> tuple[int, ...]:
    """Return how many training sequences of all sites have each class, from their decrypted labels."""
    rows = [of.dataset.labels(of.dataset.indices("train")) for of in cohort]
    return tuple(np.bincount(encryption.decrypt_classes(DOMAIN, np.concatenate(rows))).tolist())


def test_training_labels_of_the_cohort_are_opened_in_round_one(cohort: list[Hospital]):
    """Their sum over the sites is signed with round 1, and in every later state; no site's own counts leave it."""
    cohort[1] = relabelled(cohort[1])
    run = Coordinator(cohort, contract_of(cohort, rounds=2, positive_weight=0.0)).begin()
    expected = labels_of(cohort)
    assert expected == (8, 10)
    seen = []
    for number in (1, 2, 3, 4):
        run.round(number)
        seen.append({stage.labels for stage in run.stages()})
    assert seen == [{expected}] * 4
    signed = [s.statement for s in run.signed() if s.statement.purpose == "step"]
    stated = {(of.round, tuple(json.loads(of.facts["counts"]).get("labels", ()))) for of in signed}
    assert stated == {(1, expected), (2, ()), (3, ()), (4, ())}


def test_labels_are_not_opened_where_nothing_needs_them(cohort: list[Hospital]):
    """With a fixed weight the vectors are as long as they were, and no statement counts labels."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    run.round(1)
    assert {stage.labels for stage in run.stages()} == {None}
    assert '"labels"' not in "".join(run.statements)


def relabelled(of: Hospital) -> Hospital:
    """Return the hospital with a dataset of other labels, two of six training sequences negative."""
    of.journal.close()
    generator = np.random.default_rng(7)
    frames = generator.normal(size=(len(SPLIT), 2, 8, 8, 1))
    labels = np.array([1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0])
    of.dataset = write_dataset(of.folder.parent / "other data", DOMAIN, (frames, labels))
    return of.open()


def test_a_repeated_request_gets_the_first_reply(cohort: list[Hospital]):
    """Every phase repeats its bytes, at once, after a restart, and until the round is certified."""
    run, first = Coordinator(cohort, contract_of(cohort, rounds=1)), cohort[0]
    requests: list[Callable[[], Any]] = [
        lambda: first.vault.accept(run.contract.to_json(), run.certificates),
        lambda: first.vault.coin(run.digest, run.statements),
        lambda: first.vault.start(run.digest, run.statements),
    ]
    run.begin()
    run.train(1)
    total = run.sum()
    run.release(1)
    sealed = [run.sealed[of.name] for of in cohort]
    requests += [
        lambda: first.vault.train(run.digest, 1, run.statements),
        lambda: first.vault.release(run.digest, 1, run.statements, total.hash),
        lambda: first.vault.step(run.digest, 1, run.statements, sealed, total.low, total.carry),
    ]
    before = replies(requests)
    assert first.vault.stage(run.digest) != cohort[1].vault.stage(run.digest)  # it has stepped
    assert replies(requests) == before
    first.restart()
    assert replies(requests) == before
    run.step(1)
    run.round(2)
    run.train(3)
    for of in cohort:
        of.restart()
    run.release(3)
    run.step(3)
    assert {stage.due for stage in run.stages()} == {"end"}


def replies(requests: list[Callable[[], Any]]) -> list[list[bytes]]:
    """Return the replies to requests, as bytes."""
    found = [request() for request in requests]
    parts = [each if isinstance(each, tuple) else (each,) for each in found]
    return [[p.tobytes() if isinstance(p, np.ndarray) else str(p).encode() for p in each] for each in parts]


def test_a_second_vault_on_a_journal_is_refused_in_one_line(cohort: list[Hospital]):
    """One process has a folder of runs open; the next one after it."""
    first = cohort[0]
    with pytest.raises(VaultError, match=r"another vault has the folder of runs .* open: give each its own --runs$"):
        RunJournal.open(first.folder, first.site)
    first.restart()


def test_a_journal_of_another_site_is_refused(cohort: list[Hospital]):
    """A folder of runs belongs to one identity."""
    cohort[0].journal.close()
    with pytest.raises(VaultError, match="is of another site"):
        RunJournal.open(cohort[0].folder, cohort[1].site)
    cohort[0].open()


def test_secrets_are_sealed_on_the_disk(cohort: list[Hospital]):
    """Ephemeral keys, own masks and own counts are not in the journal as they are, nor for another site's key."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    run.train(1)
    content = b"".join(path.read_bytes() for path in cohort[0].folder.glob("journal*"))
    key = cohort[0].journal.row("contracts", "key", digest=run.digest)
    assert key is not None
    secret = cohort[0].journal.unseal(key[0], f"key {run.digest}")
    assert secret not in content
    assert b"positive-scores" not in content
    with pytest.raises(VaultError, match="cannot be decrypted"):
        cohort[1].journal.unseal(key[0], f"key {run.digest}")
    with pytest.raises(VaultError, match="cannot be decrypted"):
        cohort[0].journal.unseal(key[0], "key of another contract")


def test_no_rows_are_on_the_disk(cohort: list[Hospital]):
    """Whoever has the domain's R would read a site's update from them, and from a model's rows follows R."""
    run = Coordinator(cohort, contract_of(cohort)).begin()
    run.train(1)
    of, stage = cohort[0], run.stages()[0]
    content = b"".join(path.read_bytes() for path in (of.folder / "arrays").iterdir())
    assert len(content) > of.update(1).nbytes + len(stage.to_bytes())
    for rows in (of.update(1), *stage.state.rows.values()):
        assert rows.reshape(-1)[:4].tobytes() not in content
    (file,) = (name for (name,) in of.journal.rows("updates", "file"))
    assert of.journal.read(file) == of.update(1).tobytes()


def test_a_site_that_missed_a_step_loads_the_certified_state(cohort: list[Hospital]):
    """It is given the state sealed, checks it against its certificate, and continues to the same result."""
    run = Coordinator(cohort, contract_of(cohort, rounds=2, monitor="loss")).begin()
    run.train(1)
    run.release(1)
    total, sealed = run.sum(), [run.sealed[of.name] for of in cohort]
    run.keep(of.vault.step(run.digest, 1, run.statements, sealed, total.low, total.carry) for of in cohort[:2])
    late = cohort[2]
    content = b"".join(cohort[0].vault.sealed_stage(run.digest))
    with pytest.raises(FederationError, match="too few for a certificate"):  # n = 3 needs all three
        late.vault.load_stage(run.digest, run.statements, [content])
    run.step(1)
    run.train(2)
    run.release(2)
    run.step(2)
    late.journal.close()
    shutil.rmtree(late.folder / "arrays")
    assert late.open().vault.where(run.contract.nonce)
    with pytest.raises(VaultError, match="array .* No such file"):
        late.vault.stage(run.digest)


def test_a_sealed_state_without_its_certificate_is_refused(five: list[Hospital]):
    """Four of five signatures make a certificate; a stage with fewer, or another stage, is not taken."""
    run = Coordinator(five, contract_of(five, rounds=2)).begin()
    run.train(1)
    run.release(1)
    total, sealed = run.sum(), [run.sealed[of.name] for of in five]
    early = b"".join(five[0].vault.sealed_stage(run.digest))
    steps = [of.vault.step(run.digest, 1, run.statements, sealed, total.low, total.carry) for of in five[:4]]
    content, late = b"".join(five[0].vault.sealed_stage(run.digest)), five[4]
    with pytest.raises(FederationError, match="too few for a certificate"):
        late.vault.load_stage(run.digest, [*run.statements, *steps[:3]], [content])
    with pytest.raises(MaskError, match="altered"):
        late.vault.load_stage(run.digest, steps, [content[:-1] + bytes([content[-1] ^ 1])])
    late.vault.load_stage(run.digest, steps, [early])  # older: nothing changes
    with pytest.raises(VaultError, match=LACKS_STATE):
        late.vault.train(run.digest, 2, [*run.statements, *steps])
    late.vault.load_stage(run.digest, steps, [content])
    run.keep(steps)
    assert len({stage.to_bytes() for stage in run.finish()}) == 1


def test_a_damaged_state_is_not_used(cohort: list[Hospital]):
    """A flipped bit on the disk is found by the hash that names the file."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    (array,) = (cohort[0].folder / "arrays").iterdir()
    content = bytearray(array.read_bytes())
    content[-40] ^= 1
    array.write_bytes(bytes(content))
    cohort[0].restart()
    with pytest.raises(VaultError, match="has other bytes"):
        cohort[0].vault.stage(run.digest)
