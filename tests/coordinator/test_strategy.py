"""Federated averaging over real Flower records, admission, and replies that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from coordinator.admission import choose
from coordinator.app import network_of
from coordinator.strategy import EncryptedFedAvg, accept_update, average, note
from fedpp.config import RunConfig
from fedpp.errors import ConfigError, FederationError
from fedpp.keys import encryption
from fedpp.keys.domain import KeyDomain
from fedpp.keys.encryption import SequenceCipher
from fedpp.protocol import wire
from fedpp.protocol.participants import Participants
from fedpp.protocol.site import SiteDescription
from fedpp.recipe import Recipe


@pytest.fixture(autouse=True)
def _in_a_run() -> None:
    """Tell Flower that messages are made inside a run, as its processes do."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


RUN = {
    "card": "{}",
    "out": "out",
    "initial": "",
    "sites": 2,
    "rounds": 1,
    "epochs": 1,
    "batch-size": 2,
    "micro-batch": 16,
    "learning-rate": 0.1,
    "positive-weight": 1.0,
    "label-smoothing": 0.0,
    "proximal": 0.0,
    "server-optimizer": "fedavg",
    "server-learning-rate": 1.0,
    "server-momentum": 0.9,
    "server-beta-2": 0.99,
    "server-tau": 0.001,
    "seed": 0,
    "dtype": "float64",
    "architecture": "cnn-bi-lstm",
    "voting": False,
    "filters": "3,4",
    "kernel": 3,
    "dense": 5,
    "lstm": 4,
    "wait-seconds": 1.0,
    "reply-seconds": 1.0,
}


def site(name: str, domain: str = "d" * 64, **changes: object) -> SiteDescription:
    fields = {"n": 2, "frames": 2, "height": 8, "width": 8, "channels": 1, "classes": ("no", "yes"), "gaps": "none"}
    form = {"multi_label": False, "patch": 0}
    counts = {"sequences": (3, 2, 1), "patients": (3, 2, 1)}
    return SiteDescription(name=name, domain=domain, **{**fields, **form, **counts, **changes})


def reply(content: RecordDict, node: int = 1) -> Message:
    question = Message(RecordDict(), dst_node_id=node, message_type="train")
    question.metadata.__dict__["_message_id"] = "question"
    return Message(content, reply_to=question)


def update(rows: dict[str, np.ndarray], examples: int = 3) -> RecordDict:
    return RecordDict({wire.ARRAYS: wire.pack_arrays(rows), wire.METRICS: MetricRecord({wire.EXAMPLES: examples})})


def test_average_commutes_with_decryption(domain: KeyDomain):
    """The average of encrypted weights decrypts to the weighted average of the weights, by a hand-written loop."""
    generator = np.random.default_rng(0)
    examples = (3, 1, 8)
    plain = [{"a": generator.normal(size=(2, 3)), "b": generator.normal(size=4)} for _ in examples]
    updates = [
        (
            k,
            {n: SequenceCipher(domain, "float64").frames("s", v) for n, v in p.items()},
        )
        for k, p in zip(examples, plain, strict=True)
    ]
    averaged = average(updates)
    for name in ("a", "b"):
        expected = np.zeros_like(plain[0][name])
        for k, p in zip(examples, plain, strict=True):
            expected += k * p[name]
        np.testing.assert_allclose(encryption.decrypt(domain, averaged[name]), expected / 12, atol=1e-13)


NOBODY = Participants("0" * 64, ())
COMMON = ("d" * 64, TINY, "float64")
TRAIN = wire.TrainRequest(*COMMON, recipe=Recipe(learning_rate=0.1, batch_size=2), epochs=1, seed=0, round=1)
ROWS = {spec.name: np.arange(2.0 * np.prod(spec.shape)).reshape(*spec.shape, 2) for spec in TINY.weights()}


@pytest.mark.parametrize(
    ("rows", "examples", "reason"),
    [
        ({**ROWS, "dense/bias": np.full((5, 2), np.nan)}, 3, "not finite"),
        ({**ROWS, "dense/bias": np.zeros((1,))}, 3, "other names, shapes"),
        ({**ROWS, "dense/bias": np.zeros((5, 3))}, 3, "other names, shapes"),
        ({**ROWS, "dense/bias": np.zeros((5, 2), "float32")}, 3, "other names, shapes"),
        ({**ROWS, "v": np.zeros((2, 2))}, 3, "other names, shapes"),
        (ROWS, 10**12, "announced 3"),
    ],
)
def test_an_update_that_does_not_fit_is_refused(rows: dict[str, np.ndarray], examples: int, reason: str):
    """NaN, another shape, dtype or name, and an inflated number of examples are refused with the reason."""
    with pytest.raises(FederationError, match=reason):
        accept_update(reply(update(rows, examples)), site("a"), TRAIN)


def test_a_fitting_update_is_accepted_and_a_refusal_carries_its_reason():
    """A good update comes back as it is; a site's refusal becomes the error's text."""
    examples, accepted = accept_update(reply(update(ROWS)), site("a"), TRAIN)
    assert examples == 3
    for name, value in ROWS.items():
        np.testing.assert_array_equal(accepted[name], value)
    refusal = RecordDict({wire.REFUSAL: ConfigRecord({"reason": "no vault answers"})})
    with pytest.raises(FederationError, match="no vault answers"):
        accept_update(reply(refusal), site("a"), TRAIN)


def test_admission_takes_one_task_only():
    """A site of other rows or another task, without data or labels, or under a taken name is refused, and told why."""
    described = {
        1: site("c"),
        2: site("a"),
        3: site("b", n=3),
        4: site("d", frames=9),
        5: site("f", sequences=(0, 1, 1)),
        6: site("c"),
        7: site("0", classes=()),
        8: site("1", height=16),
        9: site("2", gaps="public"),
    }
    admission = choose(described, {"node 9": "asleep"}, 2)
    assert [s.name for s in admission.sites.values()] == ["a", "c"]
    assert admission.refused["b"] == "its rows are of 3 slots, the domain's of 2: use one fedpp at all sites"
    for odd in ("1", "2", "d"):  # even if it is the first
        assert "ingest alike" in admission.refused[odd]
    assert admission.refused["2"] == (
        "its data are 2 frames of 8 x 8 x 1, with time gaps, 2 classes (no, yes); "
        "the others' are 2 frames of 8 x 8 x 1, without time gaps, 2 classes (no, yes): ingest alike"
    )
    assert "ingest it with labels" in admission.refused["0"]
    assert "no sequence" in admission.refused["f"]
    assert "its site joined already" in admission.refused["c (node 6)"]
    assert admission.refused["node 9"] == "asleep"
    assert network_of(admission, RunConfig.from_mapping(RUN)) == TINY


def test_two_nodes_of_one_site_are_told_apart():
    """Each node that is refused has its own reason, and none has the name of the node that takes part for its site."""
    described = {1: site("a", sequences=(0, 1, 1)), 2: site("a"), 3: site("b", n=3), 4: site("b", n=4), 5: site("c")}
    described |= {6: site("d", frames=9), 7: site("d")}
    admission = choose(described, {"a (node 8, not proved)": "replayed"}, 2)
    assert {node: s.name for node, s in admission.sites.items()} == {2: "a", 5: "c"}
    reasons = {
        "a (node 1)": "no sequence to train on",
        "a (node 8, not proved)": "replayed",
        "b (node 3)": "of 3 slots, the domain's of 2",
        "b (node 4)": "of 4 slots, the domain's of 2",
        "d (node 6)": "its data are 9 frames",
        "d (node 7)": "its site joined already",
    }
    assert admission.refused.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in admission.refused[name]


def test_the_domain_alone_says_how_many_slots_rows_have():
    """However many sites agree on another number than the card's, they are refused, and the one that fits is not."""
    admission = choose({1: site("a", n=3), 2: site("b", n=3), 3: site("c", n=3), 4: site("d")}, {}, 2)
    assert [s.name for s in admission.sites.values()] == ["d"]
    assert admission.refused.keys() == {"a", "b", "c"}


def test_findings_train_with_findings_alone():
    """One finding is enough, and a site of as many classes is another task."""
    one = {"classes": ("Edema",), "multi_label": True}
    described = {1: site("a", **one), 2: site("b", **one), 3: site("c", classes=("Edema",)), 4: site("d")}
    admission = choose(described, {}, 2)
    assert [s.name for s in admission.sites.values()] == ["a", "b"]
    assert "has 1 classes: ingest it with labels of two or more" in admission.refused["c"]
    assert "the others' are 2 frames of 8 x 8 x 1, without time gaps, 1 findings (Edema)" in admission.refused["d"]
    assert network_of(admission, RunConfig.from_mapping(RUN)) == replace(TINY, classes=1, multi_label=True)


def test_public_and_encrypted_gaps_train_together():
    """The network is the same for both, and takes the gaps; a site without them is refused."""
    described = {1: site("a", gaps="public"), 2: site("b", gaps="encrypted"), 3: site("c")}
    admission = choose(described, {}, 2)
    assert [s.name for s in admission.sites.values()] == ["a", "b"]
    assert "without time gaps" in admission.refused["c"]
    assert network_of(admission, RunConfig.from_mapping(RUN)) == replace(TINY, gaps=True)


def test_a_note_is_one_printable_line(capsys: pytest.CaptureFixture[str]):
    """Whatever it quotes, a note neither forges another line nor commands the terminal."""
    note("refused a:\n\x1b[2Jadmitted b")
    assert capsys.readouterr().err == "refused a: [2Jadmitted b\n"


def test_a_round_without_an_accepted_update_ends_the_run():
    """When no reply fits, the strategy raises instead of going on with the old weights."""
    strategy = EncryptedFedAvg(
        {1: site("a")}, TRAIN, wire.EvaluateRequest(*COMMON, Recipe(batch_size=2), split="validation", round=1), NOBODY
    )
    messages = list(strategy.configure_train(3, ArrayRecord([np.zeros((2, 2))]), ConfigRecord(), None))
    assert [m.metadata.dst_node_id for m in messages] == [1]
    request = wire.TrainRequest.from_record(messages[0].content.config_records[wire.CONFIG])
    assert (request.round, request.network) == (3, TINY)
    with pytest.raises(FederationError, match="round 3: update: no site sent one that fits"):
        strategy.aggregate_train(3, [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"rounds": "ten"}, "rounds must be int"),
        ({"dtype": "float16"}, "one of float32, float64"),
        ({"filters": "a,b"}, "filters must be numbers"),
        ({"learning-rte": 1.0}, "unknown learning-rte"),
    ],
)
def test_run_settings_are_checked(change: dict[str, object], reason: str):
    """Unknown names, wrong types and values out of range are ConfigErrors that name the setting."""
    with pytest.raises(ConfigError, match=reason):
        RunConfig.from_mapping({**RUN, **change})
