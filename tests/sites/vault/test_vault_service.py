"""The vault's methods, called by its client over a real socket."""

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import FINDINGS, SPLIT, TINY, new_dataset, write_dataset
from vaults import SECONDS, service, serving

from fedpp.cipher import algebra
from fedpp.config.model_spec import ModelSpec
from fedpp.config.run_config import SPLITS
from fedpp.config.task import Gaps, Task
from fedpp.dataset.dataset_manifest import SequenceRecord
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError, DatasetError, DomainMismatchError, VaultError
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.initial_weights import initial_weights
from fedpp.learning.metrics import count, count_findings, presence, softmax
from fedpp.protocol.counts import UNKNOWN
from fedpp.protocol.finding_counts import FindingCounts
from fedpp.vault_api import chunks, vault_pb2, vault_pb2_grpc
from fedpp.vault_api.vault_client import SiteInfo, VaultClient

Plaintext = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def vault(domain: KeyDomain, dataset: EncryptedDataset, address: str) -> Iterator[VaultClient]:
    """Return a client of a running vault of the tiny dataset."""
    with serving(domain, dataset, address), VaultClient(address) as client:
        yield client


def status(error: BaseException) -> grpc.StatusCode:
    """Return the status under a client's error."""
    assert isinstance(error.__context__, grpc.RpcError)
    code: grpc.StatusCode = error.__context__.code()
    return code


def test_info_is_the_manifest_and_the_card(domain: KeyDomain, dataset: EncryptedDataset, vault: VaultClient):
    """`Info` has the manifest's facts, counts patients once, and the card."""
    assert vault.info() == SiteInfo(
        domain=domain.card().fingerprint,
        dataset=dataset.manifest.fingerprint,
        task=Task(2, 8, 8, 1, ("no", "yes")),
        sequences={"train": 6, "validation": 2, "test": 3},
        patients={"train": 6, "validation": 2, "test": 3},
        dtype="float64",
        card=domain.card().to_json(),
        site="north",
    )


@pytest.fixture
def one_patient(domain: KeyDomain, tmp_path: Path) -> EncryptedDataset:
    """Return a dataset of one patient with two visits, both in the training split."""
    cipher, sizes = SequenceCipher(domain, "float32"), {"frames": 1, "height": 2, "width": 2, "channels": 1}
    with new_dataset(tmp_path / "d", domain.card(), dtype="float32", **sizes, classes=("a", "b")) as writer:
        for visit in ("0", "1"):
            rows = cipher.frames("s", np.ones((1, 2, 2, 1)))
            writer.add(SequenceRecord(visit * 32, "f" * 32, 1, "train"), rows, cipher.label("s", 1, 2))
    return EncryptedDataset.open(tmp_path / "d")


def test_info_counts_a_patient_of_two_visits_once(domain: KeyDomain, one_patient: EncryptedDataset, address: str):
    """Two sequences of one patient are two sequences and one patient."""
    with serving(domain, one_patient, address), VaultClient(address) as client:
        info = client.info()
    assert (info.sequences["train"], info.patients["train"]) == (2, 1)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-13)])
def test_initial_weights_decrypt_to_the_plaintext_ones(
    n: int, dtype: str, tolerance: float, tmp_path: Path, plaintext: Plaintext, address: str
):
    """The message is drawn by the domain's seed and not by the coordinator's; decoys are more draws of the kind."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=n)
    with (
        serving(domain, write_dataset(tmp_path / "d", domain, plaintext), address),
        VaultClient(address) as client,
    ):
        rows = client.initial_weights(TINY, 2**64 - 1, dtype)
    expected = initial_weights(TINY, domain.initial_seed(2**64 - 1))
    assert list(rows) == [spec.name for spec in TINY.weights()]
    for name, message in expected.items():
        assert rows[name].dtype == dtype
        slots = algebra.decrypt(rows[name].astype(np.float64), domain.matrix())
        np.testing.assert_allclose(slots[..., 0], message, rtol=0, atol=tolerance)
        for decoy in np.moveaxis(slots, -1, 0)[1:]:
            if name.endswith("bias"):
                np.testing.assert_allclose(decoy, message, rtol=0, atol=tolerance)
                continue
            assert abs(decoy - message).max() > 0.01
            if name.endswith("recurrent"):
                np.testing.assert_allclose(decoy @ decoy.T, np.eye(len(decoy)), rtol=0, atol=1e-5)
            else:  # Glorot's limit
                *receptive, fan_in, fan_out = decoy.shape
                assert abs(decoy).max() <= np.sqrt(6 / (np.prod(receptive) * (fan_in + fan_out))) + tolerance


def test_decoys_follow_from_the_domain_and_the_seed(vault: VaultClient, domain: KeyDomain):
    """One request has one reply, so that a run repeats; another seed has other decoys, too."""
    first, same, other = (vault.initial_weights(TINY, seed, "float64")["dense/kernel"] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, same)
    assert abs((first - other) @ domain.matrix()).max(axis=(0, 1)).min() > 0.01


def test_arrays_beyond_a_message_s_limit_arrive(vault: VaultClient):
    """An array of 4 MiB, gRPC's limit with nothing left for its header, comes in chunks."""
    rows = vault.initial_weights(TINY.changed(dense=2**14), 1, "float64")
    assert rows["dense/kernel"].nbytes == 4 * 2**20


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_evaluate_is_the_count_of_the_plaintext(n: int, split: str, tmp_path: Path, plaintext: Plaintext, address: str):
    """Encrypted logits have the evaluation counts of the same logits and labels in clear."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=n)
    all_labels = np.array([0, 1, 1, 0, 1, 0, 1, 1, 1, 0, 0])  # no split begins like another
    dataset = write_dataset(tmp_path / "d", domain, (plaintext[0], all_labels))
    labels = all_labels[[i for i, s in enumerate(SPLIT) if s == split]]
    logits = np.random.default_rng(3).normal(scale=3.0, size=(len(labels), 2))
    with serving(domain, dataset, address), VaultClient(address) as client:
        counts = client.evaluate(split, SequenceCipher(domain, "float64").frames("s", logits))
    assert counts == count(labels, softmax(logits))


STATES = np.random.default_rng(5).integers(-1, 2, size=(11, 3))


@pytest.fixture
def findings(tmp_path: Path, domain: KeyDomain, plaintext: Plaintext) -> EncryptedDataset:
    """Return the tiny dataset with three findings, some of them unknown."""
    return write_dataset(tmp_path / "findings", domain, (plaintext[0], STATES))


@pytest.mark.parametrize("n", [2, 3])
def test_evaluate_counts_each_finding_where_it_is_known(n: int, tmp_path: Path, plaintext: Plaintext, address: str):
    """Encrypted logits have each finding's counts of the same logits and states in clear."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=n)
    dataset = write_dataset(tmp_path / "d", domain, (plaintext[0], STATES))
    with serving(domain, dataset, address), VaultClient(address) as client:
        info = client.info()
        assert (info.task.classes, info.task.multi_label) == (FINDINGS, True)
        for split in SPLITS:
            states = STATES[[i for i, s in enumerate(SPLIT) if s == split]]
            logits = np.random.default_rng(3).normal(scale=3.0, size=states.shape)
            counts = client.evaluate(split, SequenceCipher(domain, "float64").frames("s", logits))
            assert counts == count_findings(states, presence(logits))
            moved = np.where(states == UNKNOWN, -logits, logits)
            assert client.evaluate(split, SequenceCipher(domain, "float64").frames("s", moved)) == counts


def test_one_finding_is_not_two_classes(domain: KeyDomain, tmp_path: Path, address: str):
    """It has a logit and counts of its own."""
    cipher, sizes = SequenceCipher(domain, "float64"), {"frames": 1, "height": 2, "width": 2, "channels": 1}
    with new_dataset(
        tmp_path / "d", domain.card(), dtype="float64", **sizes, classes=("Edema",), multi_label=True
    ) as writer:
        rows = cipher.frames("s", np.ones((1, 2, 2, 1)))
        writer.add(SequenceRecord("0" * 32, "1" * 32, 1, "test"), rows, cipher.findings("s", (1,)))
    with serving(domain, EncryptedDataset.open(tmp_path / "d"), address), VaultClient(address) as client:
        counts = client.evaluate("test", cipher.frames("s", np.array([[2.0]])))
        assert counts == count_findings([[1]], presence(np.array([[2.0]])))
        assert client.evaluate("train", np.zeros((0, 1, 2))) == FindingCounts.zero(1)


@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 4, 2), (3, 3, 2, 2), (2, 3, 2)])
def test_another_number_of_logits_is_refused(
    shape: tuple[int, ...], domain: KeyDomain, findings: EncryptedDataset, address: str
):
    """There is one logit a finding: neither fewer, nor more, nor pairs are accepted."""
    with serving(domain, findings, address), VaultClient(address) as client:
        with pytest.raises(VaultError, match=r"must be rows of shape \(3, 3, 2\), got") as refused:
            client.evaluate("test", np.zeros(shape))
        assert status(refused.value) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_network_of_classes_is_refused_for_findings(domain: KeyDomain, findings: EncryptedDataset, address: str):
    """Weights are drawn for findings where the data have findings."""
    with serving(domain, findings, address), VaultClient(address) as client:
        with pytest.raises(VaultError, match=r"3 classes \(a, b, c\); the data are .* 3 findings \(Edema, "):
            client.initial_weights(TINY.changed(classes=("a", "b", "c")), 0, "float32")
        network = TINY.changed(classes=FINDINGS, multi_label=True)
        assert client.initial_weights(network, 0, "float32")["logits/bias"].shape == (3, 2)


def test_an_empty_split_counts_nothing(domain: KeyDomain, one_patient: EncryptedDataset, address: str):
    """A site without validation data replies with zero counts, which add nothing."""
    with serving(domain, one_patient, address), VaultClient(address) as client:
        counts = client.evaluate("validation", np.zeros((0, 2, 2)))
    assert (counts.examples, counts.loss_sum, counts.confusion) == (0, 0.0, ((0, 0), (0, 0)))


@pytest.mark.parametrize(
    ("split", "rows", "reason"),
    [
        ("test", np.zeros((2, 2, 2)), r"must be rows of shape \(3, 2, 2\), got \(2, 2, 2\)"),
        ("test", np.zeros((3, 2, 3)), r"must be rows of shape \(3, 2, 2\), got \(3, 2, 3\)"),
        ("test", np.zeros((12,)), r"must be rows of shape \(3, 2, 2\), got \(12,\)"),
        ("test", np.zeros((3, 2, 2), dtype=np.int64), "got 'logits' of 'int64'"),
        ("test", np.full((3, 2, 2), np.nan), "predictions are not finite"),
        ("test", np.full((3, 2, 2), np.inf, dtype=np.float32), "predictions are not finite"),
        ("tost", np.zeros((3, 2, 2)), "there is no split 'tost': choose one of train, validation, test"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(vault: VaultClient, split: str, rows: np.ndarray, reason: str):
    """Shape, dtype, values and split are checked; the vault names the defect in one line and continues."""
    with pytest.raises(VaultError, match=reason) as refused:
        vault.evaluate(split, rows)
    assert status(refused.value) is grpc.StatusCode.INVALID_ARGUMENT
    assert "\n" not in str(refused.value)
    assert vault.evaluate("test", np.zeros((3, 2, 2))).examples == 3


def test_a_second_array_of_logits_is_refused(vault: VaultClient, address: str):
    """A stream holds one array: a second one is no silent replacement of the first."""
    del vault
    arrays = [chunk for name in "ab" for chunk in chunks.to_chunks(name, np.zeros((3, 2, 2)))]
    requests = [vault_pb2.EvaluateRequest(split="test"), *(vault_pb2.EvaluateRequest(logits=chunk) for chunk in arrays)]
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
        vault_pb2_grpc.VaultStub(channel).Evaluate(iter(requests), timeout=SECONDS)
    assert refused.value.details() == "logits are one array, got more"


def test_a_wrong_shape_is_refused_before_its_data_come(vault: VaultClient, address: str):
    """The header decides, so that nobody can fill the vault's memory."""
    del vault
    more = threading.Event()

    def requests() -> Iterator[vault_pb2.EvaluateRequest]:
        yield vault_pb2.EvaluateRequest(split="test")
        yield vault_pb2.EvaluateRequest(logits=vault_pb2.ArrayChunk(name="x", dtype="float64", shape=(2**20, 2, 2)))
        more.wait(SECONDS)

    with grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            vault_pb2_grpc.VaultStub(channel).Evaluate(requests(), timeout=5)
        more.set()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("network", "dtype", "reason"),
    [
        (TINY.changed(frames=3), "float32", "the network is for 3 frames of 8 x 8 x 1, without time gaps, 2 classes"),
        (TINY.changed(gaps=True), "float32", r"is for .*, with time gaps, .* are .*, without time gaps, 2 classes"),
        (TINY.changed(height=16), "float32", "the network is for"),
        (TINY.changed(channels=3), "float32", "the network is for"),
        (TINY.changed(classes=("a", "b", "c")), "float32", "the network is for"),
        (TINY.changed(dense=1_050_000), "float32", "parameters of 2 slots is too large: at most 50000000"),
        (TINY, "float16", "rows are float32 or float64, got 'float16'"),
    ],
)
def test_networks_that_do_not_fit_are_refused(vault: VaultClient, network: ModelSpec, dtype: str, reason: str):
    """The vault draws weights for the task of its own data only, and of bounded size."""
    with pytest.raises(VaultError, match=reason) as refused:
        vault.initial_weights(network, 0, dtype)
    assert status(refused.value) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_the_protocol_cannot_carry_is_refused(vault: VaultClient, seed: int):
    """It is named, and not wrapped around."""
    with pytest.raises(ConfigError, match=str(seed)):
        vault.initial_weights(TINY, seed, "float32")


@pytest.mark.parametrize("label", [np.full((2, 2), np.nan), np.ones((2, 2))])
def test_labels_of_no_class_are_refused(label: np.ndarray, domain: KeyDomain, tmp_path: Path, address: str):
    """Labels that decrypt to no class are the dataset's fault, and are never read as some class."""
    with new_dataset(
        tmp_path / "d", domain.card(), dtype="float64", frames=1, height=1, width=1, channels=1, classes=("a", "b")
    ) as writer:
        writer.add(SequenceRecord("0" * 32, "1" * 32, 1, "test"), np.ones((1, 1, 1, 1, 2)), label)
    with serving(domain, EncryptedDataset.open(tmp_path / "d"), address), VaultClient(address) as client:
        with pytest.raises(VaultError, match="labels do not decrypt to classes") as refused:
            client.evaluate("test", np.zeros((1, 2, 2)))
        assert status(refused.value) is grpc.StatusCode.FAILED_PRECONDITION


def test_an_unlabelled_dataset_is_not_evaluated(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """It is served, and `Evaluate` names what is missing."""
    unlabelled = EncryptedDataset(dataset.path, replace(dataset.manifest, classes=()), dataset.sequences, None)
    with serving(domain, unlabelled, address), VaultClient(address) as client:
        assert client.info().task.classes == ()
        with pytest.raises(VaultError, match="has no labels: ingest it with labels") as refused:
            client.evaluate("test", np.zeros((3, 2, 2)))
        assert status(refused.value) is grpc.StatusCode.FAILED_PRECONDITION


def test_an_unexpected_error_discloses_nothing(
    domain: KeyDomain, dataset: EncryptedDataset, address: str, caplog: pytest.LogCaptureFixture
):
    """An unexpected error, here of a manifest without its shards, reaches the vault's log and not the caller."""
    frames_alone = replace(dataset.manifest, shards=dataset.manifest.shards[:1])
    broken = EncryptedDataset(dataset.path, frames_alone, dataset.sequences, None)
    with serving(domain, broken, address), VaultClient(address) as client:
        with pytest.raises(VaultError) as failed:
            client.evaluate("test", np.zeros((3, 2, 2)))
        assert status(failed.value) is grpc.StatusCode.INTERNAL
        assert str(failed.value) == f"the vault at {address} refused: the vault failed: its own log says where"
        assert client.info().task.frames == 2
    assert "IndexError" in caplog.text


def test_every_call_is_logged_in_one_line_without_identifiers(
    dataset: EncryptedDataset, vault: VaultClient, caplog: pytest.LogCaptureFixture
):
    """The log names the method and counts; pseudonyms stay out of it."""
    with caplog.at_level(logging.INFO, "fedpp.vault"):
        vault.info()
        vault.initial_weights(TINY, 0, "float32")
        vault.evaluate("test", np.zeros((3, 2, 2)))
        with pytest.raises(VaultError):
            vault.evaluate("test", np.zeros((1, 2, 2)))
    lines = [record.getMessage() for record in caplog.records if record.name == "fedpp.vault"]
    assert [line.split()[0].rstrip(":") for line in lines] == ["Info", "InitialWeights", "Evaluate", "Evaluate"]
    pseudonyms = [row[name].decode() for row in dataset.sequences for name in ("id", "patient")]
    assert not any(pseudonym in line for pseudonym in pseudonyms for line in lines)


@pytest.mark.parametrize("kind", ["frames", "labels"])
def test_a_damaged_dataset_is_not_served(kind: str, domain: KeyDomain, dataset: EncryptedDataset):
    """One flipped bit in any shard is found before the vault serves, and the shard named."""
    (shard,) = dataset.path.glob(f"{kind}-*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match=f"{shard.name} is damaged"):
        service(domain, EncryptedDataset.open(dataset.path))


def test_a_sealed_dataset_is_served(domain: KeyDomain, plaintext: Plaintext, tmp_path: Path, address: str):
    """The vault unseals the labels with the domain's own key, and counts as it does without a seal."""
    counts = []
    for sealed in (False, True):
        dataset = write_dataset(tmp_path / str(sealed), domain, plaintext, sealed=sealed)
        with serving(domain, dataset, address), VaultClient(address) as client:
            counts.append(client.evaluate("test", SequenceCipher(domain, "float64").frames("s", np.eye(3, 2))))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("gaps", ["public", "encrypted"])
def test_gaps_are_reported_and_get_weights(
    gaps: Gaps, domain: KeyDomain, plaintext: Plaintext, tmp_path: Path, address: str
):
    """`Info` says that there are time gaps; a network that takes them gets one more input of the LSTM."""
    dataset = write_dataset(tmp_path / "d", domain, plaintext, gaps=gaps, times=np.zeros((11, 2)))
    with serving(domain, dataset, address), VaultClient(address) as client:
        assert client.info().task.gaps
        assert client.initial_weights(TINY.changed(gaps=True), 0, "float64")["backward/kernel"].shape == (6, 16, 2)
        with pytest.raises(VaultError, match="with time gaps"):
            client.initial_weights(TINY, 0, "float64")


def test_a_dataset_of_another_domain_is_not_served(dataset: EncryptedDataset):
    """No vault has the key of one domain and the data of another."""
    with pytest.raises(DomainMismatchError, match="serve the dataset that was ingested under this domain"):
        service(KeyDomain.of_secret(bytes(32), n=2), dataset)
