"""Federated averaging over real Flower records, admission, and replies that do not fit."""

import numpy as np
import pytest
from conftest import TINY
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from coordinator.admission import choose
from coordinator.app import network_of
from coordinator.strategy import EncryptedFedAvg, accept, average
from fedpp.config import RunConfig
from fedpp.errors import ConfigError, FederationError
from fedpp.keys import encryption
from fedpp.keys.domain import KeyDomain
from fedpp.protocol import wire
from fedpp.protocol.site import SiteDescription


@pytest.fixture(autouse=True)
def _in_a_run() -> None:
    """Tell Flower that messages are made inside a run, as its processes do."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


RUN = {
    "domain": "d" * 64,
    "out": "out",
    "sites": 2,
    "rounds": 1,
    "epochs": 1,
    "batch-size": 2,
    "learning-rate": 0.1,
    "seed": 0,
    "dtype": "float64",
    "filters": "3,4",
    "kernel": 3,
    "dense": 5,
    "lstm": 4,
    "wait-seconds": 1.0,
}


def site(name: str, domain: str = "d" * 64, **changes: object) -> SiteDescription:
    fields = {"frames": 2, "height": 8, "width": 8, "channels": 1, "classes": ("no", "yes")}
    counts = {"sequences": (3, 2, 1), "patients": (3, 2, 1)}
    return SiteDescription(name=name, domain=domain, **{**fields, **counts, **changes})


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
            encryption.encrypt_weights(
                domain, p, [{n: generator.normal(size=v.shape) for n, v in p.items()}], "float64"
            ),
        )
        for k, p in zip(examples, plain, strict=True)
    ]
    averaged = average(updates)
    for name in ("a", "b"):
        expected = np.zeros_like(plain[0][name])
        for k, p in zip(examples, plain, strict=True):
            expected += k * p[name]
        np.testing.assert_allclose(encryption.decrypt(domain, averaged[name]), expected / 12, atol=1e-13)


SHAPES = {"w": ((2, 2), "float64")}


@pytest.mark.parametrize(
    ("rows", "examples", "reason"),
    [
        ({"w": np.full((2, 2), np.nan)}, 3, "not finite"),
        ({"w": np.zeros((1,))}, 3, "other names, shapes"),
        ({"w": np.zeros((2, 2), "float32")}, 3, "other names, shapes"),
        ({"v": np.zeros((2, 2))}, 3, "other names, shapes"),
        ({"w": np.zeros((2, 2))}, 10**12, "announced 3"),
    ],
)
def test_an_update_that_does_not_fit_is_refused(rows: dict[str, np.ndarray], examples: int, reason: str):
    """NaN, another shape, dtype or name, and an inflated number of examples are refused with the reason."""
    with pytest.raises(FederationError, match=reason):
        accept(reply(update(rows, examples)), site("a"), SHAPES)


def test_a_fitting_update_is_accepted_and_a_refusal_carries_its_reason():
    """A good update comes back as it is; a site's refusal becomes the error's text."""
    rows = {"w": np.arange(4.0).reshape(2, 2)}
    examples, accepted = accept(reply(update(rows)), site("a"), SHAPES)
    assert examples == 3
    np.testing.assert_array_equal(accepted["w"], rows["w"])
    refusal = RecordDict({wire.REFUSAL: ConfigRecord({"reason": "no vault answers"})})
    with pytest.raises(FederationError, match="no vault answers"):
        accept(reply(refusal), site("a"), SHAPES)


def test_admission_takes_the_runs_domain_only():
    """A site of another domain, with another task, without data or under a taken name is refused, and told why."""
    described = {
        1: site("c"),
        2: site("a"),
        3: site("b", domain="e" * 64),
        4: site("d", frames=9),
        5: site("f", sequences=(0, 1, 1)),
        6: site("c"),
    }
    admission = choose(described, {"node 9": "asleep"}, RunConfig.from_mapping(RUN))
    assert [s.name for s in admission.sites.values()] == ["a", "c"]
    assert "different keys cannot be averaged" in admission.refused["b"]
    assert "its task" in admission.refused["d"]
    assert "no sequence" in admission.refused["f"]
    assert "under this name" in admission.refused["c (node 6)"]
    assert admission.refused["node 9"] == "asleep"
    assert network_of(admission, RunConfig.from_mapping(RUN)) == TINY


def test_a_round_without_an_accepted_update_ends_the_run():
    """When no reply fits, the strategy raises instead of going on with the old weights."""
    common = ("d" * 64, TINY, "float64")
    strategy = EncryptedFedAvg(
        {1: site("a")},
        wire.TrainRequest(*common, learning_rate=0.1, epochs=1, batch_size=2, seed=0, round=0),
        wire.EvaluateRequest(*common, batch_size=2, split="validation"),
    )
    messages = list(strategy.configure_train(3, ArrayRecord([np.zeros((2, 2))]), ConfigRecord(), None))
    assert [m.metadata.dst_node_id for m in messages] == [1]
    request = wire.TrainRequest.from_record(messages[0].content.config_records[wire.CONFIG])
    assert (request.round, request.network) == (3, TINY)
    with pytest.raises(FederationError, match="no site sent an update"):
        strategy.aggregate_train(3, [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"rounds": "ten"}, "rounds must be int"),
        ({"dtype": "float16"}, "float32 or float64"),
        ({"filters": "a,b"}, "filters must be numbers"),
        ({"learning-rte": 1.0}, "unknown learning-rte"),
    ],
)
def test_run_settings_are_checked(change: dict[str, object], reason: str):
    """Unknown names, wrong types and values out of range are ConfigErrors that name the setting."""
    with pytest.raises(ConfigError, match=reason):
        RunConfig.from_mapping({**RUN, **change})
