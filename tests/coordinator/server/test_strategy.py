"""Admission of sites, log lines, and checks of run settings."""

from pathlib import Path

import pytest
from conftest import TINY
from coordinator_runs import CARD, describe

from coordinator.server.admission import Admission, choose
from coordinator.server.app import run_spec_of
from coordinator.server.run_state import RunState
from fedpp.config.model_spec import ModelSpec
from fedpp.config.run_config import RunConfig
from fedpp.config.task import LABELS_NEEDED
from fedpp.errors import ConfigError

RUN = {
    "card": "{}",
    "out": "out",
    "initial-model": "",
    "sites": 2,
    "quorum": 0,
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
    "strategy": "",
    "strategy-settings": "",
    "seed": 0,
    "dtype": "float64",
    "architecture": "cnn-bi-lstm",
    "voting": False,
    "filters": "3,4",
    "kernel": 3,
    "dense": 5,
    "lstm": 4,
    "secure-aggregation": True,
    "max-examples": 0,
    "max-update-value": 8.0,
    "max-update-norm": 10.0,
    "max-loss-increase": 1.0,
    "local-baseline": False,
    "retries": 1,
    "wait-seconds": 1.0,
    "round-seconds": 1.0,
}


site = describe


def network_of(admission: Admission) -> ModelSpec:
    return run_spec_of(admission, RunConfig.from_mapping(RUN), CARD).network


def test_admission_takes_one_task_only():
    """A site of other rows or another task, without data or labels, or with a taken name is refused with the reason."""
    described = {
        1: site("c"),
        2: site("a"),
        3: site("b", n=3),
        4: site("d", frames=9),
        5: site("f", sequences=(0, 1, 1)),
        6: site("c"),
        7: site("0", classes=()),
        8: site("1", height=16),
        9: site("2", gaps=True),
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
    assert admission.refused["0"] == f"its dataset has no labels: {LABELS_NEEDED}"
    assert "no sequence" in admission.refused["f"]
    assert "its site joined already" in admission.refused["c (node 6)"]
    assert admission.refused["node 9"] == "asleep"
    assert network_of(admission) == TINY


def test_two_nodes_of_one_site_have_their_own_names():
    """Each refused node has its own reason, and none has the name of the admitted node of its site."""
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


def test_the_domain_determines_the_slots_of_a_row():
    """However many sites have another number than the card, they are refused, and the one that fits is admitted."""
    admission = choose({1: site("a", n=3), 2: site("b", n=3), 3: site("c", n=3), 4: site("d")}, {}, 2)
    assert [s.name for s in admission.sites.values()] == ["d"]
    assert admission.refused.keys() == {"a", "b", "c"}


def test_findings_train_with_findings_only():
    """One finding is enough, and a site with as many classes has another task."""
    one = {"classes": ("Edema",), "multi_label": True}
    described = {1: site("a", **one), 2: site("b", **one), 3: site("c", classes=("Edema",)), 4: site("d")}
    admission = choose(described, {}, 2)
    assert [s.name for s in admission.sites.values()] == ["a", "b"]
    assert "has one class: ingest it with labels of two or more" in admission.refused["c"]
    assert "the others' are 2 frames of 8 x 8 x 1, without time gaps, 1 findings (Edema)" in admission.refused["d"]
    assert network_of(admission) == TINY.changed(**one)


def test_public_and_encrypted_gaps_train_together():
    """The model is the same for both, with time gaps; a site without them is refused."""
    described = {1: site("a", gaps=True), 2: site("b", gaps=True), 3: site("c")}
    admission = choose(described, {}, 2)
    assert [s.name for s in admission.sites.values()] == ["a", "b"]
    assert "without time gaps" in admission.refused["c"]
    assert network_of(admission) == TINY.changed(gaps=True)


def test_a_note_is_one_printable_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Whatever it quotes, a note neither forges another line nor controls the terminal; the log has it, too."""
    folder = RunState(tmp_path)
    folder.folder.mkdir()
    folder.note("refused a:\n\x1b[2Jadmitted b")
    assert capsys.readouterr().err == folder.log.read_text() == "refused a: [2Jadmitted b\n"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"rounds": "ten"}, "rounds must be a whole number"),
        ({"retries": -1}, "retries must be a whole number from 0 to 99, got -1"),
        ({"secure-aggregation": 1}, "secure-aggregation must be true or false"),
        ({"max-update-value": 0.0}, "max-update-value must be a finite number of at least 9"),
        ({"max-update-norm": float("inf")}, "max-update-norm must be a finite number above 0, got inf"),
        ({"max-loss-increase": -1.0}, "max-loss-increase must be a finite number above 0, got -1.0"),
        ({"dtype": "float16"}, "one of float32, float64"),
        ({"filters": "a,b"}, "filters must be a list of at least 1, each a whole number"),
        ({"learning-rte": 1.0}, "unknown 'learning-rte'"),
    ],
)
def test_run_settings_are_checked(change: dict[str, object], reason: str):
    """Unknown names, wrong types and values out of range are ConfigErrors that name the setting."""
    with pytest.raises(ConfigError, match=reason):
        RunConfig.from_mapping({**RUN, **change})
