"""Nodes for tests of the ClientApp: real messages of runs in clear, a real vault, and a coordinator's computations."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, Metadata, RecordDict
from run_specs import RUN_SPEC, varied
from vaults import serving

from fedpp.aggregation import global_state
from fedpp.aggregation.global_state import GlobalState
from fedpp.aggregation.ring import EncodedUpdate
from fedpp.aggregation.round_context import Aggregate, Contribution, ring_of
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.config.site_policy import SitePolicy
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys import encryption
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.key_store import Site
from fedpp.keys.site_identity import SiteIdentity
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.protocol import messages
from fedpp.protocol.coordinator_identity import SIMULATED
from fedpp.protocol.membership import NO_BUNDLE, PROTOCOL, Proof, Statement
from fedpp.protocol.participants import Participants
from fedpp.protocol.run_spec import RunSpec
from sites.client.app import app

NONCE = "ab" * 32
OTHER = KeyDomain.of_secret(bytes(31) + b"\1", n=2).card().fingerprint
NUMBERS = {"north": 0, "south": 1, "east": 2, "centre": 1}
CLOSED = "its vault does not answer, or refuses: its own log says why"
KINDS: Mapping[type[messages.Request], str] = {
    messages.InitialRequest: "query.initial_weights",
    messages.TrainRequest: "train",
    messages.AcceptRequest: "query.accept",
    messages.EvaluateRequest: "evaluate",
    messages.LocalBaselineRequest: "query.local_baseline",
}
Plaintext = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Node:
    """A site's node: its settings, its dataset, and the site whose vault is beside it."""

    context: Context
    dataset: EncryptedDataset
    site: Site
    folder: Path

    def send(self, kind: str, content: RecordDict, run: int = 1) -> RecordDict:
        metadata = Metadata(run, "request", 0, 1, "", "", 0.0, 60.0, kind)
        return app(Message(content=content, metadata=metadata), self.context).content

    def reply_to(self, request: messages.Request, state: bytes | None = None, **more: Any) -> RecordDict:
        """Return the reply to a request, of a run of north and south unless `more` names other participants."""
        return self.send(KINDS[type(request)], content_of(self.site.domain, request, state, **more))

    def permit(self, **changes: Any) -> None:
        """Let the site's policy list its dataset, with these changes of the default."""
        dataset = EncryptedDataset.open(Path(str(self.context.node_config["dataset"])), self.site.domain.at_rest_key())
        usual = {"secure_aggregation": "optional"}  # runs in clear are allowed
        policy = replace(SitePolicy((), (dataset.manifest.fingerprint,)), **{**usual, **changes})
        (self.folder / "site.yaml").write_text(policy.to_yaml())

    def use(self, dataset: EncryptedDataset) -> "Node":
        """Return this node with another dataset."""
        self.context.node_config["dataset"] = str(dataset.path)
        self.permit()
        return replace(self, dataset=dataset)

    def forget(self) -> None:
        """Delete the site's reply cache: the next request is as of another run, though of the same nonce."""
        shutil.rmtree(self.folder / "runs")

    @contextmanager
    def beside_vault(self, **options: Any) -> Iterator["Node"]:
        address = str(self.context.node_config["vault"])
        with serving(self.site.domain, self.dataset, address, site=self.site, **options):
            yield self

    def described(self) -> RecordDict:
        """Return the reply to the first request of a run."""
        request = messages.DescribeRequest(NONCE, PROTOCOL).to_record()
        return self.send("query.describe", RecordDict({messages.CONFIG: request}))


def site_of(domain: KeyDomain, name: str) -> Site:
    identity = SiteIdentity(name, bytes([NUMBERS[name]] * 32))
    return Site(domain, identity, DomainCA(domain.ca_seed()).certify(identity.request(), domain.card()))


def node(folder: Path, sockets: str, dataset: EncryptedDataset, domain: KeyDomain, name: str) -> Node:
    folder.mkdir(exist_ok=True)
    if domain.scheme == "more":
        domain.evaluation_key().save(folder / "domain.eval")
    settings = {
        "dataset": str(dataset.path),
        "evaluation-key": str(folder / "domain.eval"),
        "vault": f"unix:{sockets}/{name}.sock",
        "policy": str(folder / "site.yaml"),
        "work": str(folder),
    }
    made = Node(Context(1, 1, settings, RecordDict(), {}), dataset, site_of(domain, name), folder)
    made.permit()
    return made


def run_spec_of(domain: KeyDomain, **changes: Any) -> RunSpec:
    """Return the run specification of two sites of six training sequences, with these changes."""
    usual = {
        "batch_size": 4,
        "learning_rate": 1e-3,
        "seed": 0,
        "examples": 12,
        "sites": 2,
        "max_examples": 0,
        "masked": False,
    }
    plain = varied(RUN_SPEC, domain=domain.card().fingerprint, server_optimizer=ServerOptimizerConfig(), **usual)
    return varied(plain, **changes)


def initial_state(domain: KeyDomain, run_spec: RunSpec, *, seed: int = 0, number: int = 0) -> GlobalState:
    """Return a state of fresh weights of the run's network, under the domain's key."""
    rows = encrypted_initial_weights(run_spec.network, seed, domain.computing_key())
    facts = {
        "network": run_spec.network,
        "domain": domain.card().fingerprint,
        "dtype": run_spec.training.dtype,
        "rule": run_spec.server_optimizer,
    }
    return replace(global_state.initial(rows, classes=("no", "yes"), salt="5a" * 32, **facts), round=number)


def started(domain: KeyDomain, **changes: Any) -> tuple[RunSpec, bytes]:
    """Return a run specification with these changes, and its initial state as it is sent."""
    run_spec = run_spec_of(domain, **changes)
    return run_spec, initial_state(domain, run_spec).to_bytes()


def state_in(reply: RecordDict) -> GlobalState:
    """Return the state in a reply."""
    return GlobalState.from_bytes(messages.state_of(reply))


def proof(domain: KeyDomain, name: str, number: int | None = None, **change: Any) -> Proof:
    """Return a fresh proof of a member of this name for run 1, its statement with these changes."""
    identity = SiteIdentity(name, bytes([NUMBERS[name] if number is None else number] * 32))
    facts = (PROTOCOL, domain.card().fingerprint, name, "d" * 64, NO_BUNDLE, SIMULATED)
    statement = Statement(NONCE, "1", int(time.time()), *facts)
    statement = replace(statement, **change)
    certificate = DomainCA(domain.ca_seed()).certify(identity.request(), domain.card())
    return Proof(statement, identity.sign("statement", statement.content()), certificate)


def participants_of(domain: KeyDomain, *others: Proof) -> Participants:
    """Return the participants north and others."""
    return Participants(NONCE, (proof(domain, "north"), *others))


def content_of(
    domain: KeyDomain,
    request: messages.Request,
    state: bytes | None = None,
    *,
    aggregate: tuple[Aggregate, EncodedUpdate] | None = None,
    participants: Participants | None = None,
) -> RecordDict:
    """Return a message's content, of a run of north and south."""
    given = participants or participants_of(domain, proof(domain, "south"))
    content = RecordDict({messages.CONFIG: request.to_record(), messages.PARTICIPANTS: given.to_record()})
    arrays = {} if state is None else {messages.STATE: messages.pack_state(state)}
    if aggregate is not None:
        total, values = aggregate
        content[messages.SUM] = ConfigRecord({messages.SUM: total.to_json()})
        arrays[messages.WORDS] = Array(values)
    content[messages.ARRAYS] = ArrayRecord(arrays)
    return content


def train_reply(node: Node, run_spec: RunSpec, *, state: bytes | None = None, **more: Any) -> RecordDict:
    """Return the reply to a first round, from fresh weights."""
    domain = node.site.domain
    state = initial_state(domain, run_spec).to_bytes() if state is None else state
    return node.reply_to(messages.TrainRequest(run_spec, 1), state, **more)


def update_in(reply: RecordDict, run_spec: RunSpec) -> EncodedUpdate:
    bits = 64 if run_spec.training.dtype == "float64" else 32
    return messages.words_of(reply, bits, 2 * run_spec.network.parameters())


def aggregate_of(replies: Mapping[str, RecordDict], run_spec: RunSpec) -> tuple[Aggregate, EncodedUpdate]:
    """Return the aggregate of the sites' updates, as a coordinator adds them up."""
    parts, values = [], np.zeros(2 * run_spec.network.parameters(), ring_of(run_spec).dtype)
    for name, reply in replies.items():
        examples = int(reply.metric_records[messages.METRICS][messages.EXAMPLES])
        parts.append(Contribution(name, examples))
        values = values + update_in(reply, run_spec)
    return Aggregate(tuple(parts)), values


def train_replies(
    nodes: Sequence[Node],
    run_spec: RunSpec,
    state: bytes | None,
    number: int = 1,
    attempt: int = 1,
    base: str = "",
    **more: Any,
) -> Mapping[str, RecordDict]:
    """Return each site's reply to a request to train."""
    request = messages.TrainRequest(run_spec, number, attempt, base)
    replies = {n.site.identity.name: n.reply_to(request, state, **more) for n in nodes}
    assert not [reason(reply) for reply in replies.values() if messages.REFUSAL in reply]
    return replies


def aggregate_from(
    nodes: Sequence[Node], run_spec: RunSpec, *arguments: Any, **more: Any
) -> tuple[Aggregate, EncodedUpdate]:
    """Return the aggregate of what the sites train; the arguments are those of `train_replies`."""
    return aggregate_of(train_replies(nodes, run_spec, *arguments, **more), run_spec)


def accept_replies(
    nodes: Sequence[Node],
    run_spec: RunSpec,
    state: bytes | None,
    total: tuple[Aggregate, EncodedUpdate],
    number: int = 1,
    attempt: int = 1,
    base: str = "",
    **more: Any,
) -> list[RecordDict]:
    """Return each site's reply to a round's aggregate, its new state included."""
    request = messages.AcceptRequest(run_spec, number, attempt, base, keep=True)
    return [n.reply_to(request, state, aggregate=total, **more) for n in nodes]


def reason(reply: RecordDict) -> str:
    """Return the reason of a refusal, which must be the whole reply."""
    assert list(reply) == [messages.REFUSAL]
    return str(reply[messages.REFUSAL]["reason"])


def decrypted(domain: KeyDomain, state: GlobalState) -> dict[str, np.ndarray]:
    return {name: encryption.decrypt(domain, rows) for name, rows in state.rows.items()}
