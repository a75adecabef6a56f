"""Assessment of a test in a report: in words, figures with intervals, and curves, of one label or finding."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self

from fedpp.learning.assessment import Assessment
from fedpp.learning.intervals import Estimate, share
from fedpp.learning.metrics import Decisions, decisions
from fedpp.learning.remarks import sides

if TYPE_CHECKING:
    from fedpp.learning.exact_metrics import Curves, Predictions

Verdict = Literal["better", "weak", "finds nothing", "unclear", "worse", "undefined"]

VERDICTS: Mapping[Verdict, str] = {
    "better": "Better than chance",
    "weak": "Better than chance, but weak",
    "finds nothing": "In better order than chance, but it finds nothing",
    "unclear": "Not shown to be better than chance",
    "worse": "Worse than chance",
    "undefined": "Cannot be judged by this test",
}
_CHANCE = 0.5  # the AUC of guesses
_WEAK = 0.7  # an AUC below it is weak (Hosmer and Lemeshow, Applied Logistic Regression, section 5.2.4: "poor")


@dataclass(frozen=True)
class ReportAssessment:
    """Test of a model on one label or finding: the decisions for the most probable class, and what follows.

    `exact` says whether curves and AUC are of single predictions or of bins of scores.
    """

    negative: str
    positive: str
    decisions: Decisions
    figures: Mapping[str, Estimate]  # by name, as in `Metrics`
    at_threshold: Mapping[str, Estimate]  # of the operating point's decisions; empty without one
    remarks: tuple[str, ...]
    curves: "Curves | None"  # None unless both kinds were tested
    exact: bool = False

    @classmethod
    def of(cls, assessment: Assessment, predictions: "Predictions | None" = None) -> Self:
        """Return what a report says of an assessment; its curves are of the single `predictions`, if it is of these."""
        from fedpp.reporting.binned_curves import binned_curves

        return cls(
            *sides(assessment.classes, finding=assessment.finding),
            decisions(assessment.counts),
            assessment.estimates,
            assessment.at_point,
            assessment.remarks,
            predictions.curves() if predictions else binned_curves(assessment.counts),
            exact=predictions is not None,
        )

    @property
    def verdict(self) -> Verdict:
        """Return whether the model is shown to be better than chance, by the interval of its AUC."""
        auc = self.figures["auc"]
        if auc.value is None or auc.low is None or auc.high is None:
            return "undefined"
        if auc.low <= _CHANCE:
            return "worse" if auc.high < _CHANCE else "unclear"
        if not self.decisions.found:
            return "finds nothing"
        return "weak" if auc.value < _WEAK else "better"

    @property
    def prevalence(self) -> Estimate:
        """Return the share of the positive side in the test."""
        return share(self.decisions.positives, self.decisions.positives + self.decisions.negatives)

    def measured(self) -> tuple[str, ...]:
        """Return in sentences how well the model ranks, finds and clears, each figure beside what chance gives."""
        chosen = "At the threshold that was chosen on validation patients"
        return (
            self._order(),
            self._found("Taking the most probable class", self.figures),
            *([self._found(chosen, self.at_threshold)] if self.at_threshold else []),
            *self._trust(),
        )

    def limits(self) -> tuple[str, ...]:
        """Return in sentences what the model misses, and what a reader of the figures must know."""
        of = self.decisions
        missed = f'It missed {of.missed} of {of.positives} "{self.positive}"' if of.missed else ""
        alarms = f'it called {of.alarms} of {of.negatives} "{self.negative}" positive' if of.alarms else ""
        wrong = " and ".join(filter(None, (missed, alarms)))
        return (*([f"{wrong[0].upper()}{wrong[1:]}."] if wrong else []), *map(_sentence, self.remarks))

    def _order(self) -> str:
        auc = self.figures["auc"]
        if auc.value is None or self.verdict == "undefined":
            return f'Whether it ranks "{self.positive}" above "{self.negative}" cannot be said: both must be tested.'
        higher = f'it gives the "{self.positive}" one the higher score in {round(100 * auc.value)} of 100 pairs'
        return (
            f'Of a "{self.positive}" and a "{self.negative}" sequence {higher}, where guessing does in 50: AUC '
            f"{_figure(auc)}; {'the interval includes' if self.verdict == 'unclear' else 'chance is'} 0.5."
        )

    def _found(self, how: str, figures: Mapping[str, Estimate]) -> str:
        found, cleared = figures["sensitivity"], figures["specificity"]
        return (
            f'{how}, it found {found.part} of {found.whole} "{self.positive}", {_figure(found)}, and cleared '
            f'{cleared.part} of {cleared.whole} "{self.negative}", {_figure(cleared)}.'
        )

    def _trust(self) -> list[str]:
        of, all_tested = self.decisions, self.decisions.positives + self.decisions.negatives
        said = []
        for side, name, part, whole, base in (
            (self.positive, "precision", of.found, of.found + of.alarms, of.positives),
            (self.negative, "npv", of.cleared, of.cleared + of.missed, of.negatives),
        ):
            if whole:
                right = f'When it says "{side}", it is right in {part} of {whole}, {_figure(self.figures[name])}'
                said.append(f"{right}; of all tested, {base} of {all_tested} are ({base / all_tested:.2f}).")
            else:
                said.append(f'It never says "{side}".')
        return said

    def to_mapping(self) -> dict[str, Any]:
        """Return the entry of `report.json`."""
        words = {"verdict": self.verdict, "measured": list(self.measured()), "limits": list(self.limits())}
        plain = asdict(self) | {"decisions": self.decisions.to_mapping(), "remarks": list(self.remarks)}
        return plain | {"prevalence": self.prevalence.to_mapping(), "in_words": words}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned; raise `ValueError` where the words are not those of the figures."""
        from fedpp.learning.exact_metrics import Curves

        curves = values["curves"]
        made = cls(
            values["negative"],
            values["positive"],
            Decisions.from_mapping(values["decisions"]),
            _estimates(values["figures"]),
            _estimates(values["at_threshold"]),
            tuple(values["remarks"]),
            curves and Curves(**{f.name: _tuple(curves[f.name]) for f in fields(Curves)}),
            values["exact"],
        )
        words = made.to_mapping()
        if any(values[name] != words[name] for name in ("prevalence", "in_words")):
            raise ValueError(f"the words on {made.positive!r:.80} do not follow from the figures")
        return made


def _estimates(values: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**of) for name, of in values.items()}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _figure(of: Estimate) -> str:
    if of.value is None or of.low is None or of.high is None:
        return "not defined"
    return f"{of.value:.2f} (95 % interval {of.low:.2f} to {of.high:.2f})"


def _sentence(remark: str) -> str:
    return f"{remark[:1].upper()}{remark[1:]}" + ("" if remark.endswith((".", "?")) else ".")
