"""Assessments: a useless model and a good one are told apart in words, and the words are those of the figures."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from fedpp.errors import FederationError
from fedpp.learning.assessment import Assessment
from fedpp.learning.exact_metrics import Predictions
from fedpp.learning.metrics import count, metrics, operating_point
from fedpp.reporting.report import Report, load_report, write_report
from fedpp.reporting.report_assessment import VERDICTS, ReportAssessment
from fedpp.reporting.report_page import render
from fedpp.reporting.report_privacy import privacy_of
from fedpp.reporting.report_results import Confusion, SiteResult
from fedpp.reporting.report_summary import summary

CLASSES = ("healthy", "sick")


def predicted(distance: float, *, examples: int = 200, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return labels, two fifths sick, and probabilities; at a distance of 0 they tell nothing."""
    labels = (np.arange(examples) % 5 < 2).astype(int)
    scores = np.random.default_rng(seed).normal(distance * (labels - 0.5) + shift, 1)
    sick = 1 / (1 + np.exp(-scores))
    return labels, np.stack([1 - sick, sick], axis=1)


def report_of(labels: np.ndarray, probabilities: np.ndarray) -> Report:
    """Return a report of two sites with half of these predictions each."""
    counts, halves = count(labels, probabilities), [count(labels[k::2], probabilities[k::2]) for k in range(2)]
    point = operating_point(counts, counts, 0.9)
    return Report(
        scenario="trial",
        seed=0,
        scheme="more",
        n=2,
        dtype="float32",
        mode="deployment",
        data="",
        sites=tuple(
            SiteResult(name, 9, {"test": half.examples}, metrics(half), matrix=half.confusion)
            for name, half in zip(("north", "south"), halves, strict=True)
        ),
        rounds=(),
        final=metrics(counts),
        confusion=Confusion(CLASSES, counts.confusion),
        operating_point=point,
        privacy=privacy_of(masked=True),
        assessments=(ReportAssessment.of(Assessment.of_counts(counts, CLASSES, point=point)),),
        date="2026-01-31",
    )


def text_of(report: Report) -> str:
    """Return the text of a report's page, without charts."""
    page = re.sub(r"<(svg|style).*?</\1>", " ", render(report.to_mapping()), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", page).replace("&#34;", '"').split())


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (predicted(3), "better"),
        (predicted(0.5, examples=1000), "weak"),
        (predicted(0), "unclear"),
        (predicted(0.5, examples=10), "unclear"),
        (predicted(-2), "worse"),
        (predicted(2, shift=-9), "finds nothing"),
        ((np.zeros(9, dtype=int), predicted(2, examples=9)[1]), "undefined"),
    ],
)
def test_the_verdict_is_by_the_interval_of_the_auc(made: tuple[np.ndarray, ...], verdict: str) -> None:
    """Only a model whose interval is above one half, and that finds something, is called better than chance."""
    assessment = ReportAssessment.of(Assessment.of_counts(count(*made), CLASSES))
    assert assessment.verdict == verdict
    assert assessment.to_mapping()["in_words"]["verdict"] == verdict


def test_the_words_have_the_counts_of_scikit_learn() -> None:
    """Found, cleared, missed and alarms in the sentences are those of an independent confusion matrix."""
    labels, probabilities = predicted(2)
    assessment = ReportAssessment.of(Assessment.of_counts(count(labels, probabilities), CLASSES))
    (cleared, alarms), (missed, found) = confusion_matrix(labels, probabilities[:, 1] > 0.5).tolist()
    measured, limits = " ".join(assessment.measured()), " ".join(assessment.limits())
    assert f'found {found} of 80 "sick"' in measured
    assert f'cleared {cleared} of 120 "healthy"' in measured
    assert f'When it says "sick", it is right in {found} of {found + alarms}' in measured
    assert f'When it says "healthy", it is right in {cleared} of {cleared + missed}' in measured
    assert "80 of 200 are (0.40)" in measured
    assert f'It missed {missed} of 80 "sick" and it called {alarms} of 120 "healthy" positive.' in limits
    assert f"in {round(100 * roc_auc_score(labels, probabilities[:, 1]))} of 100" in measured


def test_single_predictions_give_exact_curves() -> None:
    """With predictions at hand the AUC and the ROC curve are scikit-learn's, and the assessment says so."""
    labels, probabilities = predicted(1)
    counts = count(labels, probabilities)
    predictions = Predictions.of(labels, probabilities)
    binned = ReportAssessment.of(Assessment.of_counts(counts, CLASSES))
    exact = ReportAssessment.of(predictions.assessment(CLASSES), predictions)
    assert (binned.exact, exact.exact) == (False, True)
    assert exact.figures["auc"].value == roc_auc_score(labels, probabilities[:, 1])
    assert exact.figures["auc"].value != binned.figures["auc"].value
    assert exact.curves == predictions.curves()


@pytest.mark.parametrize(
    ("distance", "first", "never"), [(3, "Better than chance", "Not shown"), (0, "Not shown to be", "Better than")]
)
def test_the_page_begins_with_what_the_model_can_do(distance: float, first: str, never: str) -> None:
    """Title, finding, date and prevalence come first, then the verdict, curves with chance, matrices by hospital."""
    report = report_of(*predicted(distance))
    text = text_of(report)
    for words in (
        "fedpp report: trial, sick",
        "Finding (positive) sick Negative healthy Prevalence in the test 80 of 200 (0.400) Date 2026-01-31",
        f"What the model can and cannot do {first}",
        "The dashed line is chance, 0.5",
        "chance: the prevalence, 80 of 200 (0.400)",
        "probabilities are known by bin (63 bins), not one by one",
        "north Prevalence 40 of 100 (0.400)",
        "south Prevalence 40 of 100 (0.400)",
        "NPV of those called “healthy”, right",
    ):
        assert words in text, words
    assert never not in text
    assert (
        text.index("What the model can") < text.index("Result on the test patients") < text.index("What this protects")
    )
    assert render(report.to_mapping()).count("<svg") == 3


def test_the_terminal_says_what_misleads() -> None:
    """A model that finds nothing is called that in the summary, whatever its accuracy."""
    lines = summary(report_of(*predicted(2, shift=-9))).splitlines()
    assert any(line.startswith('  "sick" against "healthy": in better order than chance, but') for line in lines)
    assert any("finds nothing: it found 0 of 80" in line for line in lines)


def test_an_assessment_survives_its_record(tmp_path: Path) -> None:
    """`report.json` gives the assessment back; words that the figures do not say are refused."""
    report = report_of(*predicted(1))
    write_report(tmp_path, report)
    assert load_report(tmp_path / "report.json") == report
    altered = copy.deepcopy(report.to_mapping())
    altered["assessments"][0]["in_words"]["verdict"] = "worse"
    with pytest.raises(FederationError, match="do not follow from the figures"):
        Report.from_mapping(altered)


def test_three_classes_have_figures_of_each() -> None:
    """Each of three classes has its sensitivity and PPV with counts, and the sides are named in words."""
    labels = np.arange(90) % 3
    probabilities = np.full((90, 3), 0.2)
    probabilities[np.arange(90), np.where(labels == 2, 1, labels)] = 0.6
    counts, classes = count(labels, probabilities), ("a", "b", "c")
    report = replace(
        report_of(*predicted(1)),
        confusion=Confusion(classes, counts.confusion),
        assessments=(ReportAssessment.of(Assessment.of_counts(counts, classes)),),
        operating_point=None,
        sites=(),
    )
    text = text_of(report)
    assert "b 30 of 30 1.000 (0.886 to 1.000) 30 of 60 0.500 (0.377 to 0.623)" in text
    assert "c 0 of 30 0.000 (0.000 to 0.114) 0 of 0" in text
    assert "Finding (positive) b or c" in text


def test_every_verdict_has_words() -> None:
    """Each verdict has its own words."""
    assert len(set(VERDICTS.values())) == len(VERDICTS) == 6
