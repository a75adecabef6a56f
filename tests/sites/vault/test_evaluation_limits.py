"""Limits of `Evaluate`, each at its edge, over a real socket."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, new_dataset
from hypothesis import given
from hypothesis import strategies as st
from vaults import FEW, policy_of, serving

from fedpp.config.site_policy import EvaluationLimits
from fedpp.dataset.dataset_manifest import SequenceRecord
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError, VaultError
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.metrics import count_findings, metrics, presence
from fedpp.protocol.coordinator_identity import SIMULATED
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import FindingCounts
from fedpp.protocol.membership import NO_BUNDLE, PROTOCOL
from fedpp.vault_api.vault_client import VaultClient
from simulations.benchmarks.bench_vault import certified
from sites.vault.audit.audit_log import AuditLog, Signer
from sites.vault.evaluation_limits import MAX_PROOFS, EvaluationAllowance, EvaluationCall, ProofAllowance, is_run
from sites.vault.split_counts import SplitCounts
from sites.vault.vault_service import History

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOGITS = np.zeros((3, 2, 2))  # of split test
DEFAULT = EvaluationLimits()


def test_the_default_limits_are_those_of_the_documentation():
    """A vault without a policy keeps to these."""
    assert EvaluationLimits() == EvaluationLimits(min_patients=10, per_round=9, rounds=1000, per_day=2000)


@pytest.mark.parametrize("name", ["min_patients", "per_round", "rounds", "per_day"])
def test_a_limit_below_one_is_refused(name: str):
    """It would allow no evaluation at all."""
    with pytest.raises(ConfigError, match=f"{name.replace('_', '-')} must be a whole number from 1 to [0-9]+, got 0"):
        EvaluationLimits(**{name: 0})


def test_a_split_of_few_patients_is_not_evaluated(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """Both numbers and the setting are named; a split at the limit is evaluated, and so is one without patients."""
    with (
        serving(domain, dataset, address, policy=policy_of(dataset, EvaluationLimits(4))),
        VaultClient(address) as client,
    ):
        refusal = (
            "split test has 3 patients, and counts of fewer than 4 are not disclosed: .* set evaluation: min-patients"
        )
        with pytest.raises(VaultError, match=refusal):
            client.evaluate("test", LOGITS)
    with (
        serving(domain, dataset, address, policy=policy_of(dataset, EvaluationLimits(3))),
        VaultClient(address) as client,
    ):
        assert client.evaluate("test", LOGITS).examples == 3
    EvaluationAllowance().admit(EvaluationCall(NOW, "", 1, "test"), 0, DEFAULT)


def test_many_sequences_of_one_patient_are_one_patient(domain: KeyDomain, tmp_path: Path, address: str):
    """Ten visits of one patient reach no limit of two: the counts would disclose their one label."""
    dataset = of_findings(tmp_path / "d", domain, ((0, (1,)),) * 10)
    with (
        serving(domain, dataset, address, policy=policy_of(dataset, EvaluationLimits(2))),
        VaultClient(address) as client,
    ):
        assert client.info().sequences["test"] == 10
        with pytest.raises(VaultError, match="split test has 1 patient, and counts of fewer than 2 are not disclosed"):
            client.evaluate("test", np.zeros((10, 1, 2)))


def test_a_finding_that_is_known_for_few_patients_is_withheld(domain: KeyDomain, tmp_path: Path, address: str):
    """Its counts are empty, as of one that is never known; the others' are complete, and the log has their number.

    Of five sequences, the first finding is known for two patients, the second for three, the third for none.
    """
    states = np.array([(1, 1, -1), (0, 0, -1), (1, 1, -1), (-1, -1, -1), (-1, 0, -1)])
    patients = (0, 0, 1, 2, 3)
    dataset = of_findings(tmp_path / "d", domain, tuple(zip(patients, states.tolist(), strict=True)))
    logits = np.random.default_rng(3).normal(scale=3.0, size=states.shape)
    rows, whole = SequenceCipher(domain, "float64").frames("s", logits), count_findings(states, presence(logits))
    log = AuditLog.open(tmp_path / "log", Signer.of(certified(domain, "north").identity))
    policy = policy_of(dataset, EvaluationLimits(3))
    with serving(domain, dataset, address, policy=policy, audit=log), VaultClient(address) as client:
        counts = client.evaluate("test", rows)
        assert counts == FindingCounts(5, (Counts.zero(2), *whole.findings[1:]))
        assert metrics(counts) == metrics(FindingCounts(5, whole.findings[1:]))
        policy_of(dataset, EvaluationLimits(2))
        assert client.evaluate("test", rows) == whole
        policy_of(dataset, EvaluationLimits(4))
        assert client.evaluate("test", rows) == FindingCounts(5, (Counts.zero(2),) * 3)
    log.close()
    _, *lines = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert [line.get("withheld") for line in lines] == [1, None, 2]


def test_labels_of_a_finding_that_is_known_for_few_patients_are_withheld(domain: KeyDomain, tmp_path: Path):
    """They are counted as evaluation counts are: absent and present, where enough patients have the finding known."""
    states = ((1, 1, -1), (0, 0, -1), (1, 1, -1), (-1, -1, -1), (-1, 0, -1))
    counts = SplitCounts(domain, of_findings(tmp_path / "d", domain, tuple(zip((0, 0, 1, 2, 3), states, strict=True))))
    assert counts.labelled("test", 2) == (1, 2, 2, 2, 0, 0)
    assert counts.labelled("test", 3) == (0, 0, 2, 2, 0, 0)
    assert counts.labelled("test", 4) == (0,) * 6
    assert counts.labelled("train", 2) == (0,) * 6


def of_findings(path: Path, domain: KeyDomain, sequences: Sequence[tuple[int, Sequence[int]]]) -> EncryptedDataset:
    """Write a dataset of test sequences, each of a patient's number and its findings' states."""
    cipher, classes = SequenceCipher(domain, "float64"), tuple(f"finding {k}" for k in range(len(sequences[0][1])))
    sizes = {"frames": 1, "height": 1, "width": 1, "channels": 1}
    with new_dataset(path, domain.card(), dtype="float64", **sizes, classes=classes, multi_label=True) as writer:
        for number, (patient, states) in enumerate(sequences):
            record = SequenceRecord(f"{number:032x}", f"{patient:032x}", 1, "test")
            frames = cipher.frames(record.id, np.ones((1, 1, 1, 1)))
            writer.add(record, frames, cipher.findings(record.id, tuple(states)))
    return EncryptedDataset.open(path)


def test_one_round_of_a_run_is_evaluated_nine_times(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """A tenth call for one run, round and split is refused; another run, round or split is counted separately."""
    with serving(domain, dataset, address), VaultClient(address) as client:
        for _ in range(9):
            client.evaluate("test", LOGITS, "run", 7)
        with pytest.raises(
            VaultError, match="split test was evaluated 9 times in round 7 of run run, and 9 are allowed"
        ):
            client.evaluate("test", LOGITS, "run", 7)
        client.evaluate("test", LOGITS, "run", 8)
        client.evaluate("test", LOGITS, "another", 7)
        client.evaluate("validation", np.zeros((2, 2, 2)), "run", 7)
        for _ in range(3):  # a local training is bounded by the day
            client.evaluate("test", LOGITS, "", 7)


def test_a_round_beyond_the_last_is_not_evaluated(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """The final test of a run is one round after its last, and the first refused round is one more."""
    with serving(domain, dataset, address), VaultClient(address) as client:
        client.evaluate("test", LOGITS, "run", 1000)
        with pytest.raises(VaultError, match="round 1001 is beyond the 1000 evaluated here: set evaluation: rounds"):
            client.evaluate("test", LOGITS, "run", 1001)


def test_a_refused_call_counts_once_it_was_admitted(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """A refusal such as `not finite` discloses something too: such calls use the allowance up."""
    policy = policy_of(dataset, EvaluationLimits(min_patients=1, per_day=2))
    with serving(domain, dataset, address, policy=policy), VaultClient(address) as client:
        for _ in range(2):
            with pytest.raises(VaultError, match="not finite"):
                client.evaluate("test", np.full((3, 2, 2), np.nan))
        with pytest.raises(
            VaultError, match="2 evaluations were made within 24 hours, and 2 are allowed: wait, or set"
        ):
            client.evaluate("test", LOGITS)


def test_a_day_is_24_hours():
    """A call counts for exactly 24 hours."""
    allowance, limits = EvaluationAllowance([EvaluationCall(NOW, "", 1, "test")]), EvaluationLimits(per_day=1)
    almost = NOW + timedelta(hours=24) - timedelta(seconds=1)
    with pytest.raises(VaultError, match="within 24 hours"):
        allowance.admit(EvaluationCall(almost, "", 1, "test"), 10, limits)
    allowance.admit(EvaluationCall(NOW + timedelta(hours=24), "", 1, "test"), 10, limits)


@given(st.lists(st.integers(0, 200), max_size=60), st.integers(1, 5))
def test_no_window_of_a_day_holds_more_than_its_limit(hours: list[int], most: int):
    """Of the admitted calls no more than `per_day` are within any 24 hours."""
    allowance, limits, admitted = EvaluationAllowance(), EvaluationLimits(per_day=most), []
    for hour in sorted(hours):
        try:
            allowance.admit(EvaluationCall(NOW + timedelta(hours=hour), "", 1, "test"), 10, limits)
        except VaultError:
            continue
        admitted.append(hour)
    assert all(sum(start <= hour < start + 24 for hour in admitted) <= most for start in admitted)


@given(st.permutations([-25, -24, -23, -1, 0, 1, 2, 26]))
def test_a_call_of_a_wrong_clock_does_not_count_today(hours: list[int]):
    """Of calls logged in any order those of the last 24 hours count, and each stops to count again."""
    allowance = EvaluationAllowance(EvaluationCall(NOW + timedelta(hours=h), "", 1, "test") for h in hours)
    four = EvaluationLimits(per_day=4)
    allowance.admit(EvaluationCall(NOW, "", 1, "test"), 100, four)
    with pytest.raises(VaultError, match="4 evaluations were made within 24 hours"):
        allowance.admit(EvaluationCall(NOW, "", 1, "test"), 100, four)
    allowance.admit(EvaluationCall(NOW + timedelta(days=3), "", 1, "test"), 100, EvaluationLimits(per_day=1))


def test_concurrent_calls_are_all_counted():
    """A call that took the time first, and is admitted last, does not pass the limit."""
    allowance = EvaluationAllowance([EvaluationCall(NOW + timedelta(seconds=1), "", 1, "test")])
    with pytest.raises(VaultError, match="1 evaluations were made within 24 hours"):
        allowance.admit(EvaluationCall(NOW, "", 1, "test"), 100, EvaluationLimits(per_day=1))


def test_past_calls_count_by_run_and_round():
    """After a restart a round's earlier evaluations still count."""
    past = [EvaluationCall(NOW - timedelta(days=30), "run", 1, "test")] * 9
    with pytest.raises(VaultError, match="evaluated 9 times in round 1"):
        EvaluationAllowance(past).admit(EvaluationCall(NOW, "run", 1, "test"), 3, FEW)


@pytest.mark.parametrize("run", ["r" * 65, "two\nlines", "\x1b[2J"])
def test_a_run_s_name_is_short_and_printable(run: str, domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """Nothing else gets into the log."""
    assert not is_run(run)
    with serving(domain, dataset, address), VaultClient(address) as client:
        with pytest.raises(VaultError, match="a run is at most 64 printable characters"):
            client.evaluate("test", LOGITS, run, 1)
        assert client.evaluate("test", LOGITS, "r" * 64, 1).examples == 3


def test_the_policy_is_read_for_each_call(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """Limits that change while the vault runs bind its next call, and earlier calls still count."""
    policy = policy_of(dataset)
    with serving(domain, dataset, address, policy=policy), VaultClient(address) as client:
        for _ in range(2):
            client.evaluate("test", LOGITS, "run", 1)
        for limits, refusal in (
            (replace(FEW, per_day=2, per_round=3), "2 evaluations were made within 24 hours, and 2 are allowed"),
            (replace(FEW, per_round=1), "evaluated 2 times in round 1 of run run, and 1 are allowed"),
            (replace(FEW, min_patients=4), "counts of fewer than 4 are not disclosed"),
        ):
            policy_of(dataset, limits)
            with pytest.raises(VaultError, match=refusal):
                client.evaluate("test", LOGITS, "run", 1)
        policy_of(dataset, replace(FEW, per_day=3, per_round=3))
        client.evaluate("test", LOGITS, "run", 1)
        with pytest.raises(VaultError, match="3 evaluations were made within 24 hours, and 3 are allowed"):
            client.evaluate("test", LOGITS)


@pytest.mark.parametrize("text", [None, "bundles: [", "{kept}rounds: 3\n", "\xff"])
def test_a_policy_that_cannot_be_read_allows_nothing(
    text: str | None, domain: KeyDomain, dataset: EncryptedDataset, address: str
):
    """No reply leaves under a policy that was valid once; one line names the file, until it can be read again."""
    policy = policy_of(dataset)
    kept = policy.read_text()
    with serving(domain, dataset, address, policy=policy), VaultClient(address) as client:
        if text is None:
            policy.unlink()
        else:
            policy.write_bytes(text.format(kept=kept).encode("latin-1"))
        for call in calls(client):
            with pytest.raises(VaultError, match=re.escape(str(policy))) as refused:
                call()
            assert "\n" not in str(refused.value)
        assert client.info().task.frames == 2
        policy.write_text(kept)
        for call in calls(client):
            call()


def test_a_dataset_that_is_no_longer_approved_is_not_used(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """Removed from the policy, it is neither evaluated, nor signed for, nor given weights."""
    policy = policy_of(dataset)
    with serving(domain, dataset, address, policy=policy), VaultClient(address) as client:
        policy.write_text(policy.read_text().replace(dataset.manifest.fingerprint, "f" * 64))
        for call in calls(client):
            with pytest.raises(VaultError, match="this site's policy does not list its dataset"):
                call()
        assert client.info().task.frames == 2


def test_after_its_last_day_a_policy_allows_nothing(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """`until` holds for all methods of the vault but its public facts."""
    policy = policy_of(dataset)
    with serving(domain, dataset, address, policy=policy), VaultClient(address) as client:
        policy.write_text(f"{policy.read_text()}until: 2026-01-31\n")
        for call in calls(client):
            with pytest.raises(VaultError, match="this site's policy ended with 2026-01-31"):
                call()
        assert client.info().task.frames == 2


def test_code_that_is_not_approved_gets_no_signature(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """The vault signs for bundles of the policy only, whatever the caller states."""
    with serving(domain, dataset, address), VaultClient(address) as client:
        with pytest.raises(VaultError, match="this site has not approved bundle eeee"):
            client.sign("0" * 64, "1", PROTOCOL, "e" * 64, SIMULATED)
        client.sign("0" * 64, "1", PROTOCOL, NO_BUNDLE, SIMULATED)


def test_a_clock_that_was_wrong_once_bounds_nothing_for_ever():
    """A call that was dated years ahead counts for its own day only, also after a restart."""
    now = datetime(2030, 1, 1, tzinfo=UTC)
    allowance = EvaluationAllowance([EvaluationCall(now + timedelta(days=3650), "", 1, "test")])
    limits = EvaluationLimits(per_day=2)
    for day in range(0, 20, 2):
        for _ in range(2):
            allowance.admit(EvaluationCall(now + timedelta(days=day), "", 1, "test"), 20, limits)
        with pytest.raises(VaultError, match="2 evaluations were made within 24 hours"):
            allowance.admit(EvaluationCall(now + timedelta(days=day, hours=1), "", 1, "test"), 20, limits)


def calls(client: VaultClient) -> tuple[Callable[[], object], ...]:
    """Return all that the policy must allow."""
    return (
        lambda: client.evaluate("test", LOGITS),
        lambda: client.initial_weights(TINY, 0, "float32"),
        lambda: client.sign("0" * 64, "1", PROTOCOL, NO_BUNDLE, SIMULATED),
    )


def test_proofs_of_membership_are_bounded() -> None:
    """Those of the last hour count, across a restart too: a caller cannot have the vault sign without end."""
    past = [NOW - timedelta(minutes=61)] * 5 + [NOW - timedelta(minutes=59)] * (MAX_PROOFS - 1)
    allowance = ProofAllowance(past)
    allowance.admit(NOW)
    with pytest.raises(VaultError, match=f"{MAX_PROOFS} proofs of membership were signed within an hour"):
        allowance.admit(NOW)
    allowance.admit(NOW + timedelta(minutes=2))


def test_signed_proofs_are_read_from_the_log() -> None:
    """A restart gives no new ones; refused calls do not count."""
    past = History()
    for more in ({"nonce": "ab" * 32}, {}):
        past.add({"method": "Sign", "time": NOW.isoformat(), **more})
    assert list(past.proofs) == [NOW]
