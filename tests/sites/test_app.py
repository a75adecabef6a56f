"""The ClientApp, called with real messages, beside a real vault."""

import json
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, write_dataset
from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict
from members import run_of
from vaults import serving

from fedpp.cipher.dataset import EncryptedDataset
from fedpp.keys import encryption
from fedpp.keys.domain import KeyDomain
from fedpp.keys.identity import SiteIdentity
from fedpp.keys.issuer import Issuer
from fedpp.learning.initial import encrypted_initial_weights
from fedpp.network import Gaps, NetworkSpec
from fedpp.policy import SitePolicy
from fedpp.protocol import wire
from fedpp.protocol.membership import NO_BUNDLE, PROTOCOL, Proof, Statement
from fedpp.protocol.participants import Participants
from fedpp.protocol.site import SiteDescription
from fedpp.recipe import Recipe
from simulations.bench_vault import certified
from sites.app import SITES_FOLDER, app
from sites.audit_log import AuditLog, Signer

NONCE = "ab" * 32
OTHER = KeyDomain.of_secret(bytes(31) + b"\1", n=2).card().fingerprint
Plaintext = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def address() -> Iterator[str]:
    """Return an address whose path is short enough for a socket, and can be told from all else."""
    with tempfile.TemporaryDirectory(prefix="fedpp-hospital-") as folder:
        yield f"unix:{folder}/vault.sock"


@pytest.fixture
def context(tmp_path: Path, dataset: EncryptedDataset, domain: KeyDomain, address: str) -> Context:
    """Return what a SuperNode tells the app of its site."""
    domain.evaluation_key().save(tmp_path / "domain.eval")
    node = {
        "dataset": str(dataset.path),
        "evaluation-key": str(tmp_path / "domain.eval"),
        "vault": address,
        "policy": str(tmp_path / "site.yaml"),
    }
    permit(tmp_path, dataset)
    return Context(1, 1, node, RecordDict(), {})


def ask(context: Context, kind: str, content: RecordDict) -> RecordDict:
    metadata = Metadata(1, "question", 0, 1, "", "", 0.0, 60.0, kind)
    return app(Message(content=content, metadata=metadata), context).content


def permit(folder: Path, dataset: EncryptedDataset, **changes: Any) -> None:
    """Let the site's policy list this dataset, and say what else differs from the default."""
    policy = replace(SitePolicy((), (dataset.manifest.fingerprint,)), **changes)
    (folder / "site.yaml").write_text(policy.to_yaml())


def rows(domain: KeyDomain, network: NetworkSpec = TINY) -> dict[str, np.ndarray]:
    return encrypted_initial_weights(network, 0, domain.evaluation_key())


def described(context: Context) -> RecordDict:
    """Return the answer to what every run asks first."""
    question = wire.DescribeRequest(NONCE, PROTOCOL).to_record()
    return ask(context, "query.describe", RecordDict({wire.CONFIG: question}))


def proof(domain: KeyDomain, name: str, number: int, **change: Any) -> Proof:
    """Return what a member of this name signed now for run 1, its statement with these changes."""
    identity = SiteIdentity(name, bytes([number] * 32))
    statement = Statement(NONCE, "1", int(time.time()), PROTOCOL, domain.card().fingerprint, name, "d" * 64, NO_BUNDLE)
    statement = replace(statement, **change)
    certificate = Issuer(domain.certifying_seed()).certify(identity.recipient(), domain.card())
    return Proof(statement, identity.sign("statement", statement.content()), certificate)


def company(domain: KeyDomain, *others: Proof) -> Participants:
    """Return a run's participants: this site, and others."""
    return Participants(NONCE, (proof(domain, "north", 0), *others))


def train(
    context: Context,
    domain: KeyDomain,
    fingerprint: str,
    network: NetworkSpec = TINY,
    learning_rate: float = 1e-3,
    participants: Participants | None = None,
    *,
    vault: bool = True,
) -> RecordDict:
    """Ask for a round of a run in which another site takes part, beside a vault that is started for it."""
    request = wire.TrainRequest(
        fingerprint, network, "float64", Recipe(learning_rate=learning_rate, batch_size=4), 1, 0, 1
    )
    content = RecordDict({wire.ARRAYS: wire.pack_arrays(rows(domain, network)), wire.CONFIG: request.to_record()})
    content[wire.PARTICIPANTS] = (participants or company(domain, proof(domain, "south", 1))).to_record()
    node = context.node_config
    dataset = EncryptedDataset.open(Path(str(node["dataset"])), domain.at_rest_key())
    running = serving(domain, dataset, str(node["vault"])) if vault else nullcontext()
    with running:
        return ask(context, "train", content)


def reason(answer: RecordDict) -> str:
    """Return the reason of a refusal, which must be all of the answer."""
    assert list(answer) == [wire.REFUSAL]
    return str(answer[wire.REFUSAL]["reason"])


def test_a_site_trains_for_its_own_domain(context: Context, domain: KeyDomain):
    """The answer holds the new weights and the number of training sequences."""
    answer = train(context, domain, domain.card().fingerprint)
    assert wire.REFUSAL not in answer
    assert answer.metric_records[wire.METRICS][wire.EXAMPLES] == 6
    assert set(wire.unpack_arrays(answer)) == {spec.name for spec in TINY.weights()}


def test_a_site_refuses_another_domains_run(context: Context, domain: KeyDomain):
    """Weights of another domain are not trained on, even if the coordinator sends them."""
    assert reason(train(context, domain, OTHER)).startswith(
        f"this site belongs to domain {domain.card().fingerprint[:16]}, the run to {OTHER[:16]}"
    )


def test_a_diverged_training_is_said_to_be_one(context: Context, domain: KeyDomain):
    """The coordinator learns why a site sends no weights: it is its learning rate that has to change."""
    answer = train(context, domain, domain.card().fingerprint, learning_rate=1e300)
    assert reason(answer).endswith("in epoch 1, batch 2: lower the learning rate")


def test_a_site_describes_itself(context: Context, dataset: EncryptedDataset, domain: KeyDomain, address: str):
    """The coordinator learns the dataset's shape, classes and counts by split."""
    with serving(domain, dataset, address):
        answer = described(context)
    proved = Proof.from_json(str(answer.config_records[wire.PROOF]["proof"]))
    proved.require(run_of(domain.card(), NONCE))
    assert (proved.statement.dataset, proved.statement.bundle) == (dataset.manifest.fingerprint, NO_BUNDLE)
    fingerprint = domain.card().fingerprint
    shape, counts = (2, 2, 8, 8, 1), ((6, 2, 3), (6, 2, 3))
    expected = SiteDescription("north", fingerprint, *shape, ("no", "yes"), False, "none", 0, *counts)
    assert SiteDescription.from_mapping(answer.config_records[wire.SITE]) == expected


def test_a_site_whose_vault_serves_another_dataset_refuses(
    context: Context, dataset: EncryptedDataset, domain: KeyDomain, plaintext: Plaintext, address: str, tmp_path: Path
):
    """A dataset of the same domain and shape, but with other labels, would be scored wrongly."""
    other = write_dataset(tmp_path / "other", domain, (plaintext[0], 1 - plaintext[1]))
    with serving(domain, other, address):
        answer = described(context)
    assert reason(answer) == (
        f"its vault serves dataset {other.manifest.fingerprint[:16]}, its trainer reads "
        f"{dataset.manifest.fingerprint[:16]}: give both the same"
    )


def test_initial_weights_are_for_the_sites_own_domain(
    context: Context, dataset: EncryptedDataset, domain: KeyDomain, address: str
):
    """A run of another domain gets no weights, even if a vault answers; a run of this domain gets rows that fit."""
    with serving(domain, dataset, address):
        for fingerprint in (OTHER, domain.card().fingerprint):
            request = wire.InitialWeightsRequest(fingerprint, TINY, "float64", seed=3)
            answer = ask(context, "query.initial_weights", RecordDict({wire.CONFIG: request.to_record()}))
            if fingerprint == OTHER:
                assert reason(answer).startswith("this site belongs to domain")
    assert set(wire.rows_of(answer, TINY, 2, "float64")) == {spec.name for spec in TINY.weights()}


@pytest.mark.parametrize("kind", ["train", "evaluate", "query.initial_weights"])
@pytest.mark.parametrize(
    "network",
    [
        replace(TINY, gaps=True),
        *(replace(TINY, **{name: 16}) for name in ("frames", "height", "width", "channels", "classes")),
    ],
)
def test_a_network_for_other_data_is_refused(context: Context, domain: KeyDomain, kind: str, network: NetworkSpec):
    """What does not fit the dataset is not built, nor asked of the vault."""
    fingerprint = domain.card().fingerprint
    request = {
        "train": wire.TrainRequest(fingerprint, network, "float64", Recipe(batch_size=4), 1, 0, 1),
        "evaluate": wire.EvaluateRequest(fingerprint, network, "float64", Recipe(batch_size=4), "test", 1),
        "query.initial_weights": wire.InitialWeightsRequest(fingerprint, network, "float64", 0),
    }[kind]
    content = RecordDict({wire.ARRAYS: wire.pack_arrays(rows(domain)), wire.CONFIG: request.to_record()})
    assert reason(ask(context, kind, content)).startswith("the network is for ")


@pytest.mark.parametrize("gaps", ["public", "encrypted"])
def test_a_site_trains_with_gaps(
    gaps: Gaps, context: Context, domain: KeyDomain, plaintext: Plaintext, tmp_path: Path, address: str
):
    """Whichever way the time between frames is kept, the site says so and trains the same network."""
    times = np.linspace(0, 1, 22).reshape(11, 2)
    dataset = write_dataset(tmp_path / "gaps", domain, plaintext, gaps=gaps, times=times)
    permit(tmp_path, dataset)
    context.node_config["dataset"] = str(dataset.path)
    with serving(domain, dataset, address):
        answer = described(context)
    assert SiteDescription.from_mapping(answer.config_records[wire.SITE]).gaps == gaps
    network = replace(TINY, gaps=True)
    answer = train(context, domain, domain.card().fingerprint, network)
    assert set(wire.rows_of(answer, network, 2, "float64")) == {spec.name for spec in network.weights()}


def test_a_sealed_dataset_is_opened_with_the_key_beside_the_evaluation_key(
    context: Context, domain: KeyDomain, plaintext: Plaintext, tmp_path: Path, address: str
):
    """A site whose dataset is sealed at rest describes itself, and trains to the same weights as without a seal."""
    unsealed = train(context, domain, domain.card().fingerprint)
    sealed = write_dataset(tmp_path / "sealed", domain, plaintext, sealed=True)
    permit(tmp_path, sealed)
    context.node_config["dataset"] = str(sealed.path)
    domain.at_rest_key().save(tmp_path / "domain.rest")
    with serving(domain, sealed, address):
        assert wire.SITE in described(context)
    answer = train(context, domain, domain.card().fingerprint)
    weights = [wire.unpack_arrays(content)["dense/kernel"] for content in (answer, unsealed)]
    np.testing.assert_allclose(*(encryption.decrypt(domain, rows) for rows in weights), atol=1e-11)


def test_damage_is_found_before_training_and_not_looked_for_in_each_round(
    context: Context, dataset: EncryptedDataset, domain: KeyDomain, address: str
):
    """A flipped bit in a test sequence refuses the site at its description; a round reads what it trains on."""
    shard = dataset.path / "frames-00000.npy"
    with serving(domain, dataset, address):
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        assert reason(described(context)) == "its dataset cannot be read: its own log says why"
        assert wire.REFUSAL not in train(context, domain, domain.card().fingerprint, vault=False)


def test_the_vault_learns_for_which_run_and_round_it_scores(
    context: Context, domain: KeyDomain, dataset: EncryptedDataset, address: str, tmp_path: Path
):
    """Both come from Flower's message and the request, and stand in the vault's audit log; a third call is refused."""
    request = wire.EvaluateRequest(domain.card().fingerprint, TINY, "float64", Recipe(batch_size=4), "test", round=9)
    content = RecordDict({wire.ARRAYS: wire.pack_arrays(rows(domain)), wire.CONFIG: request.to_record()})
    content[wire.PARTICIPANTS] = company(domain, proof(domain, "south", 1)).to_record()
    log = AuditLog.open(tmp_path / "log", Signer.of(certified(domain, "north").identity))
    with serving(domain, dataset, address, audit=log):
        for _ in range(2):
            assert wire.METRICS in ask(context, "evaluate", content)
        assert reason(ask(context, "evaluate", content)).startswith("its vault does not answer, or refuses")
    log.close()
    _, *lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    scores = [line for line in lines if line["method"] == "Score"]
    assert [(line["run"], line["round"], line["split"]) for line in scores] == [("1", 9, "test")] * 3


def test_a_request_out_of_bounds_is_refused(context: Context, domain: KeyDomain):
    """A site answers what is wrong with a request, and does not start it."""
    record = wire.TrainRequest(domain.card().fingerprint, TINY, "float64", Recipe(batch_size=4), 1, 0, 1).to_record()
    answer = ask(context, "train", RecordDict({wire.CONFIG: ConfigRecord({**record, "epochs": 10**6})}))
    assert reason(answer) == (
        "the coordinator's request does not fit: epochs must be a whole number from 1 to 1000, got 1000000"
    )
    assert reason(ask(context, "evaluate", RecordDict())) == "a message came without config: use one fedpp at all sites"


def test_weights_that_do_not_fit_are_refused(context: Context, domain: KeyDomain):
    """A model of three slots is not one of this site's two."""
    request = wire.EvaluateRequest(
        domain.card().fingerprint, TINY, "float64", Recipe(batch_size=4), "test", 1
    ).to_record()
    wide = {spec.name: np.zeros((*spec.shape, 3)) for spec in TINY.weights()}
    answer = ask(context, "evaluate", RecordDict({wire.ARRAYS: wire.pack_arrays(wide), wire.CONFIG: request}))
    assert reason(answer) == "its arrays have other names, shapes or dtypes than the model"


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("query.describe", {"datasets": (OTHER,)}, "this site's policy does not list its dataset {dataset:.16}"),
        ("train", {"datasets": (OTHER,)}, "this site's policy does not list its dataset {dataset:.16}"),
        ("train", {"answers": ("describe",)}, "this site's policy does not allow to answer 'train'"),
        ("evaluate", {"answers": ("describe", "train")}, "this site's policy does not allow to answer 'evaluate'"),
        ("query.initial_weights", {"answers": ()}, "this site's policy does not allow to answer 'initial-weights'"),
        ("query.describe", {"until": date(2026, 1, 31)}, "this site's policy ended with 2026-01-31"),
        ("evaluate", {"until": date(2026, 1, 31)}, "this site's policy ended with 2026-01-31"),
    ],
)
def test_the_policy_decides_what_is_answered(
    kind: str,
    changes: dict[str, Any],
    told: str,
    context: Context,
    dataset: EncryptedDataset,
    domain: KeyDomain,
    tmp_path: Path,
    address: str,
):
    """A dataset that is not listed, a question that is not allowed and one after the last day are refused, and why."""
    permit(tmp_path, dataset, **changes)
    request = wire.TrainRequest(domain.card().fingerprint, TINY, "float64", Recipe(batch_size=4), 1, 0, 1)
    content = RecordDict({wire.ARRAYS: wire.pack_arrays(rows(domain)), wire.CONFIG: request.to_record()})
    with serving(domain, dataset, address):
        answer = described(context) if kind == "query.describe" else ask(context, kind, content)
    assert reason(answer).startswith(told.format(dataset=dataset.manifest.fingerprint))


def test_a_run_needs_the_company_that_the_policy_wants(
    context: Context, domain: KeyDomain, dataset: EncryptedDataset, tmp_path: Path
):
    """So many other members must have proved themselves for this run; who did not, or twice, does not count."""
    south, east = proof(domain, "south", 1), proof(domain, "east", 2)
    permit(tmp_path, dataset, co_participants=2)
    fingerprint = domain.card().fingerprint

    def refused(participants: Participants) -> str:
        return reason(train(context, domain, fingerprint, participants=participants))

    assert wire.REFUSAL not in train(context, domain, fingerprint, participants=company(domain, south, east))
    assert "wants 2 other sites in a run, got 1" in refused(company(domain, south))
    for twice in ((south, south), (south, proof(domain, "centre", 1)), (south, proof(domain, "south", 3))):
        assert "names one member twice" in refused(company(domain, *twice))
    for other in ({"nonce": "0" * 64}, {"run": "2"}):
        assert "was replayed" in refused(company(domain, south, proof(domain, "east", 2, **other)))
    other_code = proof(domain, "east", 2, bundle="e" * 64)
    assert "east runs app bundle eeeeeeeeeeeeeeee, the run is of" in refused(company(domain, south, other_code))
    earlier = proof(domain, "east", 2, time=int(time.time()) - 15 * 86400)
    assert "the proof of east is of another time" in refused(company(domain, south, earlier))
    stranger = proof(KeyDomain.of_secret(bytes(31) + b"\1", n=2), "east", 2)
    assert "is for domain" in refused(company(domain, south, stranger))
    assert "is without north: it did not join this run" in refused(Participants(NONCE, (south, east)))


def test_a_question_without_participants_is_refused(context: Context, domain: KeyDomain, dataset: EncryptedDataset):
    """Weights that nobody says who else trains on are not evaluated, either."""
    request = wire.EvaluateRequest(
        domain.card().fingerprint, TINY, "float64", Recipe(batch_size=4), "test", 1
    ).to_record()
    content = RecordDict({wire.ARRAYS: wire.pack_arrays(rows(domain)), wire.CONFIG: request})
    with serving(domain, dataset, str(context.node_config["vault"])):
        assert reason(ask(context, "evaluate", content)).startswith("a message came without participants")


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("dataset", "its dataset cannot be read: its own log says why"),
        ("damage", "its dataset cannot be read: its own log says why"),
        ("key", "its keys cannot be read: its own log says why"),
        ("at-rest key", "its keys cannot be read: its own log says why"),
        ("vault", "its vault does not answer, or refuses: its own log says why"),
        ("settings", "its settings do not fit: its own log says which"),
        ("policy", "its settings do not fit: its own log says which"),
        ("defect", "it failed: its own log says where"),
    ],
)
def test_the_coordinator_learns_no_path(
    what: str,
    told: str,
    context: Context,
    dataset: EncryptedDataset,
    domain: KeyDomain,
    plaintext: Plaintext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """What fails inside the hospital is told by its kind; the whole line, paths included, stands in the site's log."""
    monkeypatch.setattr("fedpp.protocol.vault_client.CONNECT_SECONDS", 0.2)
    if what == "dataset":
        (dataset.path / "manifest.json").unlink()
    elif what == "damage":
        next(dataset.path.glob("frames-*")).unlink()
    elif what == "key":
        (tmp_path / "domain.eval").write_text("{}")
    elif what == "at-rest key":
        write_dataset(tmp_path / "sealed", domain, plaintext, sealed=True)
        context.node_config["dataset"] = str(tmp_path / "sealed")
    elif what == "policy":
        (tmp_path / "site.yaml").write_text("bundles: []")
    elif what == "settings":
        context.node_config["vaults"] = str(tmp_path)
    elif what == "defect":
        context.node_config["partition-id"] = 0
        monkeypatch.setenv(SITES_FOLDER, str(tmp_path / "nowhere"))
    with caplog.at_level(logging.WARNING, "fedpp.site"):
        answer = described(context)
    assert reason(answer) == told
    (entry,) = [entry for entry in caplog.records if entry.name == "fedpp.site"]
    assert entry.getMessage().startswith("describe failed" if what == "defect" else "describe refused: ")
    secret = {"vault": "hospital-", "settings": "unknown vaults", "defect": "nowhere/0.json"}.get(what, str(tmp_path))
    assert secret in caplog.text
