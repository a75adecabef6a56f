"""The report of a run: what was trained, how well it does, what it cost, and what it does not protect.

`report.json` is the record and `report.html` its page; the page is made of the record alone.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from fedpp.errors import FederationError
from fedpp.files import replace
from fedpp.learning.metrics import Metrics, OperatingPoint, metrics, operating_point
from fedpp.protocol.counts import SCORE_BINS, Counts, Matrix
from fedpp.protocol.run_record import RoundRecord


@dataclass(frozen=True)
class Privacy:
    """What a run protects, and what it does not: sentences for a reader who was not there."""

    protects: tuple[str, ...]
    does_not_protect: tuple[str, ...]


def privacy_of(*, masked: bool) -> Privacy:
    """Return what a run with or without the domain mask protects, and what it does not."""
    return Privacy(
        protects=(
            (
                "Raw images, labels in clear, patient identifiers and the key domain's secret stayed in each "
                "hospital's secret zone. Training code was given encrypted frames and labels, and pseudonyms."
            ),
            f"The coordinator was given no key and no dataset. {_SEEN_MASKED if masked else _SEEN_IN_CLEAR}",
        ),
        does_not_protect=(
            (
                "MORE over floating point is obfuscation of data in use, not a secure cipher: whoever holds the "
                "evaluation key, or knows two of the values behind it, reads the plaintext exactly."
            ),
            (
                "Each hospital's trainer holds the evaluation key. Code that runs there can read that hospital's "
                "own frames and labels: what counts is which code a hospital lets run, and whose coordinator it joins."
            ),
            _NOT_BY_THE_MASK if masked else _WITHOUT_MASK,
            (
                "A trained model, and counts over few patients, can give away something about single patients. "
                "No differential privacy was applied."
            ),
        ),
    )


_SEEN_MASKED = (
    "Updates went to it under the domain mask, and models sealed: to it both were random bytes. It saw who took part, "
    "when, example counts, and sums, counts and histograms of predictions."
)
_SEEN_IN_CLEAR = "MASKING WAS OFF: it was sent every hospital's update, and the model, as fixed-point rows of weights."
_NOT_BY_THE_MASK = (
    "The mask does not hold against a hospital that colludes with the coordinator: each member of the key domain can "
    "take it off. Nor against code that leaks what it sees where it runs."
)
_WITHOUT_MASK = (
    "Rows of weights tell the evaluation key: regard the model and every hospital's update as readable by the "
    "coordinator, which can also read single images from the counts by weights of its choice; seal datasets at rest."
)


@dataclass(frozen=True)
class RoundResult:
    """One round: the sites that took part, what its model is worth on their validation splits, and its duration."""

    round: int
    sites: tuple[str, ...]
    validation: Metrics  # on all of them together
    seconds: float
    by_site: Mapping[str, Metrics] = field(default_factory=dict)
    attempt: int = 1  # the one whose model the sites adopted
    left_out: Mapping[str, str] = field(default_factory=dict)  # site -> why it gave nothing to that attempt

    @classmethod
    def of(cls, record: RoundRecord) -> Self:
        """Return the figures of a round's counts."""
        by_site = {site: metrics(counts) for site, counts in record.validation.items()}
        together = metrics(record.together)
        return cls(record.number, record.sites, together, record.seconds, by_site, record.attempt, record.left_out)

    def to_mapping(self) -> dict[str, Any]:
        """Return the row of `report.json`; the loss is called `val_loss` there."""
        figures = self.validation.to_mapping()
        loss = figures.pop("loss")
        row = {"round": self.round, "sites": list(self.sites), "val_loss": loss, **figures, "seconds": self.seconds}
        by_site = {site: of_site.to_mapping() for site, of_site in self.by_site.items()}
        return {**row, "by_site": by_site, "attempt": self.attempt, "left_out": dict(self.left_out)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        figures = dict(values)
        number, sites, seconds = (figures.pop(name) for name in ("round", "sites", "seconds"))
        by_site = {site: Metrics(**of_site) for site, of_site in figures.pop("by_site").items()}
        attempt, left_out = (figures.pop(name) for name in ("attempt", "left_out"))
        validation = Metrics(loss=figures.pop("val_loss"), **figures)
        return cls(number, tuple(sites), validation, seconds, by_site, attempt, left_out)


@dataclass(frozen=True)
class SiteBaselines:
    """What other models do on one site's own test split; None where there is none. `Baselines` says how they train."""

    plaintext_federated: Metrics | None = None
    plaintext_central: Metrics | None = None
    local_baseline: Metrics | None = None  # the model that the site trained alone

    def to_mapping(self) -> dict[str, Any]:
        """Return those that there are."""
        return {name: figures for name, figures in asdict(self).items() if figures is not None}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        return cls(**{name: Metrics(**figures) for name, figures in values.items()})


@dataclass(frozen=True)
class Gain:
    """What a site has of the federation: its model's figures less those of the site's own, on the site's test split."""

    auc: float | None
    accuracy: float | None

    @classmethod
    def of(cls, joined: Metrics, alone: Metrics) -> Self:
        """Return the differences; one is None where a figure is."""
        return cls(_difference(joined.auc, alone.auc), _difference(joined.accuracy, alone.accuracy))

    @property
    def verdict(self) -> Literal["better", "worse", "equal"] | None:
        """Judge by the AUC, and where a test split has none, by the accuracy; None without either."""
        difference = self.accuracy if self.auc is None else self.auc
        if difference is None:
            return None
        return "better" if difference > 0 else "worse" if difference < 0 else "equal"

    def to_mapping(self) -> dict[str, Any]:
        """Return the entry of `report.json`."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class SiteResult:
    """One admitted site: its data, and the final model's figures on its own test split, beside other models'."""

    name: str
    patients: int | None  # None where the site does not tell
    sequences: Mapping[str, int]  # split -> sequences
    test: Metrics | None
    baselines: SiteBaselines = field(default_factory=SiteBaselines)

    @property
    def gain(self) -> Gain | None:
        """Return what the site has of the federation; None without a test, or a model of its own."""
        alone = self.baselines.local_baseline
        return Gain.of(self.test, alone) if self.test and alone else None

    def to_mapping(self) -> dict[str, Any]:
        """Return the entry of `report.json`."""
        gain = self.gain and self.gain.to_mapping()
        return {**asdict(self), "baselines": self.baselines.to_mapping(), "gain": gain}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        parts = {"test": _metrics(values["test"]), "baselines": SiteBaselines.from_mapping(values["baselines"])}
        site = cls(**{name: value for name, value in {**values, **parts}.items() if name != "gain"})
        if values["gain"] != (site.gain and site.gain.to_mapping()):
            raise ValueError(f"the gain of {site.name!r:.80} is not that of its figures")
        return site


@dataclass(frozen=True)
class RefusedSite:
    """A site that asked to take part and was not admitted."""

    name: str
    reason: str


@dataclass(frozen=True)
class Confusion:
    """Decisions of the final model on all test splits: rows are true classes, columns predicted ones."""

    classes: tuple[str, ...]
    matrix: Matrix

    def __post_init__(self) -> None:
        """Refuse names that do not belong to the matrix."""
        if {len(self.classes)} != {len(self.matrix), *map(len, self.matrix)}:
            raise FederationError(f"a confusion of {len(self.matrix)} classes cannot have names {self.classes}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read the entry of `report.json`."""
        return cls(tuple(values["classes"]), tuple(map(tuple, values["matrix"])))


@dataclass(frozen=True)
class FindingResult:
    """What the final model says of one finding, on the test sequences of all sites where it is known."""

    known: int
    present: int
    test: Metrics
    operating_point: OperatingPoint | None  # None where no validation sequence has the finding

    @classmethod
    def of(cls, validation: Counts, test: Counts, sensitivity: float) -> Self:
        """Return the result of a finding's counts, with the point that reaches this sensitivity on validation."""
        present = sum(map(sum, test.confusion[1:]))
        return cls(test.examples, present, metrics(test), operating_point(validation, test, sensitivity))

    def to_mapping(self) -> dict[str, Any]:
        """Return the entry of `report.json`."""
        point = self.operating_point and self.operating_point.to_mapping()
        return {"known": self.known, "present": self.present, **self.test.to_mapping(), "operating_point": point}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        figures = dict(values)
        known, present, point = (figures.pop(name) for name in ("known", "present", "operating_point"))
        return cls(known, present, Metrics(**figures), _point(point))


@dataclass(frozen=True)
class Baselines:
    """The same task trained otherwise, tested on all test splits together; None where it was not asked for.

    All start from the federation's initial weights and train for its rounds and local epochs; the number of steps
    follows from how many sequences are in one place.
    """

    plaintext_federated: Metrics | None = None
    plaintext_central: Metrics | None = None
    local_baseline: Mapping[str, Metrics] | None = None  # by the site that trained alone

    def to_mapping(self) -> dict[str, Any]:
        """Return those that were asked for."""
        federated, central, alone = self.plaintext_federated, self.plaintext_central, self.local_baseline
        entries: dict[str, Any] = {
            "plaintext_federated": federated and federated.to_mapping(),
            "plaintext_central": central and central.to_mapping(),
            "local_baseline": None
            if alone is None
            else {site: figures.to_mapping() for site, figures in alone.items()},
        }
        return {name: entry for name, entry in entries.items() if entry is not None}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        alone = values.get("local_baseline")
        return cls(
            _metrics(values.get("plaintext_federated")),
            _metrics(values.get("plaintext_central")),
            None if alone is None else {site: Metrics(**figures) for site, figures in alone.items()},
        )


@dataclass(frozen=True)
class SharedPatients:
    """Patients of more than one site, found by their pseudonyms; each counts once at each of its sites."""

    patients: int
    trained_and_tested: int  # of them: in training at one site and in test at another, so that a test is no test
    central_left_out: int | None = None  # training sequences kept from the pooled baseline for that reason


@dataclass(frozen=True)
class Parity:
    """How far the federation is from its plaintext reference: same initial weights, batches and arithmetic.

    The control is the twin against itself, its initial weights moved by one unit in the last place, one
    figure a draw: rounding alone does that much, so in float32 no more can be asked of the ciphertext.
    """

    max_abs_probability_difference: float
    max_abs_weight_difference: float | None = None
    control_probability_differences: tuple[float, ...] = ()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read the entry of `report.json`."""
        control = tuple(_figure(value) for value in values["control_probability_differences"])
        probability = _figure(values["max_abs_probability_difference"])
        return cls(probability, values["max_abs_weight_difference"], control)


@dataclass(frozen=True)
class Report:
    """All that is told about one run; `to_mapping` gives `report.json`."""

    scenario: str
    seed: int
    scheme: str
    n: int  # slots of a ciphertext row
    dtype: str
    mode: Literal["simulation", "deployment"]
    data: str  # one line: what the images are and where they come from
    sites: tuple[SiteResult, ...]
    rounds: tuple[RoundResult, ...]
    final: Metrics  # on all test splits together; of several findings the mean over those for which it is defined
    confusion: Confusion | None  # None where there are several findings
    privacy: Privacy  # as the run was: no report promises by default
    operating_point: OperatingPoint | None = None  # of all sites' validation splits, on their test splits
    findings: Mapping[str, FindingResult] = field(default_factory=dict)  # where there are several
    refused: tuple[RefusedSite, ...] = ()
    shared_patients: SharedPatients | None = None  # None where nobody may compare the sites' pseudonyms
    baselines: Baselines = field(default_factory=Baselines)
    parity: Parity | None = None
    auc_bins: int = SCORE_BINS  # of the histograms of scores that AUCs and thresholds are computed from
    settings: Mapping[str, str | int | float] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)  # name -> seconds
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return the record; a figure that is not finite becomes None, since JSON has no such number."""
        values = asdict(self)
        values["sites"] = [site.to_mapping() for site in self.sites]
        values["rounds"] = [result.to_mapping() for result in self.rounds]
        values["baselines"] = self.baselines.to_mapping()
        values["findings"] = {name: finding.to_mapping() for name, finding in self.findings.items()}
        finite: dict[str, Any] = _finite(values)
        return finite

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned; raise `FederationError` for anything else."""
        try:
            parts: dict[str, Any] = {
                "sites": tuple(map(SiteResult.from_mapping, values["sites"])),
                "rounds": tuple(map(RoundResult.from_mapping, values["rounds"])),
                "final": Metrics(**values["final"]),
                "confusion": values["confusion"] and Confusion.from_mapping(values["confusion"]),
                "operating_point": _point(values["operating_point"]),
                "findings": {name: FindingResult.from_mapping(entry) for name, entry in values["findings"].items()},
                "refused": tuple(RefusedSite(**site) for site in values["refused"]),
                "shared_patients": values["shared_patients"] and SharedPatients(**values["shared_patients"]),
                "baselines": Baselines.from_mapping(values["baselines"]),
                "parity": None if values["parity"] is None else Parity.from_mapping(values["parity"]),
                "privacy": Privacy(**{name: tuple(lines) for name, lines in values["privacy"].items()}),
            }
            return cls(**{**values, **parts})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FederationError(f"not a report of this version of fedpp: {error!r}; run it again") from error


def write_report(out: Path, report: Report) -> None:
    """Write `report.json` and `report.html` into the folder `out`; a failure leaves earlier ones alone."""
    from fedpp.reporting.report_page import render

    record = report.to_mapping()
    texts = {
        "report.json": json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": render(record),
    }
    for name, text in texts.items():
        replace(out / name, text.encode())


def load_report(path: Path) -> Report:
    """Read a `report.json`; raise `FederationError` if it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FederationError(f"cannot read the report {path}: {error}") from error
    return Report.from_mapping(values)


def summary(report: Report) -> str:
    """Return the final figures as lines for a terminal, beside the plaintext reference's where there is one."""
    reference = report.baselines.plaintext_federated
    tested = sum(site.sequences.get("test", 0) for site in report.sites if site.test)
    lines = [f"{report.scenario}: {len(report.sites)} sites, {len(report.rounds)} rounds, {tested} test sequences"]
    for name, label in (
        ("accuracy", "accuracy"),
        ("sensitivity", "sensitivity"),
        ("specificity", "specificity"),
        ("f1", "F1"),
        ("auc", "AUC"),
    ):
        line = f"  {label:<12}{_three_digits(getattr(report.final, name))}"
        line += f"   plaintext {_three_digits(getattr(reference, name))}" if reference else ""
        lines.append(line + (f"   (binned, {report.auc_bins} bins)" if name == "auc" else ""))
    if report.parity:
        difference = report.parity.max_abs_probability_difference
        controls = report.parity.control_probability_differences
        beside = f" (plaintext moved by one unit in the last place: {max(controls):.1e})" if controls else ""
        lines.append(f"  ciphertext against plaintext: probabilities differ by {difference:.1e} at most{beside}")
    lines += [_in_words(name, finding) for name, finding in report.findings.items()]
    if report.operating_point:
        lines.append(f"  {_point_in_words(report.operating_point)}")
    lines += _beside(report)
    lines += [f"  refused: {site.name}: {site.reason}" for site in report.refused]
    return "\n".join(lines)


def _in_words(name: str, finding: FindingResult) -> str:
    line = f"  {name}: AUC {_three_digits(finding.test.auc)}, present in {finding.present} of {finding.known}"
    return f"{line}; {_point_in_words(finding.operating_point)}" if finding.operating_point else line


def _point_in_words(point: OperatingPoint) -> str:
    """Return what a threshold does that reached its sensitivity on the validation data."""
    sensitivity, specificity = (_three_digits(v) for v in (point.decisions.sensitivity, point.decisions.specificity))
    threshold = f"threshold {point.probability:.3f}, set for sensitivity {point.wanted:g} on validation data"
    return f"{threshold}: on test data sensitivity {sensitivity}, specificity {specificity}"


def _beside(report: Report) -> list[str]:
    """Return lines on the pooled model, on each site's own, and on patients of several sites."""
    lines = []
    if report.baselines.plaintext_central:
        lines.append(f"  all data in one place, plaintext: AUC {_three_digits(report.baselines.plaintext_central.auc)}")
    everywhere = report.baselines.local_baseline or {}
    for site in report.sites:
        alone = site.baselines.local_baseline
        if alone is None:
            continue
        joined = _three_digits(site.test.auc if site.test else None)
        own = f"{_three_digits(alone.auc)} on its own tests (federated {joined}{_in_a_word(site.gain)})"
        together = f"AUC {_three_digits(everywhere[site.name].auc)}, " if site.name in everywhere else "AUC "
        lines.append(f"  {site.name} alone{', plaintext' if report.mode == 'simulation' else ''}: {together}{own}")
    shared = report.shared_patients
    if shared and shared.patients:
        lines.append(
            f"  patients at several sites: {shared.patients}, "
            f"of whom {shared.trained_and_tested} in training at one and in test at another"
        )
    return lines


def _in_a_word(gain: Gain | None) -> str:
    if gain is None or gain.verdict != "worse":
        return ""
    return ": WORSE" if gain.auc is not None else ": WORSE in accuracy"


def _three_digits(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def _metrics(values: Mapping[str, Any] | None) -> Metrics | None:
    return None if values is None else Metrics(**values)


def _point(values: Mapping[str, Any] | None) -> OperatingPoint | None:
    return None if values is None else OperatingPoint.from_mapping(values)


def _figure(value: float | None) -> float:
    return math.nan if value is None else value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
