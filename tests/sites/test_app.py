"""The ClientApp, called with real messages, beside a real vault; and whole rounds of two sites, by hand."""

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, write_dataset
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, Metadata, RecordDict
from members import run_of
from vaults import serving

from fedpp.cipher.dataset import EncryptedDataset
from fedpp.keys import encryption
from fedpp.keys.domain import KeyDomain
from fedpp.keys.identity import SiteIdentity
from fedpp.keys.issuer import Issuer
from fedpp.keys.store import Site
from fedpp.learning import global_state
from fedpp.learning.global_state import GlobalState
from fedpp.learning.initial import encrypted_initial_weights
from fedpp.learning.training import EncryptedTrainer
from fedpp.masking.ring import Ring, Words
from fedpp.masking.rounds import Contribution, Round, Sum
from fedpp.network import Gaps, NetworkSpec
from fedpp.policy import SitePolicy
from fedpp.protocol import wire
from fedpp.protocol.membership import NO_BUNDLE, PROTOCOL, Proof, Statement
from fedpp.protocol.participants import Participants
from fedpp.protocol.site import SiteDescription
from fedpp.protocol.vault_client import VaultClient
from fedpp.recipe import Recipe, ServerRule
from sites.app import SITES_FOLDER, app
from sites.audit_log import AuditLog, Signer

NONCE = "ab" * 32
OTHER = KeyDomain.of_secret(bytes(31) + b"\1", n=2).card().fingerprint
NUMBERS = {"north": 0, "south": 1, "east": 2, "centre": 1}
CLOSED = "its vault does not answer, or refuses: its own log says why"
MASKED, CLEAR = True, False
BOTH = pytest.mark.parametrize("masked", [MASKED, CLEAR], ids=["masked", "clear"])
Plaintext = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Node:
    """A site's node: what the SuperNode tells its app, its dataset, and whose vault stands beside it."""

    context: Context
    dataset: EncryptedDataset
    site: Site
    folder: Path

    def ask(self, kind: str, content: RecordDict) -> RecordDict:
        metadata = Metadata(1, "question", 0, 1, "", "", 0.0, 60.0, kind)
        return app(Message(content=content, metadata=metadata), self.context).content

    def permit(self, **changes: Any) -> None:
        """Let the site's policy list its dataset, and say what else differs from the default."""
        dataset = EncryptedDataset.open(Path(str(self.context.node_config["dataset"])), self.site.domain.at_rest_key())
        policy = replace(SitePolicy((), (dataset.manifest.fingerprint,)), **changes)
        (self.folder / "site.yaml").write_text(policy.to_yaml())

    def use(self, dataset: EncryptedDataset) -> "Node":
        """Return this node with another dataset."""
        self.context.node_config["dataset"] = str(dataset.path)
        self.permit()
        return replace(self, dataset=dataset)

    @contextmanager
    def beside_vault(self, **options: Any) -> Iterator["Node"]:
        address = str(self.context.node_config["vault"])
        with serving(self.site.domain, self.dataset, address, site=self.site, **options):
            yield self

    def described(self) -> RecordDict:
        """Return the answer to what every run asks first."""
        question = wire.DescribeRequest(NONCE, PROTOCOL).to_record()
        return self.ask("query.describe", RecordDict({wire.CONFIG: question}))


def site_of(domain: KeyDomain, name: str) -> Site:
    identity = SiteIdentity(name, bytes([NUMBERS[name]] * 32))
    return Site(domain, identity, Issuer(domain.certifying_seed()).certify(identity.recipient(), domain.card()))


def node(folder: Path, sockets: str, dataset: EncryptedDataset, domain: KeyDomain, name: str) -> Node:
    folder.mkdir(exist_ok=True)
    domain.evaluation_key().save(folder / "domain.eval")
    settings = {
        "dataset": str(dataset.path),
        "evaluation-key": str(folder / "domain.eval"),
        "vault": f"unix:{sockets}/{name}.sock",
        "policy": str(folder / "site.yaml"),
    }
    made = Node(Context(1, 1, settings, RecordDict(), {}), dataset, site_of(domain, name), folder)
    made.permit()
    return made


@pytest.fixture
def sockets() -> Iterator[str]:
    """Return a folder whose path is short enough for a socket, and can be told from all else."""
    with tempfile.TemporaryDirectory(prefix="fedpp-hospital-") as folder:
        yield folder


@pytest.fixture
def north(tmp_path: Path, sockets: str, dataset: EncryptedDataset, domain: KeyDomain) -> Node:
    """Return a node whose vault does not run."""
    return node(tmp_path / "north", sockets, dataset, domain, "north")


@pytest.fixture
def both(north: Node, tmp_path: Path, sockets: str, domain: KeyDomain, plaintext: Plaintext) -> Iterator[list[Node]]:
    """Return two nodes of a domain, beside their vaults; either may run without masking, too."""
    lengths = (2, 2, 1, 2, 2, 2, 2, 2, 2, 2, 2)
    dataset = write_dataset(tmp_path / "southern", domain, (plaintext[0] * 0.7 + 0.1, plaintext[1]), lengths=lengths)
    south = node(tmp_path / "south", sockets, dataset, domain, "south")
    for each in (north, south):
        each.permit(masking="optional")
    with north.beside_vault(), south.beside_vault():
        yield [north, south]


def plan_of(domain: KeyDomain, **changes: Any) -> wire.Plan:
    """Return what a run of two sites of six training sequences says, with these changes."""
    values = {
        "domain": domain.card().fingerprint,
        "network": TINY,
        "dtype": "float64",
        "recipe": Recipe(batch_size=4),
        "rule": ServerRule(),
        "epochs": 1,
        "seed": 0,
        "masked": True,
        "examples": 12,
        "sites": 2,
        "bound": 8.0,
        "most_norm": 10.0,
        "most_loss_rise": 1.0,
    }
    return wire.Plan(**{**values, **changes})


def begun(domain: KeyDomain, plan: wire.Plan, *, seed: int = 0, number: int = 0) -> GlobalState:
    """Return a state of fresh weights of the plan's network, under the domain's key."""
    rows = encrypted_initial_weights(plan.network, seed, domain.evaluation_key())
    facts = {"network": plan.network, "domain": domain.card().fingerprint, "dtype": plan.dtype, "rule": plan.rule}
    return replace(global_state.initial(rows, classes=("no", "yes"), **facts), round=number)


def about(number: int, run: str = NONCE) -> str:
    return f'{{"kind":"state","round":{number},"run":"{run}"}}'


def sealed(domain: KeyDomain, state: GlobalState, said: str | None = None) -> bytes:
    return b"".join(domain.envelope().close(said or about(state.round), [state.to_bytes()]))


def sent(domain: KeyDomain, plan: wire.Plan, state: GlobalState) -> bytes:
    return sealed(domain, state) if plan.masked else state.to_bytes()


def state_in(answer: RecordDict, domain: KeyDomain, *, masked: bool) -> GlobalState:
    """Return the state that an answer holds, sealed about its round, or in clear."""
    content = wire.state_of(answer)
    if not masked:
        return GlobalState.from_bytes(content)
    said, opened = domain.envelope().open([content])
    state = GlobalState.from_bytes(b"".join(opened))
    assert said == about(state.round)
    return state


def proof(domain: KeyDomain, name: str, number: int | None = None, **change: Any) -> Proof:
    """Return what a member of this name signed now for run 1, its statement with these changes."""
    identity = SiteIdentity(name, bytes([NUMBERS[name] if number is None else number] * 32))
    statement = Statement(NONCE, "1", int(time.time()), PROTOCOL, domain.card().fingerprint, name, "d" * 64, NO_BUNDLE)
    statement = replace(statement, **change)
    certificate = Issuer(domain.certifying_seed()).certify(identity.recipient(), domain.card())
    return Proof(statement, identity.sign("statement", statement.content()), certificate)


def company(domain: KeyDomain, *others: Proof) -> Participants:
    """Return a run's participants: north, and others."""
    return Participants(NONCE, (proof(domain, "north"), *others))


def question(
    domain: KeyDomain,
    request: wire.Request,
    state: bytes | None = None,
    *,
    added: tuple[Sum, Words] | None = None,
    participants: Participants | None = None,
) -> RecordDict:
    """Return a message's content, of a run in which north and south take part."""
    given = participants or company(domain, proof(domain, "south"))
    content = RecordDict({wire.CONFIG: request.to_record(), wire.PARTICIPANTS: given.to_record()})
    arrays = {} if state is None else {wire.STATE: wire.pack_state(state)}
    if added is not None:
        total, words = added
        content[wire.SUM] = ConfigRecord({wire.SUM: total.to_json()})
        arrays[wire.WORDS] = Array(words)
    content[wire.ARRAYS] = ArrayRecord(arrays)
    return content


def trained(node: Node, plan: wire.Plan, *, state: bytes | None = None, **more: Any) -> RecordDict:
    """Return the answer to a first round, from fresh weights."""
    domain = node.site.domain
    state = sent(domain, plan, begun(domain, plan)) if state is None else state
    return node.ask("train", question(domain, wire.TrainRequest(plan, 1), state, **more))


def words_in(answer: RecordDict, plan: wire.Plan) -> Words:
    return wire.words_of(answer, 64 if plan.dtype == "float64" else 32, 2 * plan.network.parameters())


def ring_of(plan: wire.Plan) -> Ring:
    return Ring.of(plan.dtype, examples=plan.examples, sites=plan.sites, bound=plan.bound)


def added(answers: Mapping[str, RecordDict], plan: wire.Plan) -> tuple[Sum, Words]:
    """Return what a coordinator adds up."""
    parts, words = [], np.zeros(2 * plan.network.parameters(), ring_of(plan).dtype)
    for name, answer in answers.items():
        mask = wire.Mask.of(answer)
        examples = int(answer.metric_records[wire.METRICS][wire.EXAMPLES])
        parts.append((Contribution(name, mask.nonce, examples), mask.tag))
        words = words + words_in(answer, plan)
    return Sum.of(parts), words


def updates(
    nodes: Sequence[Node], plan: wire.Plan, state: bytes, number: int = 1, attempt: int = 1
) -> Mapping[str, RecordDict]:
    """Return what each site answers to a round."""
    request = wire.TrainRequest(plan, number, attempt)
    answers = {n.site.identity.name: n.ask("train", question(n.site.domain, request, state)) for n in nodes}
    assert not [reason(answer) for answer in answers.values() if wire.REFUSAL in answer]
    return answers


def judged(
    nodes: Sequence[Node], plan: wire.Plan, state: bytes, total: tuple[Sum, Words], number: int = 1, attempt: int = 1
) -> list[RecordDict]:
    """Return what each site answers to the sum of a round, its new state included."""
    request = wire.EvaluateRequest(plan, "validation", number, attempt, keep=True)
    return [n.ask("evaluate", question(n.site.domain, request, state, added=total)) for n in nodes]


def reason(answer: RecordDict) -> str:
    """Return the reason of a refusal, which must be all of the answer."""
    assert list(answer) == [wire.REFUSAL]
    return str(answer[wire.REFUSAL]["reason"])


def decrypted(domain: KeyDomain, state: GlobalState) -> dict[str, np.ndarray]:
    return {name: encryption.decrypt(domain, rows) for name, rows in state.rows.items()}


@BOTH
def test_a_site_trains_for_its_own_domain(both: list[Node], domain: KeyDomain, masked: bool):
    """The answer holds an update in words, what it says of them, and the number of training sequences; no more."""
    plan = plan_of(domain, masked=masked)
    answer = trained(both[0], plan)
    assert set(answer) == {wire.ARRAYS, wire.MASK, wire.METRICS}
    assert list(answer.array_records[wire.ARRAYS]) == [wire.WORDS]
    assert dict(answer.metric_records[wire.METRICS]) == {wire.EXAMPLES: 6}
    assert words_in(answer, plan).any()
    assert (wire.Mask.of(answer).tag != 0) is masked


def test_a_site_refuses_another_domains_run(north: Node, domain: KeyDomain):
    """Weights of another domain are not trained on, even if the coordinator sends them."""
    assert reason(trained(north, replace(plan_of(domain), domain=OTHER))).startswith(
        f"this site belongs to domain {domain.card().fingerprint[:16]}, the run to {OTHER[:16]}"
    )


@BOTH
def test_a_diverged_training_is_said_to_be_one(both: list[Node], domain: KeyDomain, masked: bool):
    """The coordinator learns why a site sends no weights: it is its learning rate that has to change."""
    answer = trained(both[0], plan_of(domain, masked=masked, recipe=Recipe(learning_rate=1e300, batch_size=4)))
    assert reason(answer).endswith("in epoch 1, batch 2: lower the learning rate")


def test_a_site_describes_itself(north: Node, dataset: EncryptedDataset, domain: KeyDomain):
    """The coordinator learns the dataset's shape, classes and counts by split."""
    with north.beside_vault():
        answer = north.described()
    proved = Proof.from_json(str(answer.config_records[wire.PROOF]["proof"]))
    proved.require(run_of(domain.card(), NONCE))
    assert (proved.statement.dataset, proved.statement.bundle) == (dataset.manifest.fingerprint, NO_BUNDLE)
    fingerprint = domain.card().fingerprint
    shape, counts = (2, 2, 8, 8, 1), ((6, 2, 3), (6, 2, 3))
    expected = SiteDescription("north", fingerprint, *shape, ("no", "yes"), False, "none", 0, *counts)
    assert SiteDescription.from_mapping(answer.config_records[wire.SITE]) == expected


def test_a_site_whose_vault_serves_another_dataset_refuses(
    north: Node, dataset: EncryptedDataset, domain: KeyDomain, plaintext: Plaintext, tmp_path: Path
):
    """A dataset of the same domain and shape, but with other labels, would be scored wrongly."""
    other = write_dataset(tmp_path / "other", domain, (plaintext[0], 1 - plaintext[1]))
    with replace(north, dataset=other).beside_vault():
        answer = north.described()
    assert reason(answer) == (
        f"its vault serves dataset {other.manifest.fingerprint[:16]}, its trainer reads "
        f"{dataset.manifest.fingerprint[:16]}: give both the same"
    )


@BOTH
def test_the_first_state_is_for_the_sites_own_domain(both: list[Node], domain: KeyDomain, masked: bool):
    """A run of another domain gets none, even if a vault answers; a run of this domain gets one of all its facts."""
    plan = plan_of(domain, masked=masked, seed=3, dtype="float32", rule=ServerRule("fedadam", 0.1))
    foreign = question(domain, wire.InitialRequest(replace(plan, domain=OTHER), ""))
    assert reason(both[0].ask("query.initial_weights", foreign)).startswith("this site belongs to domain")
    first, second, other = (
        state_in(node.ask("query.initial_weights", question(domain, wire.InitialRequest(p, ""))), domain, masked=masked)
        for node, p in zip((*both, both[0]), (plan, plan, replace(plan, seed=4)), strict=True)
    )
    assert first == second != other
    assert (first.round, first.network, first.dtype, first.rule) == (0, plan.network, plan.dtype, plan.rule)
    assert (first.domain, first.classes, first.n) == (domain.card().fingerprint, ("no", "yes"), 2)
    assert not any(moment.any() for moment in first.moments.values())


@pytest.mark.parametrize("kind", ["train", "evaluate", "query.initial_weights"])
@pytest.mark.parametrize(
    "network",
    [
        replace(TINY, gaps=True),
        *(replace(TINY, **{name: 16}) for name in ("frames", "height", "width", "channels", "classes")),
    ],
)
def test_a_network_for_other_data_is_refused(north: Node, domain: KeyDomain, kind: str, network: NetworkSpec):
    """What does not fit the dataset is not built, nor asked of the vault."""
    plan = plan_of(domain, network=network)
    request: wire.Request = {
        "train": wire.TrainRequest(plan, 1),
        "evaluate": wire.EvaluateRequest(plan, "test", 1),
        "query.initial_weights": wire.InitialRequest(plan, ""),
    }[kind]
    assert reason(north.ask(kind, question(domain, request, b"state"))).startswith("the network is for ")


@pytest.mark.parametrize("gaps", ["public", "encrypted"])
def test_a_site_trains_with_gaps(gaps: Gaps, north: Node, domain: KeyDomain, plaintext: Plaintext, tmp_path: Path):
    """Whichever way the time between frames is kept, the site says so and trains the same network."""
    times = np.linspace(0, 1, 22).reshape(11, 2)
    node = north.use(write_dataset(tmp_path / "gaps", domain, plaintext, gaps=gaps, times=times))
    plan = plan_of(domain, network=replace(TINY, gaps=True))
    with node.beside_vault():
        assert SiteDescription.from_mapping(node.described().config_records[wire.SITE]).gaps == gaps
        assert words_in(trained(node, plan), plan).any()


def test_a_sealed_dataset_is_opened_with_the_key_beside_the_evaluation_key(
    north: Node, domain: KeyDomain, plaintext: Plaintext, tmp_path: Path
):
    """A site whose dataset is sealed at rest describes itself, and trains to the same update as without a seal."""
    plan = plan_of(domain, masked=False)
    north.permit(masking="optional")
    with north.beside_vault():
        unsealed = trained(north, plan)
    node = north.use(write_dataset(tmp_path / "sealed", domain, plaintext, sealed=True))
    node.permit(masking="optional")
    domain.at_rest_key().save(north.folder / "domain.rest")
    with node.beside_vault():
        assert wire.SITE in node.described()
        answer = trained(node, plan)
    ours, theirs = (ring_of(plan).decode(words_in(content, plan), 6) for content in (answer, unsealed))
    np.testing.assert_allclose(ours, theirs, atol=1e-11)
    assert np.abs(theirs).max() > 1e-4


def test_damage_is_found_before_training_and_not_looked_for_in_each_round(
    north: Node, dataset: EncryptedDataset, domain: KeyDomain
):
    """A flipped bit in a test sequence refuses the site at its description; a round reads what it trains on."""
    shard = dataset.path / "frames-00000.npy"
    with north.beside_vault():
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        assert reason(north.described()) == "its dataset cannot be read: its own log says why"
        assert wire.REFUSAL not in trained(north, plan_of(domain))


def test_the_vault_learns_for_which_run_and_round_it_works(north: Node, domain: KeyDomain, tmp_path: Path):
    """Both come from Flower's message and the request, and stand in its audit log; a seventh score is refused."""
    plan = plan_of(domain)
    tested = wire.EvaluateRequest(plan, "test", round=9)
    content = question(domain, tested, sealed(domain, begun(domain, plan, number=8)))
    log = AuditLog.open(tmp_path / "log", Signer.of(north.site.identity))
    with north.beside_vault(audit=log):
        for _ in range(6):
            assert wire.METRICS in north.ask("evaluate", content)
        assert reason(north.ask("evaluate", content)) == CLOSED
        trained(north, plan)
    log.close()
    _, *lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    scores = [line for line in lines if line["method"] == "Score"]
    assert [(line["run"], line["round"], line["split"]) for line in scores] == [("1", 9, "test")] * 7
    (mask,) = (line for line in lines if line["method"] == "Mask")
    assert (mask["run"], mask["round"], mask["attempt"], mask["samples"]) == (NONCE, 1, 1, 6)
    assert {line["about"] for line in lines if line["method"] == "Open"} == {about(8), about(0)}


def test_a_request_out_of_bounds_is_refused(north: Node, domain: KeyDomain):
    """A site answers what is wrong with a request, and does not start it."""
    plan = json.dumps({**json.loads(plan_of(domain).to_json()), "epochs": 10**6})
    record = ConfigRecord({**wire.TrainRequest(plan_of(domain), 1).to_record(), "plan": plan})
    answer = north.ask("train", RecordDict({wire.CONFIG: record}))
    assert reason(answer) == (
        "the coordinator's request does not fit: epochs must be a whole number from 1 to 1000, got 1000000"
    )
    assert reason(north.ask("evaluate", RecordDict())) == ("a message came without config: use one fedpp at all sites")


def test_a_ring_that_could_overflow_is_refused_before_training(both: list[Node], domain: KeyDomain):
    """What no word can hold is told at once: training that diverges is not even begun."""
    recipe = Recipe(learning_rate=1e300, batch_size=4)
    plan = plan_of(domain, dtype="float32", bound=2.0**20, examples=2**31, recipe=recipe)
    assert "leave a ring of 32 bits" in reason(trained(both[0], plan))


@BOTH
def test_a_state_that_does_not_fit_is_refused(both: list[Node], domain: KeyDomain, masked: bool):
    """Of another round, key, network, dtype or optimizer, or damaged: each is refused with its reason."""
    plan = plan_of(domain, masked=masked)
    state = begun(domain, plan)

    def refused(content: bytes) -> str:
        given = b"".join(domain.envelope().close(about(0), [content])) if masked else content
        return reason(trained(both[0], plan, state=given))

    told = "the state that came is of round 3, due is that of round 0"
    assert refused(replace(state, round=3).to_bytes()) == told
    for other in (
        replace(state, domain=OTHER),
        begun(domain, replace(plan, rule=ServerRule("fedavgm", 0.5))),
        begun(domain, replace(plan, dtype="float32")),
        begun(domain, replace(plan, network=replace(TINY, lstm=3))),
    ):
        told = "the state that came is of another domain, network or server optimizer than the run"
        assert refused(other.to_bytes()) == told
    for content in (b"state", state.to_bytes()[:-1], state.to_bytes().replace(b"no", b"on")):
        assert refused(content).startswith("not a state of fedpp")


@BOTH
def test_a_state_of_other_slots_is_refused(both: list[Node], domain: KeyDomain, masked: bool):
    """A model of three slots is not one of this site's two."""
    plan = plan_of(domain, masked=masked)
    rows = encrypted_initial_weights(TINY, 0, KeyDomain.of_secret(bytes(range(32)), n=3).evaluation_key())
    facts = {"network": TINY, "domain": plan.domain, "dtype": plan.dtype, "rule": plan.rule}
    wide = global_state.initial(rows, classes=("no", "yes"), **facts)
    assert reason(trained(both[0], plan, state=sent(domain, plan, wide))) == (
        "weight conv0/kernel must have shape (3, 3, 1, 3, 2), got shape (3, 3, 1, 3, 3)"
    )


def test_a_sealed_state_is_of_this_run(both: list[Node], domain: KeyDomain):
    """A state of another run or round is sealed about that; one that is altered or in clear is not opened."""
    plan = plan_of(domain)
    state = begun(domain, plan)
    for said in (about(0, "0" * 64), about(1), "state"):
        told = reason(trained(both[0], plan, state=sealed(domain, state, said)))
        assert told == f"the coordinator sent a sealed state about {said}, due is {about(0)}"
    altered = bytearray(sealed(domain, state))
    altered[-1] ^= 1
    stranger = KeyDomain.of_secret(bytes(31) + b"\1", n=2)
    for content in (bytes(altered), sealed(stranger, state), state.to_bytes(), b""):
        if content:
            assert reason(trained(both[0], plan, state=content)) == CLOSED
        else:
            assert "came without a state" in reason(trained(both[0], plan, state=content))


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
    kind: str, changes: dict[str, Any], told: str, north: Node, domain: KeyDomain
):
    """A dataset that is not listed, a question that is not allowed and one after the last day are refused, and why."""
    north.permit(**changes)
    with north.beside_vault():
        answer = north.described() if kind == "query.describe" else _asked(north, kind, plan_of(domain))
    assert reason(answer).startswith(told.format(dataset=north.dataset.manifest.fingerprint))


def _asked(node: Node, kind: str, plan: wire.Plan) -> RecordDict:
    """Return the answer to a question that fits, of any kind about a network."""
    requests: Mapping[str, wire.Request] = {
        "query.initial_weights": wire.InitialRequest(plan, ""),
        "train": wire.TrainRequest(plan, 1),
        "evaluate": wire.EvaluateRequest(plan, "test", 1),
    }
    domain = node.site.domain
    return node.ask(kind, question(domain, requests[kind], sent(domain, plan, begun(domain, plan))))


@pytest.mark.parametrize("kind", ["query.initial_weights", "train", "evaluate"])
def test_the_policy_decides_whether_the_mask_may_be_off(kind: str, north: Node, domain: KeyDomain):
    """Where it is required, no state and no update leave in clear; where it is optional, both kinds of run do."""
    told = "this site's policy wants the domain mask, and the run has masking off: its staff decides"
    with north.beside_vault():
        assert reason(_asked(north, kind, plan_of(domain, masked=False))) == told
        assert wire.REFUSAL not in _asked(north, kind, plan_of(domain))
        north.permit(masking="optional")
        assert wire.REFUSAL not in _asked(north, kind, plan_of(domain, masked=False))
        assert wire.REFUSAL not in _asked(north, kind, plan_of(domain))


def test_a_run_needs_the_company_that_the_policy_wants(north: Node, domain: KeyDomain):
    """So many other members must have proved themselves for this run; who did not, or twice, does not count."""
    south, east = proof(domain, "south"), proof(domain, "east")
    north.permit(co_participants=2)
    plan = plan_of(domain)

    def refused(participants: Participants) -> str:
        return reason(trained(north, plan, participants=participants))

    with north.beside_vault():
        assert wire.REFUSAL not in trained(north, plan, participants=company(domain, south, east))
        assert "wants 2 other sites in a run, got 1" in refused(company(domain, south))
        for twice in ((south, south), (south, proof(domain, "centre")), (south, proof(domain, "south", 3))):
            assert "names one member twice" in refused(company(domain, *twice))
        for other in ({"nonce": "0" * 64}, {"run": "2"}):
            assert "was replayed" in refused(company(domain, south, proof(domain, "east", **other)))
        other_code = proof(domain, "east", bundle="e" * 64)
        assert "east runs app bundle eeeeeeeeeeeeeeee, the run is of" in refused(company(domain, south, other_code))
        earlier = proof(domain, "east", time=int(time.time()) - 15 * 86400)
        assert "the proof of east is of another time" in refused(company(domain, south, earlier))
        stranger = proof(KeyDomain.of_secret(bytes(31) + b"\1", n=2), "east")
        assert "is for domain" in refused(company(domain, south, stranger))
        assert "is without north: it did not join this run" in refused(Participants(NONCE, (south, east)))


@pytest.mark.parametrize("kind", ["query.initial_weights", "train", "evaluate"])
def test_a_question_without_participants_is_refused(kind: str, north: Node, domain: KeyDomain):
    """Weights that nobody says who else trains on are neither drawn, nor trained on, nor evaluated."""
    plan = plan_of(domain)
    requests: Mapping[str, wire.Request] = {
        "query.initial_weights": wire.InitialRequest(plan, ""),
        "train": wire.TrainRequest(plan, 1),
        "evaluate": wire.EvaluateRequest(plan, "test", 1),
    }
    content = question(domain, requests[kind], sealed(domain, begun(domain, plan)))
    del content[wire.PARTICIPANTS]
    with north.beside_vault():
        assert reason(north.ask(kind, content)).startswith("a message came without participants")


@pytest.mark.parametrize(
    ("what", "told"),
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
    told: str,
    north: Node,
    domain: KeyDomain,
    plaintext: Plaintext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """What fails inside the hospital is told by its kind; the whole line, paths included, stands in the site's log."""
    monkeypatch.setattr("fedpp.protocol.vault_client.CONNECT_SECONDS", 0.2)
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
        answer = north.described()
    assert reason(answer) == told
    (entry,) = [entry for entry in caplog.records if entry.name == "fedpp.site"]
    assert entry.getMessage().startswith("describe failed" if what == "defect" else "describe refused: ")
    secret = {"vault": "hospital-", "settings": "unknown vaults", "defect": "nowhere/0.json"}.get(what, str(tmp_path))
    assert secret in caplog.text


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_round_is_the_average_of_what_the_sites_train(both: list[Node], domain: KeyDomain, dtype: Any, masked: bool):
    """Both sites hold the same next state, to the bit: decrypted, what a loop over each site's own training says."""
    plan = plan_of(domain, masked=masked, dtype=dtype)
    north, south = both
    first = north.ask("query.initial_weights", question(domain, wire.InitialRequest(plan, "")))
    before = state_in(first, domain, masked=masked)
    content = wire.state_of(first)
    answers = judged(both, plan, content, added(updates(both, plan, content), plan))
    assert [wire.Verdict.of(answer).reason for answer in answers] == ["", ""]
    after, other = (state_in(answer, domain, masked=masked) for answer in answers)
    assert after == other
    assert {wire.Verdict.of(answer).digest for answer in answers} == {after.digest}
    assert (after.round, after.dtype) == (1, dtype)

    expected = decrypted(domain, before)
    trainer = EncryptedTrainer(TINY, domain.evaluation_key().algebra(), plan.recipe, dtype)
    for node in (north, south):
        trainer.load(before.rows)
        trainer.fit(node.dataset, epochs=1, seed=(0, 1))
        for name, rows in trainer.rows().items():
            start = encryption.decrypt(domain, before.rows[name])
            expected[name] = expected[name] + 6 / 12 * (encryption.decrypt(domain, rows) - start)
    resolution = max(2.0 ** -ring_of(plan).fraction, 1e-14)  # float64 itself is coarser than 64 bits
    found = decrypted(domain, after)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=20 * resolution)
    assert max(np.abs(found[name] - start).max() for name, start in decrypted(domain, before).items()) > 1e-4


def test_masked_answers_hold_nothing_of_the_rows(both: list[Node], domain: KeyDomain):
    """No value of a row, and no word of an update, stands in a sealed state or in masked words; in clear each does."""
    shown = {}
    for masked in (MASKED, CLEAR):
        plan = plan_of(domain, masked=masked)
        first = both[0].ask("query.initial_weights", question(domain, wire.InitialRequest(plan, "")))
        state = wire.state_of(first)
        answers = updates(both, plan, state)
        after = wire.state_of(judged(both[:1], plan, state, added(answers, plan))[0])
        shown[masked] = (state, after, words_in(answers["north"], plan).tobytes())
    *states, words = shown[CLEAR]
    secrets = [np.concatenate([r.reshape(-1) for r in GlobalState.from_bytes(state).rows.values()]) for state in states]
    secrets.append(np.frombuffer(words, "<u8"))
    for hidden, clear, values in zip(shown[MASKED], shown[CLEAR], secrets, strict=True):
        pieces = {value.tobytes() for value in values} - {bytes(8)}
        assert len(pieces) > values.size // 2
        assert values.tobytes() in clear
        assert not [start for start in range(len(hidden) - 7) if hidden[start : start + 8] in pieces]


def test_the_mask_changes_nothing_of_the_model(both: list[Node], domain: KeyDomain):
    """The same updates, under masks and in clear, give the same next state, to the bit."""
    masked, clear = (plan_of(domain, masked=value) for value in (MASKED, CLEAR))
    state = begun(domain, clear)
    answers = updates(both, clear, state.to_bytes())
    of = Round(NONCE, 1, 1, state.digest, 2 * TINY.parameters(), ring_of(clear))
    parts, words = [], np.zeros(of.length, of.ring.dtype)
    for node in both:
        name = node.site.identity.name
        with VaultClient(str(node.context.node_config["vault"])) as vault:
            hidden, nonce, tag = vault.mask(of.to_json(), 6, words_in(answers[name], clear))
        parts.append((Contribution(name, nonce, 6), tag))
        words = words + hidden
    ours = judged(both, masked, sealed(domain, state), (Sum.of(parts), words))
    theirs = judged(both, clear, state.to_bytes(), added(answers, clear))
    for answer, other in zip(ours, theirs, strict=True):
        assert state_in(answer, domain, masked=True) == state_in(other, domain, masked=False) != state


def test_a_sum_that_does_not_fit_is_refused(both: list[Node], domain: KeyDomain, caplog: pytest.LogCaptureFixture):
    """Of another attempt, altered, of other examples, of one site alone or of a stranger: no model comes of it."""
    plan = plan_of(domain)
    state = sealed(domain, begun(domain, plan))
    total, words = added(updates(both, plan, state), plan)
    second = added(updates(both, plan, state, attempt=2), plan)
    stranger = replace(total.parts[1], site="mallory")
    tampered = [
        (second, "does not fit its tag"),
        ((total, words ^ (np.arange(words.size) == 9)), "does not fit its tag"),
        ((replace(total, tag=total.tag + 1), words), "does not fit its tag"),
        (
            (replace(total, parts=(total.parts[0], replace(total.parts[1], examples=5))), words),
            "does not fit its tag",
        ),
        ((replace(total, parts=total.parts[:1]), words), "is of 1 sites, and the policy wants 2"),
        ((replace(total, parts=(total.parts[0], stranger)), words), "names mallory, which did not prove"),
        ((replace(total, parts=(*total.parts, total.parts[0])), words), "one update of each site"),
    ]
    for given, told in tampered:
        caplog.clear()
        for answer in judged(both, plan, state, given):
            assert reason(answer) == CLOSED
        logged = [entry.getMessage() for entry in caplog.records if entry.name == "fedpp.site"]
        assert [told in line for line in logged] == [True, True]
    assert [wire.VERDICT in answer for answer in judged(both, plan, state, (total, words))] == [True, True]


@BOTH
def test_a_sum_of_another_size_is_refused(both: list[Node], domain: KeyDomain, masked: bool):
    """Words of another number or width, examples beyond the plan's, and a list that is none are named."""
    plan = plan_of(domain, masked=masked)
    state = sent(domain, plan, begun(domain, plan))
    total, words = added(updates(both, plan, state), plan)
    for given in (words[:-1], np.append(words, words[:1]), words.astype("<u4")):
        (answer,) = judged(both[:1], plan, state, (total, given))
        assert reason(answer).startswith("its words are ")
    request = wire.EvaluateRequest(plan, "validation", 1)
    content = question(domain, request, state, added=(total, words))
    content[wire.SUM] = ConfigRecord({wire.SUM: total.to_json() + " "})
    assert reason(both[0].ask("evaluate", content)).startswith("the list of a sum's contributions is damaged")
    many = replace(total, parts=(total.parts[0], replace(total.parts[1], examples=7)))
    (answer,) = judged(both[:1], plan, state, (many, words))
    assert reason(answer) == (CLOSED if masked else "this round counts 1 to 12 examples, got 13")


@BOTH
def test_a_new_model_is_judged_on_the_validation_split(both: list[Node], domain: KeyDomain, masked: bool):
    """The loss that the next round is compared to is of no other split."""
    plan = plan_of(domain, masked=masked)
    state = sent(domain, plan, begun(domain, plan))
    total = added(updates(both, plan, state), plan)
    for split in ("train", "test"):
        answer = both[0].ask("evaluate", question(domain, wire.EvaluateRequest(plan, split, 1), state, added=total))
        assert reason(answer) == f"a new model is judged on split validation, the request names {split}"


def test_a_model_is_kept_where_it_is_asked_for(both: list[Node], domain: KeyDomain):
    """Without `keep` the answer holds counts and a verdict alone, with it the state, sealed about its round."""
    plan = plan_of(domain)
    state = sealed(domain, begun(domain, plan))
    total = added(updates(both, plan, state), plan)
    request = wire.EvaluateRequest(plan, "validation", 1)
    answer = both[0].ask("evaluate", question(domain, request, state, added=total))
    assert set(answer) == {wire.METRICS, wire.VERDICT}
    kept = both[0].ask("evaluate", question(domain, replace(request, keep=True), state, added=total))
    assert set(kept) == {wire.METRICS, wire.VERDICT, wire.ARRAYS}
    assert state_in(kept, domain, masked=True).digest == wire.Verdict.of(answer).digest


@BOTH
def test_a_state_that_this_site_did_not_compute_is_refused(both: list[Node], domain: KeyDomain, masked: bool):
    """Of a round that it computed itself a node takes that state alone, in the next round, a repeat and the test."""
    plan = plan_of(domain, masked=masked)
    state = sent(domain, plan, begun(domain, plan))
    (answer, _) = judged(both, plan, state, added(updates(both, plan, state), plan))
    after = state_in(answer, domain, masked=masked)
    other = sent(domain, plan, replace(begun(domain, plan, seed=1), round=1))
    requests: list[tuple[str, wire.Request]] = [
        ("train", wire.TrainRequest(plan, 2)),
        ("train", wire.TrainRequest(plan, 2, attempt=2)),
        ("evaluate", wire.EvaluateRequest(plan, "test", 2)),
    ]
    for kind, request in requests:
        told = reason(both[0].ask(kind, question(domain, request, other)))
        assert told.startswith("the state of round 1 is not the one that this site computed")
        assert wire.REFUSAL not in both[0].ask(kind, question(domain, request, sent(domain, plan, after)))
    later = updates(both, plan, wire.state_of(answer), 2)
    judged(both, plan, wire.state_of(answer), added(later, plan), 2)
    for kind, request in requests:  # round 2 was computed; round 1 is still what it was
        told = reason(both[0].ask(kind, question(domain, request, other)))
        assert told.startswith("the state of round 1 is not the one that this site computed")


@BOTH
def test_an_update_that_is_too_long_is_not_sent(both: list[Node], domain: KeyDomain, masked: bool):
    """Beyond the share of the model's norm, or a value beyond the bound, the site abstains and says why."""
    long = trained(both[0], plan_of(domain, masked=masked, most_norm=1e-6))
    assert reason(long).startswith("the update's Euclidean norm is ")
    assert "and 1e-06 times is the most" in reason(long)
    high = trained(both[0], plan_of(domain, masked=masked, bound=2.0**-20))
    assert reason(high).startswith("an update has a value of ")
    assert "9.53674e-07 is the bound" in reason(high)


@BOTH
def test_a_new_model_that_went_too_far_gets_a_verdict(both: list[Node], domain: KeyDomain, masked: bool):
    """A sum that takes the model beyond the share of its norm is scored, its state told, and not adopted."""
    plan = plan_of(domain, masked=masked)
    state = sent(domain, plan, begun(domain, plan))
    total = added(updates(both, plan, state), plan)
    strict = replace(plan, most_norm=1e-6)
    for answer in judged(both, strict, state, total):
        verdict = wire.Verdict.of(answer)
        assert verdict.reason.startswith("the update's Euclidean norm is ")
        assert verdict.digest == state_in(answer, domain, masked=masked).digest
        assert answer.metric_records[wire.METRICS]["examples"] == 2


@BOTH
def test_a_loss_that_rose_is_not_sent_and_not_adopted(both: list[Node], domain: KeyDomain, masked: bool):
    """From the second round on, in each attempt, a site's validation loss is compared to that of the round before."""
    plan = plan_of(domain, masked=masked)
    state = sent(domain, plan, begun(domain, plan))
    (answer, _) = judged(both, plan, state, added(updates(both, plan, state), plan))
    after = wire.state_of(answer)
    wild = {"recipe": Recipe(learning_rate=1.0, batch_size=4), "bound": 2.0**10, "most_norm": 1e6}
    strict, lax = (replace(plan, **wild, most_loss_rise=rise) for rise in (1e-9, 1e6))
    for attempt in (1, 2):
        for node in both:
            told = node.ask("train", question(domain, wire.TrainRequest(strict, 2, attempt), after))
            assert reason(told).startswith("the validation loss rose by ")
        total = added(updates(both, lax, after, 2, attempt), plan)
        for told in judged(both, strict, after, total, 2, attempt):
            verdict = wire.Verdict.of(told)
            assert verdict.reason.startswith("the validation loss rose by ")
            assert verdict.digest == state_in(told, domain, masked=masked).digest


def test_a_repeated_attempt_trains_with_another_seed(both: list[Node], domain: KeyDomain):
    """An attempt gives one update, a second another; the first attempt's is that of the run's seed and round alone."""
    plan = plan_of(domain, masked=False)
    before = begun(domain, plan)
    first, again, second = (
        words_in(updates(both[:1], plan, before.to_bytes(), attempt=attempt)["north"], plan) for attempt in (1, 1, 2)
    )
    scale = 6 * 2.0 ** ring_of(plan).fraction
    moved = [np.abs((one - other).view(np.int64)).max() / scale for one, other in ((first, again), (first, second))]
    assert moved[0] < 1e-11
    assert moved[1] > 1e-6


def kept(node: Node) -> dict[str, bytes]:
    folder = node.folder / "models"
    return {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}


@BOTH
def test_the_final_model_is_kept_where_the_site_says(both: list[Node], domain: KeyDomain, masked: bool):
    """The test after the last round leaves the state as it came, under the run's number; without the setting, none."""
    plan = plan_of(domain, masked=masked)
    content = sent(domain, plan, begun(domain, plan, number=3))
    for node, setting in zip(both, (True, False), strict=True):
        if setting:
            node.context.node_config["models"] = str(node.folder / "models")
        answer = node.ask("evaluate", question(domain, wire.EvaluateRequest(plan, "test", 4), content))
        assert set(answer) == {wire.METRICS}
        assert answer.metric_records[wire.METRICS]["examples"] == 3
    assert kept(both[0]) == {"1.state": content}
    assert kept(both[1]) == {}


@BOTH
def test_no_model_is_kept_of_a_round(both: list[Node], domain: KeyDomain, masked: bool):
    """A round's new state is not the run's model, and a state that is refused is not kept."""
    plan = plan_of(domain, masked=masked)
    both[0].context.node_config["models"] = str(both[0].folder / "models")
    state = sent(domain, plan, begun(domain, plan))
    judged(both, plan, state, added(updates(both, plan, state), plan))
    request = wire.EvaluateRequest(plan, "test", 4)
    assert wire.REFUSAL in both[0].ask("evaluate", question(domain, request, state))
    assert kept(both[0]) == {}


@BOTH
@pytest.mark.parametrize("model", ["clear", "sealed"])
def test_a_run_goes_on_from_a_model(both: list[Node], domain: KeyDomain, model: str, masked: bool):
    """The first state has the model's rows, in clear or sealed about whatever it was, the run's rule, and round 0."""
    plan = plan_of(domain, masked=masked, rule=ServerRule("fedavgm", 0.5))
    earlier = begun(domain, plan_of(domain), seed=9, number=7)
    content = earlier.to_bytes() if model == "clear" else sealed(domain, earlier, "the model of another run")
    answer = both[0].ask("query.initial_weights", question(domain, wire.InitialRequest(plan, model), content))
    state = state_in(answer, domain, masked=masked)
    assert (state.round, state.rule) == (0, plan.rule)
    for name, rows in earlier.rows.items():
        np.testing.assert_array_equal(state.rows[name], rows)
    assert all(not moment.any() for moment in state.moments.values())


@pytest.mark.parametrize("model", ["clear", "sealed"])
def test_a_model_that_does_not_fit_is_not_gone_on_from(both: list[Node], domain: KeyDomain, model: str):
    """Of another network, dtype, domain or classes, damaged, or missing: the reason says which."""
    plan = plan_of(domain)
    fitting = begun(domain, plan)
    told = "the model to go on from is of another domain, network or dtype than the run"
    others = {
        told: [
            begun(domain, replace(plan, network=replace(TINY, lstm=3))),
            begun(domain, replace(plan, dtype="float32")),
            replace(fitting, domain=OTHER),
        ],
        "the model to go on from tells yes, no: ingest alike": [replace(fitting, classes=("yes", "no"))],
    }

    def refused(content: bytes | None) -> str:
        request = wire.InitialRequest(plan, model)
        return reason(both[0].ask("query.initial_weights", question(domain, request, content)))

    for said, models in others.items():
        for other in models:
            assert refused(other.to_bytes() if model == "clear" else sealed(domain, other)) == said
    assert "came without a state" in refused(None)
    damaged = fitting.to_bytes()[:-1]
    if model == "clear":
        assert refused(damaged).startswith("not a state of fedpp")
    else:
        assert refused(damaged) == CLOSED


def test_a_model_is_sealed_as_the_request_says(both: list[Node], domain: KeyDomain):
    """A sealed model that is said to be in clear is no state: what it is does not depend on the masking."""
    plan = plan_of(domain)
    content = sealed(domain, begun(domain, plan))
    answer = both[0].ask("query.initial_weights", question(domain, wire.InitialRequest(plan, "clear"), content))
    assert reason(answer).startswith("not a state of fedpp")
