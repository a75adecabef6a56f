"""Counts of training labels: what they are of, what they cannot be, and how they weigh the loss."""

import json
from typing import Any

import numpy as np
import pytest
from conftest import TINY

from fedpp.config.task import Task
from fedpp.errors import FederationError
from fedpp.learning.metrics import count, count_findings, presence
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import FindingCounts
from fedpp.protocol.label_counts import (
    MAX_WEIGHT,
    class_weights,
    described,
    of_counts,
    read_labels,
    require,
    size,
    total,
    with_labels,
)

THREE = TINY.task.changed(classes=("none", "some", "much"))
FINDINGS = TINY.task.changed(classes=("Edema", "Fracture"), multi_label=True)


def test_labels_are_counted_whatever_is_predicted():
    """Of classes each sequence counts once; of findings one that is unknown counts nowhere."""
    generator = np.random.default_rng(1)
    classes, states = generator.integers(0, 3, 40), generator.integers(-1, 2, (40, 2))
    for seed in range(2):
        scores = np.random.default_rng(seed).random((40, 3))
        counted = of_counts(count(classes, scores / scores.sum(axis=1, keepdims=True)))
        assert counted == tuple(int((classes == k).sum()) for k in range(3))
        found = of_counts(count_findings(states, presence(scores[:, :2])))
        assert found == tuple(int((states[:, k] == value).sum()) for k in range(2) for value in (0, 1))
    assert (len(counted), len(found)) == (size(THREE), size(FINDINGS))
    assert total([(1, 2, 3), (4, 0, 1)]) == (5, 2, 4)


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        (TINY.task, (30, 10), (1.0, 3.0)),
        (TINY.task, (10, 30), (1.0, 1 / 3)),
        (TINY.task, (40, 0), (1.0, 1.0)),  # a class that was never seen
        (TINY.task, (0, 40), (1.0, 1.0)),
        (TINY.task, (4000, 1), (1.0, MAX_WEIGHT)),
        (TINY.task, (1, 4000), (1.0, 1 / MAX_WEIGHT)),
        (THREE, (12, 3, 24), (1.0, 4.0, 0.5)),
        (FINDINGS, (30, 10, 5, 20), (3.0, 0.25)),
        (FINDINGS, (0, 10, 7, 0), (1.0, 1.0)),
    ],
)
def test_balanced_weights_make_up_for_rarity(task: Task, labels: tuple[int, ...], expected: tuple[float, ...]):
    """A weight is how many times rarer a class is than the first one, or a finding's presence than its absence."""
    assert class_weights(task, 0.0, labels) == expected
    assert class_weights(task, 0.0, None) == (1.0,) * len(task.classes)


@pytest.mark.parametrize("labels", [None, (30, 10, 1)])
def test_a_fixed_weight_does_not_look_at_labels(labels: Any):
    """It is that of all classes but the first, and of each finding."""
    assert class_weights(THREE, 2.5, labels) == (1.0, 2.5, 2.5)
    assert class_weights(FINDINGS, 2.5, labels) == (2.5, 2.5)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (THREE, [5, 5]),
        (THREE, [5, 5, 1, 1]),
        (THREE, [5, 5, 1]),
        (THREE, [5, 6, 2]),
        (THREE, [-1, 6, 7]),
        (THREE, [5, 5, 2.0]),
        (THREE, [5, 6, True]),
        (THREE, []),
        (FINDINGS, [6, 7, 0, 0]),
        (FINDINGS, [6, 6, 6]),
    ],
)
def test_counts_that_no_training_split_has_are_refused(task: Task, labels: list[Any]):
    """Of 12 sequences each has one class, and each finding at most one state."""
    with pytest.raises(FederationError, match="12 training sequences of . classes cannot be counted as "):
        require(labels, task, 12)


def test_counts_of_a_training_split_are_taken():
    """All sequences have a class; a finding may be unknown in some of them, or in all."""
    assert require([5, 6, 1], THREE, 12) == (5, 6, 1)
    assert require([6, 5, 0, 0], FINDINGS, 12) == (6, 5, 0, 0)


@pytest.mark.parametrize("counts", [Counts.zero(2), FindingCounts.zero(2)])
@pytest.mark.parametrize("labels", [None, (0, 3), (1, 2, 3, 4)])
def test_labels_come_back_beside_evaluation_counts(counts: Any, labels: Any):
    """Also through JSON; counts without labels are the mapping that they were before."""
    mapping = with_labels(counts, labels)
    assert read_labels(json.loads(json.dumps(mapping)), type(counts)) == (counts, labels)
    assert (mapping == counts.to_mapping()) == (labels is None)
    for wrong in ("ab", [1.0], 7, {"a": 1}, [True]):
        with pytest.raises(FederationError, match="labels are counted by whole numbers"):
            read_labels({**mapping, "labels": wrong}, type(counts))


def test_a_person_reads_counts_and_weights():
    """Names, counts and weights stand in one line."""
    assert described((30, 10), TINY.task) == "training labels no 30, yes 10; weights 1, 3 from round 2"
    assert described((30, 10, 5, 0), FINDINGS) == (
        "training labels Edema 10 of 40, Fracture 0 of 5; weights 3, 1 from round 2"
    )
