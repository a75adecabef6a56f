"""Repeated requests, as of a coordinator that resumed: real messages and vaults, and no second training."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from conftest import ROOT
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from run_specs import varied
from site_nodes import (
    NONCE,
    Node,
    accept_replies,
    aggregate_from,
    content_of,
    initial_state,
    proof,
    reason,
    run_spec_of,
    started,
    state_in,
)

from fedpp.aggregation.global_state import Rows
from fedpp.aggregation.ring import EncodedUpdate
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.protocol import messages
from fedpp.protocol.participants import Participants
from fedpp.protocol.run_spec import RunSpec
from fedpp.vault_api.vault_client import VaultClient
from sites.client import local_round
from sites.vault.audit.audit_log import AuditLog, Signer

NAMES = ("north", "south", "east")
SECONDS = 60.0
REQUESTED = """
import json, os, sys
from pathlib import Path
from flwr.app import Context, Message, Metadata, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from sites.client.app import app

folder, kind, run, settings = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
content = recorddict_from_proto(ProtoRecordDict.FromString((folder / "request").read_bytes()))
metadata = Metadata(run, "request", 0, 1, "", "", 0.0, 60.0, kind)
reply = app(Message(content=content, metadata=metadata), Context(run, 1, settings, RecordDict(), {})).content
(folder / "reply").write_bytes(recorddict_to_proto(reply).SerializeToString())
print("tensorflow" in sys.modules)
"""


def packed(reply: RecordDict) -> bytes:
    return recorddict_to_proto(reply).SerializeToString()


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """Return the list of the trainings in this process, which grows by one each time that an update is encoded."""
    made, honest = [], local_round.encoded

    def encoded(run_spec: RunSpec, update: Rows, examples: int) -> EncodedUpdate:
        made.append(run_spec)
        return honest(run_spec, update, examples)

    monkeypatch.setattr(local_round, "encoded", encoded)
    return made


def sent_to_new_process(node: Node, kind: str, content: RecordDict, run: int) -> RecordDict:
    """Return the reply of a new process in Flower's run of this number; it must not load TensorFlow."""
    (node.folder / "request").write_bytes(packed(content))
    given = (str(node.folder), kind, str(run), json.dumps(dict(node.context.node_config)))
    done = subprocess.run(
        [sys.executable, "-c", REQUESTED, *given], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == "False\n"
    return recorddict_from_proto(ProtoRecordDict.FromString((node.folder / "reply").read_bytes()))


def three_participants(domain: KeyDomain, run: int = 1) -> Participants:
    """Return three participants of the run with this number of Flower's."""
    return Participants(NONCE, tuple(proof(domain, name, run=str(run)) for name in NAMES))


@pytest.fixture
def log(north: Node, tmp_path: Path) -> Iterator[Path]:
    """Run north's vault, and return its audit log."""
    audit = AuditLog.open(tmp_path / "log", Signer.of(north.site.identity))
    with north.beside_vault(audit=audit):
        yield tmp_path / "log"
    audit.close()


def calls(log: Path, method: str) -> int:
    """Return the number of a vault's calls of this method."""
    return sum(json.loads(line).get("method") == method for line in log.read_text().splitlines())


def test_a_repeated_request_gets_the_same_bytes(
    north: Node, log: Path, domain: KeyDomain, trainings: list[RunSpec]
) -> None:
    """Here, and in a new process under another number of Flower's, which does not even load TensorFlow."""
    north.permit(secure_aggregation="optional")
    run_spec = run_spec_of(domain)
    state, request = initial_state(domain, run_spec).to_bytes(), messages.TrainRequest(run_spec, 1)
    first = north.reply_to(request, state, participants=three_participants(domain))
    assert packed(first) == packed(north.reply_to(request, state))
    assert len(trainings) == 1
    again = content_of(domain, request, state, participants=three_participants(domain, 2))
    assert packed(sent_to_new_process(north, "train", again, 2)) == packed(first)
    assert calls(log, "Info") == 3  # it is asked who takes part


@pytest.mark.usefixtures("log")
def test_another_request_is_trained_anew(north: Node, domain: KeyDomain, trainings: list[RunSpec]) -> None:
    """Another attempt, run specification, base state; and the first one again, now replaced."""
    run_spec = run_spec_of(domain)
    state = initial_state(domain, run_spec)
    first = (run_spec, state, 1)
    asked = [first, (run_spec, state, 2), (varied(run_spec, seed=1), state, 1)]
    asked += [(run_spec, initial_state(domain, run_spec, seed=1), 1), first]
    for number, (text, before, attempt) in enumerate(asked, 1):
        content = content_of(
            domain,
            messages.TrainRequest(text, 1, attempt),
            before.to_bytes(),
            participants=three_participants(domain),
        )
        reply = north.send("train", content)
        assert packed(north.send("train", content)) == packed(reply)
        assert len(trainings) == number


@pytest.mark.usefixtures("log")
def test_a_kept_reply_is_sent_for_allowed_requests_only(north: Node, domain: KeyDomain) -> None:
    """What was replied before is not replied to a request that the site would refuse at first."""
    run_spec, state = started(domain)
    content = content_of(domain, messages.TrainRequest(run_spec, 1), state)
    assert messages.REFUSAL not in north.send("train", content)
    assert reason(north.send("train", content, run=2)) == "the proof of north is for another run: it was replayed"
    north.permit(min_other_sites=2)
    assert (
        reason(north.send("train", content))
        == "this site's policy wants 2 other sites in a run, got 1: ask more to join"
    )


@pytest.mark.usefixtures("log")
def test_concurrent_requests_train_once(north: Node, domain: KeyDomain, trainings: list[RunSpec]) -> None:
    """The later ones wait for the first one's reply, and send it too."""
    run_spec, state = started(domain)
    content = content_of(domain, messages.TrainRequest(run_spec, 1), state)
    replies: list[bytes] = []
    asking = [Thread(target=lambda: replies.append(packed(north.send("train", content)))) for _ in range(3)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(SECONDS)
    assert len(replies) == 3
    assert (len(set(replies)), len(trainings)) == (1, 1)


@pytest.mark.usefixtures("log")
def test_an_update_that_cannot_be_kept_is_sent(north: Node, domain: KeyDomain, trainings: list[RunSpec]) -> None:
    """A repeated request costs another training, and nothing else; then it is kept."""
    run_spec, state = started(domain)
    content = content_of(domain, messages.TrainRequest(run_spec, 1), state)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (2 * 8 * run_spec.network.parameters(), most)
    )  # its words, and nothing more
    try:
        assert messages.REFUSAL not in north.send("train", content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    (folder,) = (north.folder / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == {"lock", "rounds", "turn"}
    second = north.send("train", content)
    assert packed(north.send("train", content)) == packed(second)
    assert len(trainings) == 2


def test_a_model_is_evaluated_once(north: Node, log: Path, south: Node, domain: KeyDomain) -> None:
    """The second time its counts and decision are the same, without an evaluation; the state comes if requested."""
    run_spec, state = started(domain)
    with south.beside_vault():
        total = aggregate_from([north, south], run_spec, state)
        request = messages.AcceptRequest(run_spec, 1)
        first, second = (north.reply_to(request, state, aggregate=total) for _ in range(2))
        (other,) = accept_replies([south], run_spec, state, total)
    assert set(first) == {messages.METRICS, messages.VERDICT}
    assert packed(first) == packed(second)
    (kept,) = accept_replies([north], run_spec, state, total)
    assert kept[messages.METRICS] == first[messages.METRICS]
    assert kept[messages.VERDICT] == first[messages.VERDICT]
    assert state_in(kept) == state_in(other)
    assert calls(log, "Evaluate") == 1


def test_a_local_baseline_is_trained_once(north: Node, log: Path, domain: KeyDomain) -> None:
    """From the run's fresh weights, on this site's data: a loop by hand gives the same; a repeat trains nothing."""
    run_spec = run_spec_of(domain, epochs=2)
    content = content_of(domain, messages.LocalBaselineRequest(run_spec, 2))
    reply = north.send("query.local_baseline", content)
    trainer = EncryptedTrainer(
        run_spec.network, domain.evaluation_key().algebra(), run_spec.training.hyperparameters, run_spec.training.dtype
    )
    trainer.model.run_eagerly = True  # for comparison to the site's traced steps
    rows = encrypted_initial_weights(
        run_spec.network, domain.initial_seed(run_spec.training.seed), domain.computing_key()
    )
    for number in (1, 2):
        trainer.load(rows)
        trainer.fit(north.dataset, epochs=2, seed=(run_spec.training.seed, number))
        rows = trainer.rows()
    with VaultClient(str(north.context.node_config["vault"])) as vault:
        logits = trainer.logits(north.dataset, north.dataset.indices("test"))
        assert dict(reply[messages.METRICS]) == vault.evaluate("test", logits, "9", 1).to_mapping()
    assert packed(sent_to_new_process(north, "query.local_baseline", content, 1)) == packed(reply)
    assert (calls(log, "InitialWeights"), calls(log, "Evaluate")) == (1, 2)  # one of them of the loop by hand
