"""The ClientApp, called with real messages: no vault is needed to train."""

from pathlib import Path

import pytest
from conftest import TINY
from flwr.app import Context, Message, Metadata, RecordDict

from fedpp.cipher.dataset import EncryptedDataset
from fedpp.keys import encryption
from fedpp.keys.domain import KeyDomain
from fedpp.learning.initial import initial_weights
from fedpp.protocol import wire
from sites.app import app


@pytest.fixture
def context(tmp_path: Path, dataset: EncryptedDataset, domain: KeyDomain) -> Context:
    """Return what a SuperNode tells the app of its site."""
    domain.evaluation_key().save(tmp_path / "domain.eval")
    node = {
        "name": "north",
        "dataset": str(dataset.path),
        "evaluation-key": str(tmp_path / "domain.eval"),
        "vault": f"unix:{tmp_path / 'vault.sock'}",
    }
    return Context(1, 1, node, RecordDict(), {})


def train(context: Context, domain: KeyDomain, fingerprint: str) -> RecordDict:
    request = wire.TrainRequest(fingerprint, TINY, "float64", 1e-3, 1, 4, 0, 1)
    weights = [initial_weights(TINY, seed) for seed in (0, 1)]
    rows = encryption.encrypt_weights(domain, weights[0], weights[1:], "float64")
    content = RecordDict({wire.ARRAYS: wire.pack_arrays(rows), wire.CONFIG: request.to_record()})
    metadata = Metadata(1, "question", 0, 1, "", "", 0.0, 60.0, "train")
    return app(Message(content=content, metadata=metadata), context).content


def test_a_site_trains_for_its_own_domain(context: Context, domain: KeyDomain):
    """The answer holds the new weights and the number of training sequences."""
    answer = train(context, domain, domain.card().fingerprint)
    assert wire.REFUSAL not in answer
    assert answer.metric_records[wire.METRICS][wire.EXAMPLES] == 6
    assert set(wire.unpack_arrays(answer)) == {spec.name for spec in TINY.weights()}


def test_a_site_refuses_another_domains_run(context: Context, domain: KeyDomain):
    """Weights of another domain are not trained on, even if the coordinator sends them."""
    other = KeyDomain(bytes(31) + b"\1", n=2, epoch=1).card().fingerprint
    answer = train(context, domain, other)
    assert str(answer[wire.REFUSAL]["reason"]).startswith(
        f"site north belongs to domain {domain.card().fingerprint[:16]}, the run to {other[:16]}"
    )
    assert wire.ARRAYS not in answer
