"""Assessment of a model on a test: figures with counts and intervals, classes, a confusion matrix, and remarks.

The one source of what terminals, JSON and pages say of a test, of one label or of one finding. Sensitivity and what
goes with it are of the positive side against class 0; of three classes and more each class has such figures against
all others, too. Accuracy is of all classes: the share of the sequences whose most probable class is the true one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from fedpp.config.task import Task
from fedpp.errors import FederationError
from fedpp.learning.intervals import LEVEL, Estimate, decision_estimates, estimates
from fedpp.learning.metrics import Metrics, OperatingPoint, decisions, mean_metrics, metrics, of_class
from fedpp.learning.remarks import remarks, sides
from fedpp.protocol.counts import SCORE_BINS, Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.texts import counted, printable, short

HEADINGS = {
    "accuracy": "accuracy",
    "precision": "PPV (precision)",
    "npv": "NPV",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1",
    "missed_diagnosis_rate": "missed",
    "auc": "AUC",
}
_ORDER = ("auc", "sensitivity", "missed_diagnosis_rate", "specificity", "precision", "npv", "f1", "accuracy")
_WIDEST = 24  # characters of a class's name in a matrix


@dataclass(frozen=True)
class Assessment:
    """Figures of one label, or of one finding, on test data."""

    classes: tuple[str, ...]  # of a finding its name alone
    counts: Counts
    metrics: Metrics
    estimates: Mapping[str, Estimate]  # by the names of `Metrics`
    of_classes: Mapping[str, Mapping[str, Estimate]]  # of three classes and more: each against all others
    basis: str  # what figures and intervals are computed from
    finding: bool = False
    point: OperatingPoint | None = None
    at_point: Mapping[str, Estimate] = field(default_factory=dict)

    @classmethod
    def of_counts(
        cls,
        counts: Counts,
        classes: Sequence[str],
        *,
        finding: bool = False,
        point: OperatingPoint | None = None,
        patients: int | None = None,
    ) -> Self:
        """Return the assessment of aggregated counts, whose sequences are taken as independent.

        `patients` are those of the whole test, where they are known.
        """
        several = classes if len(classes) > 2 and not finding else ()
        return cls(
            tuple(classes),
            counts,
            metrics(counts),
            estimates(counts),
            {name: decision_estimates(of_class(counts, number)) for number, name in enumerate(several)},
            f"aggregated counts: the AUC is of scores in {SCORE_BINS} bins, and intervals take all {counts.examples} "
            f"sequences as independent{_of_whom(counts.examples, patients)}",
            finding,
            point,
            decision_estimates(point.decisions) if point else {},
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the rows of the confusion matrix."""
        return (f"no {self.classes[0]}", self.classes[0]) if self.finding else self.classes

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return what a reader must know beside the figures."""
        return remarks(self.counts, self.classes, finding=self.finding, auc=self.estimates["auc"], point=self.point)

    def to_mapping(self) -> dict[str, Any]:
        """Return values fit for JSON; the operating point only where one was chosen."""
        negative, positive = sides(self.classes, finding=self.finding)
        mapping = {
            "positive": positive,
            "negative": negative,
            **self.metrics.to_mapping(),
            "intervals": _intervals(self.estimates),
            "confusion": {"classes": list(self.names), "matrix": [list(row) for row in self.counts.confusion]},
            "basis": self.basis,
            "remarks": list(self.remarks),
        }
        if self.of_classes:
            mapping["by_class"] = {
                name: {figure: one.to_mapping() for figure, one in made.items()}
                for name, made in self.of_classes.items()
            }
        if self.point:
            mapping["operating_point"] = {**self.point.to_mapping(), "intervals": _intervals(self.at_point)}
        return mapping

    def lines(self) -> list[str]:
        """Return the assessment as lines for a terminal."""
        decided, (negative, positive) = decisions(self.counts), sides(self.classes, finding=self.finding)
        known = f"{self.classes[0]}, known in {self.counts.examples}: " if self.finding else ""
        made = [
            f'{known}positive is "{positive}" ({decided.positives}), negative is "{negative}" ({decided.negatives})'
        ]
        loss = self.metrics.loss
        made += [_line("", f"value   {100 * LEVEL:.0f} % interval  (counts)")]
        made += [_line("loss", "undefined" if loss is None else f"{loss:.4f}"), *estimate_lines(self.estimates)]
        for name, of_one in self.of_classes.items():
            made += ["", f'"{short(name, _WIDEST)}" against all others', *estimate_lines(of_one)]
        if not self.finding:
            made += ["", "confusion matrix: true classes in rows, predicted ones in columns", *self._matrix()]
        if self.point:
            made += ["", self.point.heading, *estimate_lines(self.at_point)]
        made += ["", f"from {self.basis}", *(f"note: {remark}" for remark in self.remarks)]
        return list(map(printable, made))

    def _matrix(self) -> list[str]:
        names = [short(name, _WIDEST) for name in self.names]
        widths = [max(len(name), len(str(self.counts.examples))) for name in names]
        first = max(map(len, names))
        rows = [
            ("", names),
            *((name, list(map(str, row))) for name, row in zip(names, self.counts.confusion, strict=True)),
        ]
        return [
            f"  {name:{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            for name, cells in rows
        ]


def of_task(counts: AnyCounts, task: Task, patients: int | None = None) -> list[Assessment]:
    """Return the assessment of a task's counts, or those of its findings; raise `FederationError` for other counts."""
    of_each = counts.findings if isinstance(counts, FindingCounts) else (counts,)
    names: Sequence[tuple[str, ...]] = [(name,) for name in task.classes] if task.multi_label else [task.classes]
    if len(of_each) != len(names) or isinstance(counts, FindingCounts) != task.multi_label:
        raise FederationError(f"counts of {len(of_each)} labels do not belong to the task {task}")
    return [
        Assessment.of_counts(of_one, classes, finding=task.multi_label, patients=patients)
        for of_one, classes in zip(of_each, names, strict=True)
    ]


def _of_whom(examples: int, patients: int | None) -> str:
    if patients is None:
        return ", as if each were of another patient"
    return f"; the test has {counted(patients, 'patient')}, so the truth is less certain" if patients < examples else ""


def together(of: Sequence[Assessment]) -> dict[str, Any]:
    """Return those of several findings as one, fit for JSON: the mean of each figure, the findings, all remarks."""
    findings = {
        one.classes[0]: {
            "known": one.counts.examples,
            "present": decisions(one.counts).positives,
            **one.to_mapping(),
        }
        for one in of
    }
    mean = mean_metrics([one.metrics for one in of]).to_mapping()
    return {**mean, "findings": findings, "remarks": [remark for one in of for remark in one.remarks]}


def estimate_lines(of: Mapping[str, Estimate]) -> list[str]:
    """Return a line for each figure: its value, its 95 % interval, and its counts."""
    return [_line(HEADINGS[name], _shown(name, of[name])) for name in _ORDER if name in of]


def _shown(name: str, of: Estimate) -> str:
    counts = f"{of.part} positive of {of.whole}" if name == "auc" else f"{of.part} of {of.whole}"
    if of.value is None or of.low is None or of.high is None:
        return f"undefined  ({counts})"
    return f"{of.value:.4f}  {of.low:.3f} to {of.high:.3f}  ({counts})"


def _line(heading: str, shown: str) -> str:
    return f"  {heading:15}  {shown}"


def _intervals(of: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return counts and limits by figure; the values stand beside them."""
    return {name: {"part": one.part, "whole": one.whole, "low": one.low, "high": one.high} for name, one in of.items()}
