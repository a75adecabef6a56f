"""A whole federation in clear over real Flower messages: replies that are invalid are excluded."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from coordinator_runs import CARD, LocalGrid, Site, answered, config, describe, identity_of, model_of, refusal
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from members import TOLD, proof, run_of

from coordinator.server.admission import Admission, Admissions
from coordinator.server.app import federate
from fedpp.aggregation.ring import Ring
from fedpp.aggregation.round_context import Round
from fedpp.config.run_config import RunConfig
from fedpp.config.task import LABELS_NEEDED
from fedpp.errors import FederationError, FedppError
from fedpp.keys.domain_ca import DomainCA
from fedpp.learning.metrics import count
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol import messages
from fedpp.protocol.counts import SCORE_BINS
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.membership import Proof
from fedpp.protocol.participants import Participants
from fedpp.protocol.run_record import FederationRecord
from fedpp.protocol.site_description import SiteDescription
from simulations.benchmarks.simulated_client import counted, findings

LENGTH = TINY.parameters() * 2
TRAINING = "labels"  # a field of requests to train alone


def admitted(grid: Grid, run: RunConfig) -> Admission:
    return Admissions(grid, run_of(CARD, "ab" * 32), CARD.n, partial(print, file=sys.stderr)).wait(run)


def metrics(counts: AnyCounts) -> RecordDict:
    return RecordDict({messages.METRICS: MetricRecord(counts.to_mapping())})


def altered(content: object = None, examples: int | None = None) -> Callable[[RecordDict], RecordDict]:
    """Return a change of an update: to these encoded values, or this number of examples."""

    def change(good: RecordDict) -> RecordDict:
        if content is not None:
            good[messages.ARRAYS] = ArrayRecord({messages.WORDS: content})
        if examples is not None:
            good[messages.METRICS] = MetricRecord({messages.EXAMPLES: examples})
        return good

    return change


def of_another(**changes: object) -> Callable[[RecordDict], RecordDict]:
    """Return a change of an update to one of another round, or of another domain."""

    def change(good: RecordDict) -> RecordDict:
        origin = dict(good[messages.ORIGIN])
        facts = {name: value for name, value in changes.items() if name != "domain"}
        of = replace(Round.from_json(origin["round"]), **facts).to_json()
        good[messages.ORIGIN] = ConfigRecord({"domain": changes.get("domain", origin["domain"]), "round": of})
        return good

    return change


def raw(data: bytes, shape: tuple[int, ...] = (LENGTH,), dtype: str = "uint64") -> Array:
    return Array(dtype, shape, "numpy.ndarray", data)


def header(shape: tuple[int, ...], dtype: str = "<u8") -> bytes:
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def without(name: str) -> Callable[[RecordDict], RecordDict]:
    return lambda good: RecordDict({key: value for key, value in good.items() if key != name})


NOTHING = {
    "a refusal without a reason": (refusal(), "gave no reason"),
    "a refusal that is no record of settings": (RecordDict({messages.REFUSAL: MetricRecord()}), "without refusal"),
    "a terminal's commands": (refusal(reason="a\x1b[2J\nb\u202e"), "excluded: a[2J b"),
    "silence": (None, "no reply in time"),
}
NO_STATE = NOTHING | {
    "nothing": (RecordDict(), "without arrays"),
    "words for a state": (
        RecordDict({messages.ARRAYS: ArrayRecord({messages.WORDS: Array(np.zeros(9, "<u8"))})}),
        "without a state",
    ),
    "numbers for a state": (
        RecordDict({messages.ARRAYS: ArrayRecord({messages.STATE: Array(np.zeros(9))})}),
        "its state are 'float64'",
    ),
}
NO_UPDATE = {
    "nothing": (RecordDict(), "without origin"),
    "no words": (without(messages.ARRAYS), "without arrays"),
    "another domain": (of_another(domain="e" * 64), "its update is of domain 'eeeeeeeeeeeeeeee' (or key epoch)"),
    "an earlier round": (of_another(number=0), "its update is of number 0, due is 1"),
    "a later attempt": (of_another(attempt=2), "its update is of attempt 2, due is 1"),
    "another run": (of_another(run="e" * 64), "its update is of run 'eeee"),
    "another plan": (of_another(run_spec="e" * 64), "its update is of run_spec 'eeee"),
    "another ring": (of_another(ring=Ring(64, 7, 2, 8.0)), "its update is of ring Ring"),
    "another length": (of_another(length=9), "its update is of length 9"),
    "no array's bytes": (altered(raw(b"no npy")), "do not fit their shape"),
    "80 TB": (altered(raw(header((10**13,)))), "do not fit their shape"),
    "80 TB, announced": (altered(raw(header((10**13,)), (10**13,))), "of shape (10000000000000,)"),
    "objects": (altered(raw(header((LENGTH,), "|O"))), "do not fit their shape"),
    "one word": (altered(Array(np.zeros(1, "<u8"))), "of shape (1,)"),
    "two axes": (altered(Array(np.zeros((LENGTH, 1), "<u8"))), f"of shape ({LENGTH}, 1)"),
    "narrow words": (altered(Array(np.zeros(LENGTH, "<u4"))), "are 'uint32'"),
    "floats": (altered(Array(np.full(LENGTH, np.nan))), "are 'float64'"),
    "no number of examples": (without(messages.METRICS), "without metrics"),
    "many examples": (altered(examples=10**12), "counts 1000000000000 examples, and by what it announced these are 3"),
}
THREE = count(np.zeros(2, int), np.full((2, 3), 1 / 3))
BILLION = replace(
    count(np.zeros(1, int), np.full((1, 2), 0.5)),
    examples=10**9,
    confusion=((10**9, 0), (0, 0)),
    negative_scores=(10**9,) + (0,) * (SCORE_BINS - 1),
)
NO_COUNTS = {
    "nothing": (RecordDict(), "without metrics"),
    "three classes": (metrics(THREE), "counts 2 examples of 3 classes and announced 2 of 2"),
    "a billion": (metrics(BILLION), "counts 1000000000 examples of 2 classes and announced 2 of 2"),
    "arrays as metrics": (RecordDict({messages.METRICS: ArrayRecord()}), "without metrics"),
    "silence": (None, "no reply in time"),
}
GOOD_COUNTS = metrics(count(np.zeros(2, int), np.full((2, 2), 0.5)))
NO_VERDICT = {
    "no verdict": (GOOD_COUNTS, "without verdict"),
    "no digest": (
        RecordDict({**GOOD_COUNTS, messages.VERDICT: ConfigRecord({"digest": "", "reason": ""})}),
        "its verdict does not fit",
    ),
}


def cases(kind: str, replies: Mapping[str, tuple[RecordDict | None, str]]) -> list[object]:
    return [pytest.param(kind, *reply, id=f"{kind}-{name}") for name, reply in replies.items()]


@pytest.mark.parametrize(
    ("kind", "reply", "reason"),
    [
        *cases("train", NOTHING),
        *cases("train", NO_UPDATE),
        *cases("query.accept", NO_COUNTS),
        *cases("query.accept", NO_VERDICT),
        *cases(
            "evaluate",
            {name: (reply, text.replace("announced 2", "announced 1")) for name, (reply, text) in NO_COUNTS.items()},
        ),
        *cases("query.initial_weights", NO_STATE),
    ],
)
def test_an_invalid_reply_ends_no_run(
    kind: str, reply: RecordDict | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An invalid reply of the first site is excluded in one line; the others complete the run."""
    bad, good = Site(describe("a"), {kind: reply}), Site(describe("b"))
    record = federate(LocalGrid([bad, good]), config(tmp_path))
    quarantined = kind == "train" and (reply, reason) in NO_UPDATE.values()
    # Two rounds, and the test; after an invalid update its site gets no more requests.
    expected = 1 if quarantined else {"train": 2, "query.accept": 2}.get(kind, 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if " of a excluded: " in line]
    assert [reason in line for line in lines] == [True] * expected, lines
    assert all(line.isprintable() for line in lines)
    assert FederationRecord.load(tmp_path / "federation.json") == record
    skipped = kind in {"train", "query.accept"} and reply is None  # a silent site is busy: its next request is deferred
    with_it = [kind != "train", kind != "train" and not skipped]
    assert [r.sites for r in record.rounds] == [("a", "b") if there else ("b",) for there in with_it]
    assert set(record.test) == ({"b"} if kind == "evaluate" or quarantined else {"a", "b"})
    assert list(record.quarantined) == (["a"] if quarantined else [])
    assert bad.asked.count("train") == (1 if quarantined or skipped else 2)
    excluded = {"train": [1, 1], "query.accept": [1, 1], "evaluate": [0, 1], "query.initial_weights": [0, 0]}[kind]
    assert [list(r.excluded) for r in record.rounds] == [["a"] * number for number in excluded]
    np.testing.assert_array_equal(model_of(tmp_path).rows["dense/bias"], np.full((5, 2), 2.0))


def test_every_request_for_counts_has_its_round(tmp_path: Path) -> None:
    """A vault limits evaluations by round: validation counts after each, test counts one round after the last."""
    site = Site(describe("a"))
    federate(LocalGrid([site, Site(describe("b"))]), config(tmp_path))
    assert site.scored == [("validation", 1), ("validation", 2), ("test", 3)]


def test_the_record_has_the_run_s_settings(tmp_path: Path) -> None:
    """It has all settings but the card, and no folder of the coordinator."""
    run = config(tmp_path, seed=3)
    record = federate(LocalGrid([Site(describe("a")), Site(describe("b"))]), run)
    assert (record.scheme, record.settings) == ("more", run.reported())
    text = (tmp_path / "federation.json").read_text()
    assert str(tmp_path) not in text
    assert CARD.ca_key not in text


NO_FINDINGS = {
    "one label": (metrics(count(np.zeros(2, int), np.full((2, 2), 0.5))), "counts of findings do not fit"),
    "three findings": (metrics(findings(2, 3)), "counts 2 examples of 3 findings and announced 2 of 2"),
    "more sequences": (metrics(findings(3)), "counts 3 examples of 2 findings and announced 2 of 2"),
    "nothing": (RecordDict(), "without metrics"),
}


@pytest.mark.parametrize(("reply", "reason"), NO_FINDINGS.values(), ids=NO_FINDINGS)
def test_findings_are_added_up_and_bad_replies_excluded(
    reply: RecordDict, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a multi-label run the counts of each finding are the sites' sum; an invalid reply is excluded."""
    shape = {"classes": ("Edema", "Fracture"), "multi_label": True}
    sites = [
        Site(describe("a", **shape), {"query.accept": reply, "evaluate": reply}),
        *(Site(describe(name, **shape)) for name in "bc"),
    ]
    record = federate(LocalGrid(sites), config(tmp_path, sites=3))
    assert record.network.task.multi_label
    assert FederationRecord.load(tmp_path / "federation.json") == record
    assert [r.validation for r in record.rounds] == [{"b": findings(2), "c": findings(2)}] * 2
    assert [r.together for r in record.rounds] == [findings(2) + findings(2)] * 2
    assert record.test == {"b": findings(1), "c": findings(1)}
    tested = record.test_counts()
    assert isinstance(tested, FindingCounts)
    assert [of_one.examples for of_one in tested.findings] == [2, 0]
    lines = [line for line in capsys.readouterr().err.splitlines() if " of a excluded: " in line]
    assert len(lines) == 3
    assert reason in lines[0]


def test_a_run_fails_in_one_line_if_no_site_sends_initial_weights(tmp_path: Path) -> None:
    """Each admitted site gets the request, in the order of their names, before the run fails."""
    bad = {"query.initial_weights": RecordDict()}
    sites = [Site(describe("b"), bad), Site(describe("a"), bad)]
    with pytest.raises(FederationError, match="no site sent initial weights: "):
        federate(LocalGrid(sites), config(tmp_path))
    assert [site.asked for site in sites] == [["query.describe", "query.initial_weights"]] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (RecordDict(), "without site"),
        (RecordDict({messages.SITE: MetricRecord({"name": 1})}), "without site"),
        (RecordDict({messages.SITE: ConfigRecord({"name": "x"})}), "missing domain, missing n, missing frames"),
        (RecordDict({messages.SITE: ConfigRecord({**describe("x").to_mapping(), "name": "x\x1b[2J"})}), r"x\x1b[2J"),
        (
            RecordDict({messages.SITE: ConfigRecord({**describe("x").to_mapping(), "sequences": [2**40, 1, 1]})}),
            "sequences",
        ),
        (refusal(reason="no\nvault"), "no vault"),
    ],
)
def test_a_node_without_a_description_is_refused(
    reply: RecordDict, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad description refuses its node alone, in one printable line."""
    grid = LocalGrid([Site(describe("a"), {"query.describe": reply}), Site(describe("b")), Site(describe("c"))])
    chosen = admitted(grid, config(tmp_path))
    assert [site.name for site in chosen.sites.values()] == ["b", "c"]
    assert reason in chosen.refused["node 1"]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refused node 1: ")]
    assert line.isprintable()


def test_the_run_waits_for_sites_of_its_domain(tmp_path: Path) -> None:
    """A site of another domain does not count: the run starts once one more of its own has joined."""
    sites = [Site(describe("x", domain="e" * 64)), Site(describe("a")), Site(describe("b"))]
    started = time.monotonic()
    chosen = admitted(LocalGrid(sites, joins={3: 3}), config(tmp_path, **{"wait-seconds": 60.0}))
    assert time.monotonic() - started < 30
    assert [site.name for site in chosen.sites.values()] == ["a", "b"]
    assert "different keys" in chosen.refused["x (node 1, not proved)"]
    assert [site.asked for site in sites] == [["query.describe"]] * 3


@pytest.mark.parametrize(
    ("sites", "line"),
    [
        ([describe("a")], "the run needs 2 sites, 1 connected within 1 s: check that every site has joined"),
        (
            [describe("a", classes=())],
            (
                "the run needs 2 sites, 1 connected within 1 s: check that every site has joined. "
                f"a: its dataset has no labels: {LABELS_NEEDED}"
            ),
        ),
        (
            [describe("a"), describe("b", sequences=(0, 1, 1))],
            "the run needs 2 sites and admitted 1. b: it has no sequence to train on: ingest more patients",
        ),
    ],
)
def test_too_few_sites_end_the_run_at_the_deadline(sites: list[SiteDescription], line: str, tmp_path: Path) -> None:
    """One line says how many connected, or which were refused and why."""
    with pytest.raises(FederationError) as raised:
        admitted(LocalGrid(map(Site, sites)), config(tmp_path, **{"wait-seconds": 0.6}))
    assert str(raised.value) == line


def test_a_slow_node_is_waited_for(tmp_path: Path) -> None:
    """A node that connected before enough sites were admitted is admitted, however quickly the others reply."""
    grid = LocalGrid([Site(describe(name)) for name in "abc"], delays={1: 5})
    chosen = admitted(grid, config(tmp_path, **{"wait-seconds": 60.0}))
    assert [site.name for site in chosen.sites.values()] == ["a", "b", "c"]


def test_a_silent_node_does_not_end_the_run(tmp_path: Path) -> None:
    """If enough sites are admitted, a node that never replies is waited for until the deadline only."""
    grid = LocalGrid([Site(describe("a"), {"query.describe": None}), Site(describe("b")), Site(describe("c"))])
    chosen = admitted(grid, config(tmp_path, **{"wait-seconds": 0.3}))
    assert [site.name for site in chosen.sites.values()] == ["b", "c"]


def test_the_first_reply_of_a_node_counts(tmp_path: Path) -> None:
    """A second reply to one request neither refuses an admitted site, nor is another site."""

    class Twice(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            pulled = super().pull_messages(message_ids)
            for reply in list(pulled):
                again = Message(RecordDict(), reply_to=Message(RecordDict(), dst_node_id=1, message_type="train"))
                again.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
                pulled.append(again)
            return pulled

    chosen = admitted(Twice([Site(describe(name)) for name in "ab"]), config(tmp_path))
    assert [site.name for site in chosen.sites.values()] == ["a", "b"]
    assert chosen.refused == {}


def self_certified(name: str, nonce: str) -> Proof:
    """Return a proof with a certificate that a member issued with a key of its own."""
    made = DomainCA(bytes([9] * 32)).certify(identity_of(name).request(), CARD)
    return replace(proof(identity_of(name), CARD, nonce), certificate=made)


@dataclass
class BadSite(Site):
    """A site with another proof of membership, for its name and a nonce, or none."""

    proves: Callable[[str, str], Proof] | None = None

    def answer(self, message: Message) -> RecordDict | None:
        if message.metadata.message_type != "query.describe":
            return super().answer(message)
        if self.proves is None:
            return RecordDict({messages.SITE: ConfigRecord(self.description.to_mapping())})
        nonce = messages.DescribeRequest.read(message.content).nonce
        return answered(self.description, self.proves(self.description.name, nonce).to_json())


@pytest.mark.parametrize(
    ("proves", "reason"),
    [
        (None, "a message came without proof"),
        (lambda _, nonce: proof(identity_of("b"), CARD, nonce), "it calls itself a, and its certificate is for b"),
        (lambda name, _: proof(identity_of(name), CARD, "0" * 64), "is for another run: it was replayed"),
        (
            lambda name, nonce: proof(identity_of(name), CARD, nonce, bundle="e" * 64),
            "a runs app bundle eeeeeeeeeeeeeeee, the run is of e3b0c44298fc1c14: run the same code everywhere",
        ),
        (self_certified, "the certificate of a was not made by domain"),
        (
            lambda name, nonce: proof(identity_of(name), CARD, nonce, coordinator=replace(TOLD, name="second.example")),
            "a knows the coordinator as second.example of authority cacacacacacacaca, and this run is of hub.exam",
        ),
    ],
    ids=["none", "another site's name", "replayed", "other code", "self-certified", "for another coordinator"],
)
def test_a_site_without_membership_is_refused_by_name(
    proves: Callable[[str, str], Proof] | None, reason: str, tmp_path: Path
) -> None:
    """Only members of the card's domain take part, each in its own name, for this run, with this bundle."""
    sites = [BadSite(describe("a"), proves=proves), Site(describe("b")), Site(describe("c"))]
    record = federate(LocalGrid(sites), config(tmp_path))
    assert [site.name for site in record.sites] == ["b", "c"]
    assert record.refused.keys() == {"a (node 1, not proved)"}
    assert reason in record.refused["a (node 1, not proved)"]
    assert record.datasets == dict.fromkeys("bc", "cd" * 32)
    assert sites[0].asked == []


def test_every_site_gets_the_participants(tmp_path: Path) -> None:
    """All requests but the first carry the proofs of all admitted sites, and of no other."""
    seen = []

    class Watching(Site):
        def answer(self, message: Message) -> RecordDict | None:
            if messages.PARTICIPANTS in message.content:
                record = messages.record(message.content, messages.PARTICIPANTS, ConfigRecord)
                given = Participants.from_record(record)
                others = given.others(self.description.name, run_of(CARD, given.nonce), datetime.now(UTC))
                seen.append((message.metadata.message_type, others))
            return super().answer(message)

    federate(LocalGrid([Watching(describe("a")), Site(describe("b")), BadSite(describe("c"))]), config(tmp_path))
    assert seen == [("query.initial_weights", 1), *[("train", 1), ("query.accept", 1)] * 2, ("evaluate", 1)]


def test_a_run_starts_from_an_initial_model(tmp_path: Path) -> None:
    """One of another model specification or dtype is refused at once."""
    sites, first = [Site(describe("a")), Site(describe("b"))], tmp_path / "first" / "model.npz"
    federate(LocalGrid(sites), config(tmp_path / "first"))
    federate(LocalGrid(sites), config(tmp_path / "second", initial_model=str(first)))
    np.testing.assert_array_equal(model_of(tmp_path / "second").rows["dense/bias"], 4.0)
    for change in ({"dtype": "float32"}, {"dense": 6}):
        with pytest.raises(FederationError, match="has another model specification or dtype"):
            federate(LocalGrid(sites), config(tmp_path / "third", initial_model=str(first), **change))
    assert [path.name for path in (tmp_path / "third").iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("folder.npz", "cannot read the model .*folder.npz: Is a directory"),
        ("missing.npz", "cannot read the model .*missing.npz: No such file or directory"),
        ("empty.npz", "empty.npz is not a model of fedpp"),
        ("other.npz", "the model belongs to domain eeee"),
    ],
)
def test_an_initial_model_is_read_before_the_first_request(name: str, line: str, tmp_path: Path) -> None:
    """A missing, unreadable or empty one, or one of another domain, ends the run in one line."""
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "empty.npz").touch()
    rows = {spec.name: np.zeros((*spec.shape, 2)) for spec in TINY.weights()}
    EncryptedModel(TINY, "e" * 64, ("no", "yes"), rows).save(tmp_path / "other.npz")
    site = Site(describe("a"))
    with pytest.raises(FedppError, match=line) as raised:
        federate(LocalGrid([site]), config(tmp_path / "out", initial_model=str(tmp_path / name), sites=1))
    assert str(raised.value).isprintable()
    assert site.asked == []


def test_a_run_in_clear_averages_the_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model is the weighted mean of the updates, by a hand-written loop; the log says what is seen."""
    steps = {"a": 0.25, "b": -0.125}
    sites = [Site(describe(name, sequences=(3 + 2 * (name == "b"), 2, 1)), step=steps[name]) for name in steps]
    record = federate(LocalGrid(sites), config(tmp_path))
    assert not record.masked
    assert "secure aggregation is OFF: this coordinator sees" in capsys.readouterr().err
    for values in model_of(tmp_path).rows.values():
        np.testing.assert_allclose(values, 2 * (3 * 0.25 - 5 * 0.125) / 8, rtol=1e-15)


def labelled(*labels: int) -> Callable[[RecordDict], RecordDict]:
    """Return a change of an update: with these counts of training labels."""

    def change(good: RecordDict) -> RecordDict:
        good[messages.METRICS][messages.LABELS] = list(labels)
        return good

    return change


def test_a_balanced_run_in_clear_sends_the_labels_of_round_one(tmp_path: Path) -> None:
    """The coordinator adds what the sites count in round 1, and each later request to train carries the sum."""
    counts = {"a": (1, 2), "b": (3, 0), "c": (2, 2), "d": ()}
    sites = [Site(describe(name), {"train": labelled(*labels)}) for name, labels in counts.items()]
    record = federate(LocalGrid(sites), config(tmp_path, sites=4, rounds=3, positive_weight=0.0))
    asked = [content for content in sites[0].seen if TRAINING in content[messages.CONFIG]]
    assert [messages.TrainRequest.read(content).labels for content in asked] == [(), (4, 2), (4, 2)]
    assert record.labels == (4, 2)
    assert FederationRecord.load(tmp_path / "federation.json") == record
    assert set(record.quarantined) == {"c", "d"}  # 3 training sequences have other labels
    assert "3 training sequences of 2 classes cannot be counted as [2, 2]" in record.quarantined["c"]
    assert "training labels no 4, yes 2; weights 1, 2 from round 2" in (tmp_path / "run" / "log").read_text()


def test_local_baselines_are_recorded(tmp_path: Path) -> None:
    """The record has their test counts; a site without one costs the run only the deadline."""
    instead = {"a": {}, "b": {"query.local_baseline": refusal(reason="its gate")}, "c": {"query.local_baseline": None}}
    sites = [Site(describe(name), replies) for name, replies in instead.items()]
    record = federate(LocalGrid(sites), config(tmp_path, sites=3, quorum=2, local_baseline=True))
    assert dict(record.local_baseline) == {"a": counted(describe("a"), 1)}
    assert FederationRecord.load(tmp_path / "federation.json") == record
    assert [site.asked[-1] for site in sites] == ["query.local_baseline"] * 3
    assert [set(of.sites) for of in record.rounds] == [{"a", "b", "c"}] * 2
