"""Assessments: figures of a test with counts, intervals, classes, matrix and remarks, as JSON and as lines."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from fedpp.config.task import Task
from fedpp.errors import FederationError
from fedpp.learning.assessment import Assessment, of_task, together
from fedpp.learning.exact_metrics import Predictions, exact_operating_point
from fedpp.learning.intervals import independent_examples, share
from fedpp.learning.metrics import count, count_findings, decisions, presence, softmax
from fedpp.texts import counted

CLASSES = ("well", "Covid", "Pneumonia")


@st.composite
def predictions(draw: st.DrawFn, classes: int = 3) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Draw true classes, probabilities and patients."""
    examples = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return (
        rng.integers(0, classes, examples),
        softmax(rng.normal(scale=2, size=(examples, classes))),
        rng.integers(0, draw(st.integers(1, 40)), examples),
    )


@given(predictions())
def test_each_class_is_counted_against_all_others(
    case: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]],
) -> None:
    """Of three classes each has the shares of a loop over examples; an AUC only from single predictions."""
    labels, p, patients = case
    binned = Assessment.of_counts(count(labels, p), CLASSES)
    exact = Predictions.of(labels, p, patients).assessment(CLASSES)
    predicted = p.argmax(axis=1)
    for number, name in enumerate(CLASSES):
        true, called = labels == number, predicted == number
        for figure, part, whole in (
            ("sensitivity", true & called, true),
            ("specificity", ~true & ~called, ~true),
            ("precision", true & called, called),
            ("npv", ~true & ~called, ~called),
        ):
            counted = (int(part.sum()), int(whole.sum()))
            for made in (binned.of_classes[name][figure], exact.of_classes[name][figure]):
                assert (made.part, made.whole) == counted
        pairs = [float(a > b) + 0.5 * float(a == b) for a in p[true, number] for b in p[~true, number]]
        assert exact.of_classes[name]["auc"].value == (pytest.approx(np.mean(pairs)) if pairs else None)
        assert "auc" not in binned.of_classes[name]
    assert exact.estimates["accuracy"].part == binned.estimates["accuracy"].part == int((predicted == labels).sum())
    values = {name: one.value for name, one in exact.estimates.items()}
    assert values == {name: v for name, v in exact.metrics.to_mapping().items() if name != "loss"}


@given(predictions(2))
def test_exact_intervals_are_by_patient(
    case: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]],
) -> None:
    """One example a patient gives Wilson's interval of the counts; several a patient that of fewer examples."""
    labels, p, patients = case
    alone, by_patient = (Predictions.of(labels, p, of).assessment(("a", "b")) for of in (None, patients))
    positive, found = labels > 0, p.argmax(axis=1) > 0
    made = alone.estimates["sensitivity"]
    if positive.any():
        expected = binomtest(int(found[positive].sum()), int(positive.sum())).proportion_ci(0.95, method="wilson")
        assert (made.low, made.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        fewer = independent_examples(found[positive], patients[positive])
        same = share(made.part, made.whole, fewer)
        assert by_patient.estimates["sensitivity"] == same
    for name, one in by_patient.estimates.items():
        other = alone.estimates[name]
        assert (one.value, one.part, one.whole) == (other.value, other.part, other.whole)
        if one.low is not None and one.high is not None and other.low is not None and other.high is not None:
            assert one.high - one.low >= other.high - other.low - 1e-9
    sizes = f"{counted(len(labels), 'sequence')} of {counted(len(np.unique(patients)), 'patient')}"
    assert by_patient.basis == f"single predictions: {sizes}; intervals are by patient"


def test_json_and_lines_say_the_same() -> None:
    """Both name the positive side, the counts, the intervals, the threshold and the remarks; JSON has no NaN."""
    rng = np.random.default_rng(0)
    labels = (np.arange(60) % 3 == 0).astype(int)
    tested = Predictions.of(labels, presence(3.0 * labels - 1.5 + rng.normal(size=60)))
    point = exact_operating_point(tested, tested, 0.9)
    assert point is not None
    assessed = tested.assessment(("no Edema", "Edema"), point=point)
    mapping = json.loads(json.dumps(assessed.to_mapping(), allow_nan=False))
    assert (mapping["positive"], mapping["negative"]) == ("Edema", "no Edema")
    assert mapping["confusion"]["classes"] == ["no Edema", "Edema"]
    assert mapping["confusion"]["matrix"] == [list(row) for row in tested.counts.confusion]
    assert (
        mapping["operating_point"]["decisions"]["found"]
        == mapping["operating_point"]["intervals"]["sensitivity"]["part"]
    )
    lines = assessed.lines()
    assert lines[0] == 'positive is "Edema" (20), negative is "no Edema" (40)'
    found = decisions(tested.counts).found
    limits = mapping["intervals"]["sensitivity"]
    said = f"{mapping['sensitivity']:.4f}  {limits['low']:.3f} to {limits['high']:.3f}  ({found} of 20)"
    assert f"  sensitivity      {said}" in lines
    heading = lines.index(point.heading)
    assert lines[heading + 1].startswith("  sensitivity ")
    assert lines[heading - 1] == ""
    assert "by_class" not in mapping


def test_remarks_stand_in_json_and_on_the_terminal() -> None:
    """A model that finds nothing is said in the same words in both."""
    counts = count([1] * 22 + [0] * 200, presence(np.array([*np.linspace(-4, -2, 22), *np.linspace(-9, -2, 200)])))
    assessed = Assessment.of_counts(counts, ("no Edema", "Edema"))
    (remark,) = assessed.remarks
    assert remark.startswith(
        'taking the most probable class, the model finds nothing: it found 0 of 22 "Edema"; it is right in 200 of 222'
    )
    assert assessed.to_mapping()["remarks"] == [remark]
    assert assessed.lines()[-1] == f"note: {remark}"


@pytest.mark.parametrize(
    ("patients", "said"),
    [
        (None, "all 2 sequences as independent, as if each were of another patient"),
        (2, "all 2 sequences as independent"),
        (1, "all 2 sequences as independent; the test has 1 patient, so the truth is less certain"),
    ],
)
def test_counts_say_that_they_know_no_patients(patients: int | None, said: str) -> None:
    """Figures of aggregated counts say that they are of bins, and of sequences taken as independent."""
    assessed = Assessment.of_counts(count([0, 1], presence(np.array([-1.0, 1.0]))), ("a", "b"), patients=patients)
    assert assessed.basis == f"aggregated counts: the AUC is of scores in 63 bins, and intervals take {said}"


def test_findings_are_assessed_one_by_one() -> None:
    """Each finding is named and has its known and present sequences; the figures of all are their means."""
    states = np.array([[1, -1], [0, 1], [1, 0], [0, 0]])
    logits = np.array([[2.0, 9.0], [-1.0, 0.5], [-0.5, -0.5], [-3.0, -2.0]])
    task = Task(1, 8, 8, 1, ("Edema", "Fracture"), multi_label=True)
    assessed = of_task(count_findings(states, presence(logits)), task)
    made = together(assessed)
    assert [(name, one["known"], one["present"]) for name, one in made["findings"].items()] == [
        ("Edema", 4, 2),
        ("Fracture", 3, 1),
    ]
    assert made["sensitivity"] == 0.75
    assert made["findings"]["Edema"]["confusion"]["classes"] == ["no Edema", "Edema"]
    assert made["remarks"] == [*assessed[0].remarks, *assessed[1].remarks]
    assert all(remark.startswith(("Edema: ", "Fracture: ")) for remark in made["remarks"])
    assert assessed[1].lines()[0].startswith('Fracture, known in 3: positive is "Fracture" (1)')


def test_counts_of_another_task_are_rejected() -> None:
    """Counts of one label are not those of findings."""
    counts = count([0, 1], presence(np.array([-1.0, 1.0])))
    with pytest.raises(FederationError, match="do not belong to the task"):
        of_task(counts, Task(1, 8, 8, 1, ("Edema",), multi_label=True))
    (one,) = of_task(counts, Task(1, 8, 8, 1, ("a", "b")))
    assert one.classes == ("a", "b")
