"""Intervals of figures: those of SciPy, of their defining equations, and of slow loops over pairs and patients."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from fedpp.learning.intervals import (
    Estimate,
    area,
    auc_variance,
    decision_estimates,
    estimates,
    f1_score,
    independent_examples,
    patient_effect,
    share,
)
from fedpp.learning.metrics import Decisions, count, metrics, presence
from fedpp.protocol.counts import Counts

Z = float(norm.ppf(0.975))
cells = st.integers(0, 60)


@given(st.integers(1, 400), st.data())
def test_a_share_has_the_interval_of_scipy(whole: int, data: st.DataObject) -> None:
    """Wilson's limits are those of `scipy.stats.binomtest`, none and all of the examples included."""
    part = data.draw(st.integers(0, whole))
    expected = binomtest(part, whole).proportion_ci(0.95, method="wilson")
    found = share(part, whole)
    assert (found.value, found.part, found.whole) == (part / whole, part, whole)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(cells, cells, cells, cells)
def test_decisions_have_the_shares_of_their_counts(found: int, alarms: int, cleared: int, missed: int) -> None:
    """Each share of decisions is SciPy's of its own two counts; without any example it is not defined."""
    decided = Decisions(found, alarms, cleared, missed)
    made = decision_estimates(decided)
    for name, part, whole in (
        ("sensitivity", found, found + missed),
        ("specificity", cleared, cleared + alarms),
        ("precision", found, found + alarms),
        ("npv", cleared, cleared + missed),
        ("missed_diagnosis_rate", missed, found + missed),
    ):
        if not whole:
            assert made[name] == Estimate(None, 0, 0, None, None)
            continue
        expected = binomtest(part, whole).proportion_ci(0.95, method="wilson")
        assert (made[name].low, made[name].high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert {name: one.value for name, one in made.items()} == decided.figures()


@given(cells, cells)
def test_f1_has_the_interval_of_its_share(found: int, wrong: int) -> None:
    """F1 is 2 J / (1 + J) of the share J of the found among all that are or are called positive; so are its limits."""
    made = f1_score(found, wrong)
    if not found + wrong:
        assert made == Estimate(None, 0, 0, None, None)
        return
    of_share = binomtest(found, found + wrong).proportion_ci(0.95, method="wilson")
    expected = [2 * j / (1 + j) for j in (found / (found + wrong), of_share.low, of_share.high)]
    assert [made.value, made.low, made.high] == pytest.approx(expected, abs=1e-12)
    assert made.value == made.part / made.whole


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 1), st.floats(1, 5))
def test_the_limits_of_an_auc_solve_newcombes_equation(
    positives: int, negatives: int, auc: float, effect: float
) -> None:
    """At each limit the AUC is 1.96 standard deviations away, by Hanley and McNeil's variance at the limit."""
    made = area(auc, positives, negatives, effect)
    m, n = positives / effect, negatives / effect
    assert made.low is not None
    assert made.high is not None
    assert made.low <= auc + 1e-9
    assert made.high >= auc - 1e-9
    for limit in (made.low, made.high):
        if not 1e-6 < limit < 1 - 1e-6:
            continue
        ties = ((m + n) / 2 - 1) * ((1 - limit) / (2 - limit) + limit / (1 + limit))
        deviation = math.sqrt(limit * (1 - limit) * (1 + ties) / (m * n))
        assert abs(auc - limit) == pytest.approx(Z * deviation, rel=1e-6)
    assert area(None, positives, 0) == Estimate(None, positives, positives, None, None)


def test_a_perfect_order_of_few_is_no_certainty() -> None:
    """Five positives all above twenty negatives may be of an AUC of 0.77; of two hundred each of 0.99."""
    few, many = area(1.0, 5, 20), area(1.0, 200, 200)
    assert (few.low, few.high) == (pytest.approx(0.761, abs=1e-3), 1.0)
    assert many.low == pytest.approx(0.9906, abs=1e-3)


@st.composite
def clustered(draw: st.DrawFn) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    """Draw labels, scores with ties, and patients, of whom some have examples of both kinds."""
    examples, patients = draw(st.integers(4, 40)), draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return (
        rng.integers(0, 2, examples).astype(bool),
        rng.integers(0, draw(st.sampled_from([3, 1000])), examples).astype(float),
        rng.integers(0, patients, examples),
    )


@given(clustered())
def test_the_variance_of_an_auc_is_that_of_the_loop_over_patients(
    case: tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]],
) -> None:
    """Obuchowski's sums over patients of DeLong's components, pair by pair; None with one patient of a kind."""
    positive, scores, patients = case
    names = np.array([f"patient {number}" for number in patients])  # as a dataset has them
    ill, well = np.flatnonzero(positive), np.flatnonzero(~positive)
    kinds = [{patients[i] for i in kind} for kind in (ill, well)]
    if min(map(len, kinds)) < 2:
        assert auc_variance(positive, scores, names) is None
        return
    won = np.array([[0.5 if scores[i] == scores[j] else float(scores[i] > scores[j]) for j in well] for i in ill])
    auc, everyone = won.mean(), sorted(set(patients))
    sums = {
        patient: (
            sum(won[k].mean() - auc for k, i in enumerate(ill) if patients[i] == patient),
            sum(won[:, k].mean() - auc for k, j in enumerate(well) if patients[j] == patient),
        )
        for patient in everyone
    }
    first = len(kinds[0]) / (len(kinds[0]) - 1) * sum(a * a for a, _ in sums.values()) / len(ill) ** 2
    second = len(kinds[1]) / (len(kinds[1]) - 1) * sum(b * b for _, b in sums.values()) / len(well) ** 2
    both = len(everyone) / (len(everyone) - 1) * sum(a * b for a, b in sums.values()) / len(ill) / len(well)
    assert auc_variance(positive, scores, names) == pytest.approx(first + second + 2 * both, abs=1e-12)


def test_one_example_a_patient_is_independent() -> None:
    """With as many patients as examples neither a share nor an AUC has a wider interval."""
    rng = np.random.default_rng(1)
    positive, scores, each = rng.random(30) < 0.4, rng.normal(size=30), rng.permutation(30)
    assert independent_examples(positive, each) == 30
    assert patient_effect(positive, scores, each) == 1


def test_copies_of_an_example_add_nothing() -> None:
    """Of patients whose examples are all alike there are as many independent examples as patients, about."""
    rng = np.random.default_rng(2)
    positive, scores, each = rng.random(80) < 0.5, rng.normal(size=80), np.arange(80)
    copied = [np.repeat(values, 4) for values in (positive, scores, each)]
    assert independent_examples(copied[0], copied[2]) == pytest.approx(80, rel=0.02)
    assert patient_effect(*copied) == pytest.approx(4, rel=0.02)
    assert independent_examples(np.ones(320, bool), copied[2]) == 80
    assert independent_examples(np.ones(5, bool), np.zeros(5, int)) == 1
    assert patient_effect(np.repeat([True, False], 5), np.arange(10.0), np.repeat([1, 2], 5)) == 5


@pytest.mark.parametrize("seed", range(4))
def test_intervals_by_patient_are_as_wide_as_a_bootstrap_of_patients(seed: int) -> None:
    """Drawing whole patients 2,000 times gives intervals of a share and of an AUC of about the same width."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(60), 4)
    ill = rng.random(60) < 0.4
    scores = (ill + 0.9 * rng.normal(size=60))[patients] + 0.5 * rng.normal(size=240)
    positive, hits = ill[patients], scores > 0.5

    def auc(of: NDArray[np.int64]) -> float:
        above = scores[of[positive[of]], None] - scores[None, of[~positive[of]]]
        return float((above > 0).mean())

    draws = [np.ravel(rng.integers(0, 60, 60)[:, None] * 4 + np.arange(4)) for _ in range(2000)]
    shares = np.quantile([hits[of].mean() for of in draws], [0.025, 0.975])
    areas = np.quantile([auc(of) for of in draws[:400]], [0.025, 0.975])
    ours = share(int(hits.sum()), 240, independent_examples(hits, patients))
    effect = patient_effect(positive, scores, patients)
    area_ours = area(auc(np.arange(240)), int(positive.sum()), int((~positive).sum()), effect)
    for made, drawn in ((ours, shares), (area_ours, areas)):
        assert made.low is not None
        assert made.high is not None
        assert made.high - made.low == pytest.approx(drawn[1] - drawn[0], rel=0.25)


def test_estimates_of_counts_are_their_figures() -> None:
    """Every figure of counts but the loss has its estimate; accuracy is of all classes."""
    counts = count([0, 0, 1, 1, 2, 2], [[0.8, 0.1, 0.1]] * 2 + [[0.1, 0.8, 0.1]] * 3 + [[0.8, 0.1, 0.1]])
    made, figures = estimates(counts), metrics(counts).to_mapping()
    assert {name: one.value for name, one in made.items()} == {k: v for k, v in figures.items() if k != "loss"}
    assert str(made["accuracy"]) == "0.667 (95 % interval 0.300 to 0.903; 4 of 6)"
    assert (made["auc"].part, made["auc"].whole) == (4, 6)
    none = estimates(Counts.zero(2))
    assert {str(one) for one in none.values()} == {"not defined"}
    one_sided = estimates(count([1], presence(np.array([3.0]))))
    assert one_sided["auc"].to_mapping() == {"value": None, "part": 1, "whole": 1, "low": None, "high": None}
