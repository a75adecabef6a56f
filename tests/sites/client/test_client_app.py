"""The ClientApp with real messages and a real vault: its replies, and the requests that it refuses."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, write_dataset
from flwr.app import ConfigRecord, RecordDict
from members import run_of
from run_specs import varied
from site_nodes import (
    CLOSED,
    NONCE,
    OTHER,
    Node,
    Plaintext,
    content_of,
    initial_state,
    participants_of,
    proof,
    reason,
    ring_of,
    run_spec_of,
    state_in,
    train_reply,
    update_in,
)

from fedpp.aggregation import global_state
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.model_spec import ModelSpec
from fedpp.config.run_config import SITES_FOLDER
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.config.task import Gaps
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys import encryption
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.learning.metrics import count, softmax
from fedpp.protocol import messages
from fedpp.protocol.coordinator_identity import SIMULATED, CoordinatorNames
from fedpp.protocol.membership import NO_BUNDLE, Proof
from fedpp.protocol.participants import Participants
from fedpp.protocol.run_spec import RunSpec
from fedpp.protocol.site_description import SiteDescription
from sites.vault.audit.audit_log import AuditLog, Signer

REQUESTS: Mapping[str, Callable[[RunSpec], messages.Request]] = {
    "query.initial_weights": messages.InitialRequest,
    "train": lambda run_spec: messages.TrainRequest(run_spec, 1),
    "query.accept": lambda run_spec: messages.AcceptRequest(run_spec, 1),
    "evaluate": lambda run_spec: messages.EvaluateRequest(run_spec, 1),
}


def test_a_site_trains_for_its_own_domain(both: list[Node], domain: KeyDomain):
    """The reply holds an encoded update without a mask, its origin and the number of sequences only."""
    run_spec = run_spec_of(domain)
    reply = train_reply(both[0], run_spec)
    assert set(reply) == {messages.ARRAYS, messages.METRICS, messages.ORIGIN}
    assert list(reply.array_records[messages.ARRAYS]) == [messages.WORDS]
    assert dict(reply.metric_records[messages.METRICS]) == {messages.EXAMPLES: 6}
    assert update_in(reply, run_spec).any()


def test_a_site_refuses_another_domains_run(north: Node, domain: KeyDomain):
    """Weights of another domain are not trained on, even if the coordinator sends them."""
    assert reason(train_reply(north, replace(run_spec_of(domain), domain=OTHER))).startswith(
        f"this site belongs to domain {domain.card().fingerprint[:16]}, the run to {OTHER[:16]}"
    )


def test_a_diverged_training_is_reported_without_figures(
    both: list[Node], domain: KeyDomain, caplog: pytest.LogCaptureFixture
):
    """The coordinator learns that the learning rate must change, and not the batch, which tells about sequences."""
    reply = train_reply(
        both[0], run_spec_of(domain, hyperparameters=Hyperparameters(learning_rate=1e300, batch_size=4))
    )
    assert reason(reply) == "the training diverged, or its data do not fit: lower the learning rate"
    assert "in epoch 1, batch 2: lower the learning rate" in caplog.text


def test_a_site_describes_itself(north: Node, dataset: EncryptedDataset, domain: KeyDomain):
    """The coordinator receives the dataset's shape, classes and counts by split."""
    with north.beside_vault():
        reply = north.described()
    proved = Proof.from_json(str(reply.config_records[messages.PROOF]["proof"]))
    proved.require(replace(run_of(domain.card(), NONCE), coordinator=CoordinatorNames.only(SIMULATED)))
    assert (proved.statement.dataset, proved.statement.bundle) == (dataset.manifest.fingerprint, NO_BUNDLE)
    fingerprint = domain.card().fingerprint
    counts = ((6, 2, 3), (6, 2, 3))
    expected = SiteDescription("north", fingerprint, 2, TINY.task, *counts)
    assert SiteDescription.from_mapping(reply.config_records[messages.SITE]) == expected


def test_a_site_whose_vault_serves_another_dataset_refuses(
    north: Node, dataset: EncryptedDataset, domain: KeyDomain, plaintext: Plaintext, tmp_path: Path
):
    """A dataset of the same domain and shape, but with other labels, would be evaluated wrongly."""
    other = write_dataset(tmp_path / "other", domain, (plaintext[0], 1 - plaintext[1]))
    with replace(north, dataset=other).beside_vault():
        reply = north.described()
    assert reason(reply) == (
        f"its vault serves dataset {other.manifest.fingerprint[:16]}, its trainer reads "
        f"{dataset.manifest.fingerprint[:16]}: give both the same"
    )


def test_the_initial_state_is_for_the_sites_own_domain(both: list[Node], domain: KeyDomain):
    """A run of another domain gets none, even if a vault is there; a run of this domain gets one with all its facts."""
    run_spec = run_spec_of(domain, seed=3, dtype="float32", server_optimizer=ServerOptimizerConfig("fedadam", 0.1))
    foreign = content_of(domain, messages.InitialRequest(varied(run_spec, domain=OTHER)))
    assert reason(both[0].send("query.initial_weights", foreign)).startswith("this site belongs to domain")
    first, second, other = (
        state_in(node.reply_to(messages.InitialRequest(p)))
        for node, p in zip((*both, both[0]), (run_spec, run_spec, varied(run_spec, seed=4)), strict=True)
    )
    assert {state.salt for state in (first, second, other)} == {first.salt, second.salt, other.salt} > {first.salt}
    assert replace(second, salt=first.salt) == first != replace(other, salt=first.salt)
    assert (first.round, first.network, first.dtype, first.rule) == (
        0,
        run_spec.network,
        run_spec.training.dtype,
        run_spec.server_optimizer,
    )
    assert (first.domain, first.classes, first.n) == (domain.card().fingerprint, ("no", "yes"), 2)
    assert not any(moment.any() for moment in first.moments.values())


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize(
    "network",
    [
        TINY.changed(gaps=True),
        *(TINY.changed(**{name: 16}) for name in ("frames", "height", "width", "channels")),
        TINY.changed(classes=("no", "yes", "both")),
    ],
)
def test_a_network_for_other_data_is_refused(north: Node, domain: KeyDomain, kind: str, network: ModelSpec):
    """What does not fit the dataset is neither built nor requested from the vault."""
    request = REQUESTS[kind](run_spec_of(domain, network=network))
    assert reason(north.reply_to(request, b"state")).startswith("the network is for ")


@pytest.mark.parametrize("gaps", ["public", "encrypted"])
def test_a_site_trains_with_gaps(gaps: Gaps, north: Node, domain: KeyDomain, plaintext: Plaintext, tmp_path: Path):
    """However the time between frames is kept, the site reports that it is, and trains the same network."""
    times = np.linspace(0, 1, 22).reshape(11, 2)
    node = north.use(write_dataset(tmp_path / "gaps", domain, plaintext, gaps=gaps, times=times))
    run_spec = run_spec_of(domain, network=TINY.changed(gaps=True))
    with node.beside_vault():
        assert SiteDescription.from_mapping(node.described().config_records[messages.SITE]).task.gaps
        assert update_in(train_reply(node, run_spec), run_spec).any()


def test_a_sealed_dataset_is_opened_with_the_key_beside_the_evaluation_key(
    north: Node, domain: KeyDomain, plaintext: Plaintext, tmp_path: Path
):
    """A site whose dataset is sealed at rest describes itself, and trains to the same update as without a seal."""
    run_spec = run_spec_of(domain)
    north.permit(secure_aggregation="optional")
    with north.beside_vault():
        unsealed = train_reply(north, run_spec)
    node = north.use(write_dataset(tmp_path / "sealed", domain, plaintext, sealed=True))
    node.permit(secure_aggregation="optional")
    domain.at_rest_key().save(north.folder / "domain.rest")
    with node.beside_vault():
        assert messages.SITE in node.described()
        reply = train_reply(node, run_spec)
    ours, theirs = (ring_of(run_spec).decode(update_in(content, run_spec), 6) for content in (reply, unsealed))
    np.testing.assert_allclose(ours, theirs, atol=1e-11)
    assert np.abs(theirs).max() > 1e-4


def test_damage_is_found_before_training_and_not_in_each_round(
    north: Node, dataset: EncryptedDataset, domain: KeyDomain
):
    """A flipped bit in a test sequence refuses the site's description; a round reads only what it trains on."""
    shard = dataset.path / "frames-00000.npy"
    with north.beside_vault():
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        assert reason(north.described()) == "its dataset cannot be read: its own log says why"
        assert messages.REFUSAL not in train_reply(north, run_spec_of(domain))


def test_the_vault_records_run_and_round(north: Node, domain: KeyDomain, tmp_path: Path):
    """Both come from Flower's message and the request, and are in its audit log; a tenth evaluation is refused."""
    run_spec = run_spec_of(domain)
    tested = messages.EvaluateRequest(run_spec, round=9)
    content = content_of(domain, tested, initial_state(domain, run_spec, number=8).to_bytes())
    log = AuditLog.open(tmp_path / "log", Signer.of(north.site.identity))
    with north.beside_vault(audit=log):
        for _ in range(9):
            assert messages.METRICS in north.send("evaluate", content)
        assert reason(north.send("evaluate", content)) == CLOSED
    log.close()
    _, *lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    scores = [line for line in lines if line["method"] == "Evaluate"]
    assert [(line["run"], line["round"], line["split"]) for line in scores] == [("1", 9, "test")] * 10


def test_a_request_out_of_bounds_is_refused(north: Node, domain: KeyDomain):
    """A site replies with the defect of a request, and does not start it."""
    run_spec = json.dumps({**json.loads(run_spec_of(domain).to_json()), "epochs": 10**6})
    record = ConfigRecord({**messages.TrainRequest(run_spec_of(domain), 1).to_record(), "run_spec": run_spec})
    reply = north.send("train", RecordDict({messages.CONFIG: record}))
    assert reason(reply) == (
        "the coordinator's request does not fit: epochs must be a whole number from 1 to 1000, got 1000000"
    )
    assert reason(north.send("evaluate", RecordDict())) == ("a message came without config: use one fedpp at all sites")


def test_a_ring_that_could_overflow_is_refused_before_training(both: list[Node], domain: KeyDomain):
    """A value that the ring cannot hold is reported at once: a training that diverges is not started."""
    hyperparameters = Hyperparameters(learning_rate=1e300, batch_size=4)
    run_spec = run_spec_of(
        domain, dtype="float32", max_update_value=2.0**20, examples=2**31, hyperparameters=hyperparameters
    )
    assert "does not fit 32 bits" in reason(train_reply(both[0], run_spec))


def test_a_state_that_does_not_fit_is_refused(both: list[Node], domain: KeyDomain):
    """Of another round, key, network, dtype or optimizer, or damaged: each is refused with its reason."""
    run_spec = run_spec_of(domain)
    state = initial_state(domain, run_spec)

    def refused(content: bytes) -> str:
        return reason(train_reply(both[0], run_spec, state=content))

    text = "the state in the message is of round 3, expected that of round 0"
    assert refused(replace(state, round=3).to_bytes()) == text
    for other in (
        replace(state, domain=OTHER),
        initial_state(domain, varied(run_spec, server_optimizer=ServerOptimizerConfig("fedavgm", 0.5))),
        initial_state(domain, varied(run_spec, dtype="float32")),
        initial_state(domain, varied(run_spec, network=TINY.changed(lstm=3))),
    ):
        text = "the state in the message is of another domain, network or server optimizer than the run"
        assert refused(other.to_bytes()) == text
    for content in (b"state", state.to_bytes()[:-1], state.to_bytes().replace(b"no", b"on")):
        assert refused(content).startswith("not a global state")


def test_a_state_of_other_slots_is_refused(both: list[Node], domain: KeyDomain):
    """A model of three slots is refused by a site of two."""
    run_spec = run_spec_of(domain)
    rows = encrypted_initial_weights(TINY, 0, KeyDomain.of_secret(bytes(range(32)), n=3).evaluation_key())
    facts = {
        "network": TINY,
        "domain": run_spec.domain,
        "dtype": run_spec.training.dtype,
        "rule": run_spec.server_optimizer,
    }
    wide = global_state.initial(rows, classes=("no", "yes"), salt="5a" * 32, **facts)
    assert reason(train_reply(both[0], run_spec, state=wide.to_bytes())) == (
        "weight conv0/kernel must have shape (3, 3, 1, 3, 2), got shape (3, 3, 1, 3, 3)"
    )


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        ("query.describe", {"datasets": (OTHER,)}, "this site's policy does not list its dataset {dataset:.16}"),
        ("train", {"datasets": (OTHER,)}, "this site's policy does not list its dataset {dataset:.16}"),
        ("train", {"requests": ("describe",)}, "this site's policy does not allow to answer 'train'"),
        ("evaluate", {"requests": ("describe", "train")}, "this site's policy does not allow to answer 'evaluate'"),
        ("query.accept", {"requests": ("evaluate", "train")}, "this site's policy does not allow to answer 'accept'"),
        ("query.initial_weights", {"requests": ()}, "this site's policy does not allow to answer 'initial-weights'"),
        ("query.describe", {"until": date(2026, 1, 31)}, "this site's policy ended with 2026-01-31"),
        ("evaluate", {"until": date(2026, 1, 31)}, "this site's policy ended with 2026-01-31"),
    ],
)
def test_the_policy_decides_which_requests_are_answered(
    kind: str, changes: dict[str, Any], text: str, north: Node, domain: KeyDomain
):
    """A dataset that is not listed, a request that is not allowed, and one after the last day are refused."""
    north.permit(**changes)
    with north.beside_vault():
        reply = north.described() if kind == "query.describe" else _requested(north, kind, run_spec_of(domain))
    assert reason(reply).startswith(text.format(dataset=north.dataset.manifest.fingerprint))


def _requested(node: Node, kind: str, run_spec: RunSpec) -> RecordDict:
    """Return the reply to a request that fits, of each kind about a network."""
    domain = node.site.domain
    return node.reply_to(REQUESTS[kind](run_spec), initial_state(domain, run_spec).to_bytes())


@pytest.mark.parametrize("kind", ["query.initial_weights", "train", "evaluate"])
def test_the_policy_decides_whether_secure_aggregation_is_optional(kind: str, north: Node, domain: KeyDomain):
    """Where it is required, no state and no update leave in clear, whatever the run specification says of it."""
    text = "this site's policy requires secure aggregation, and the run has it off: the site's staff decides"
    north.permit(secure_aggregation="required")
    masked = run_spec_of(domain, masked=True)
    with north.beside_vault():
        for run_spec in (run_spec_of(domain), masked):
            assert reason(_requested(north, kind, run_spec)) == text
        north.permit()
        assert messages.REFUSAL not in _requested(north, kind, run_spec_of(domain))
        assert reason(_requested(north, kind, masked)).startswith("a run with secure aggregation follows a contract")


def test_a_run_needs_as_many_members_as_the_policy_requires(north: Node, domain: KeyDomain):
    """So many other members must have proved themselves for this run, each of them once."""
    south, east = proof(domain, "south"), proof(domain, "east")
    north.permit(min_other_sites=2)
    run_spec = run_spec_of(domain)

    def refused(participants: Participants) -> str:
        return reason(train_reply(north, run_spec, participants=participants))

    with north.beside_vault():
        assert messages.REFUSAL not in train_reply(north, run_spec, participants=participants_of(domain, south, east))
        assert "wants 2 other sites in a run, got 1" in refused(participants_of(domain, south))
        for twice in ((south, south), (south, proof(domain, "centre")), (south, proof(domain, "south", 3))):
            assert "names one member twice" in refused(participants_of(domain, *twice))
        for other in ({"nonce": "0" * 64}, {"run": "2"}):
            assert "was replayed" in refused(participants_of(domain, south, proof(domain, "east", **other)))
        other_code = proof(domain, "east", bundle="e" * 64)
        assert "east runs app bundle eeeeeeeeeeeeeeee, the run is of" in refused(
            participants_of(domain, south, other_code)
        )
        earlier = proof(domain, "east", time=int(time.time()) - 15 * 86400)
        assert "the proof of east is of another time" in refused(participants_of(domain, south, earlier))
        stranger = proof(KeyDomain.of_secret(bytes(31) + b"\1", n=2), "east")
        assert "is for domain" in refused(participants_of(domain, south, stranger))
        assert "is without north: it did not join this run" in refused(Participants(NONCE, (south, east)))


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_without_participants_is_refused(kind: str, north: Node, domain: KeyDomain):
    """Without a list of participants nothing is drawn, trained on or evaluated."""
    run_spec = run_spec_of(domain)
    content = content_of(domain, REQUESTS[kind](run_spec), initial_state(domain, run_spec).to_bytes())
    del content[messages.PARTICIPANTS]
    with north.beside_vault():
        assert reason(north.send(kind, content)).startswith("a message came without participants")


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("dataset", "its dataset cannot be read: its own log says why"),
        ("damage", "its dataset cannot be read: its own log says why"),
        ("key", "its keys cannot be read: its own log says why"),
        ("at-rest key", "its keys cannot be read: its own log says why"),
        ("vault", CLOSED),
        ("settings", "its settings do not fit: its own log says which"),
        ("policy", "its settings do not fit: its own log says which"),
        ("defect", "it failed: its own log says where"),
    ],
)
def test_the_coordinator_learns_no_path(
    what: str,
    text: str,
    north: Node,
    domain: KeyDomain,
    plaintext: Plaintext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """What fails inside the hospital is reported by its kind; the whole line, with paths, is in the site's log."""
    monkeypatch.setattr("fedpp.vault_api.vault_connection.CONNECT_SECONDS", 0.2)
    if what == "dataset":
        (north.dataset.path / "manifest.json").unlink()
    elif what == "damage":
        next(north.dataset.path.glob("frames-*")).unlink()
    elif what == "key":
        (north.folder / "domain.eval").write_text("{}")
    elif what == "at-rest key":
        write_dataset(tmp_path / "sealed", domain, plaintext, sealed=True)
        north.context.node_config["dataset"] = str(tmp_path / "sealed")
    elif what == "policy":
        (north.folder / "site.yaml").write_text("bundles: []")
    elif what == "settings":
        north.context.node_config["vaults"] = str(tmp_path)
    elif what == "defect":
        north.context.node_config["partition-id"] = 0
        monkeypatch.setenv(SITES_FOLDER, str(tmp_path / "nowhere"))
    with caplog.at_level(logging.WARNING, "fedpp.site"):
        reply = north.described()
    assert reason(reply) == text
    (entry,) = [entry for entry in caplog.records if entry.name == "fedpp.site"]
    assert entry.getMessage().startswith("describe failed" if what == "defect" else "describe refused: ")
    secret = {"vault": "hospital-", "settings": "unknown 'vaults'", "defect": "nowhere/0.json"}.get(what, str(tmp_path))
    assert secret in caplog.text


def test_a_balanced_site_counts_its_own_labels(
    north: Node, tmp_path: Path, domain: KeyDomain, plaintext: Plaintext
) -> None:
    """It sends them with its update of round 1 alone, and balances its local baseline by them from round 2 on."""
    rare = np.where(np.arange(len(plaintext[1])) == 1, 1, 0)
    site, run_spec = (
        north.use(write_dataset(tmp_path / "rare", domain, (plaintext[0], rare))),
        run_spec_of(domain, positive_weight=0.0),
    )
    second = initial_state(domain, run_spec, number=1).to_bytes()
    with site.beside_vault():
        first = train_reply(site, run_spec)
        later = site.reply_to(messages.TrainRequest(run_spec, 2, labels=(5, 1)), second)
        baseline = site.reply_to(messages.LocalBaselineRequest(run_spec, 2))
    assert list(first.metric_records[messages.METRICS][messages.LABELS]) == [5, 1]
    assert set(later.metric_records[messages.METRICS]) == {messages.EXAMPLES}

    training, key = run_spec.training, domain.evaluation_key()
    rows = encrypted_initial_weights(run_spec.network, domain.initial_seed(training.seed), domain.computing_key())
    for number, weight in ((1, 1.0), (2, 5.0)):
        hyperparameters = replace(training.hyperparameters, positive_weight=weight)
        trainer = EncryptedTrainer(run_spec.network, key.algebra(), hyperparameters, training.dtype)
        trainer.model.run_eagerly = True
        trainer.load(rows)
        trainer.fit(site.dataset, epochs=training.epochs, seed=(training.seed, number))
        rows = trainer.rows()
    tested = site.dataset.indices("test")
    logits = encryption.decrypt(domain, trainer.logits(site.dataset, tested))
    assert dict(baseline[messages.METRICS]) == count(rare[tested], softmax(logits)).to_mapping()
