"""Report of a federation: data, figures of the model and of its baselines, times, and what was not protected.

A `Report` is written as `report.json`, and as the page `report.html`, which is made from the JSON record alone.
"""

import json
import math
from collections.abc import Mapping, Sequence
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
    """Sentences on what a run protects and what it does not, for a reader who knows nothing of the run."""

    protects: tuple[str, ...]
    does_not_protect: tuple[str, ...]


def privacy_of(*, masked: bool, two_sites: bool = False, changes: int = 0, lifted: Sequence[str] = ()) -> Privacy:
    """Return what a run protects, with secure aggregation (`masked`), perhaps of two sites alone, or without it.

    `changes` are those of its cohort by few sites, `lifted` sites and rounds whose locks were lifted without a burn.
    """
    at_risk = (_AT_RISK.format("; ".join(lifted)),) if lifted else ()
    beyond = _OF_TWO_SITES if two_sites else _BEYOND_THE_MASK
    changed = (_CHANGED.format(changes=changes),) if changes else ()
    return Privacy(
        protects=(
            (
                "Raw images, labels in clear, patient identifiers and the key domain's secret stayed in each "
                "hospital's secret zone. Training code received encrypted frames and labels, and pseudonyms."
            ),
            f"The coordinator received no key and no dataset. {_SEEN_MASKED if masked else _SEEN_IN_CLEAR}",
        ),
        does_not_protect=(
            (
                "MORE over floating point is obfuscation of data in use, not a secure cipher: with the evaluation "
                "key, or with two known plaintext values, the plaintext can be computed exactly."
            ),
            (
                "Each hospital's trainer holds the evaluation key. Code that runs there can read that hospital's "
                "own frames and labels. A hospital must trust the code that it approves and the coordinator it joins."
            ),
            beyond if masked else _WITHOUT_MASK,
            *at_risk,
            *changed,
            (
                "A trained model, and counts over few patients, can reveal something about single patients. "
                "No differential privacy was applied."
            ),
        ),
    )


_SEEN_MASKED = (
    "Secure aggregation was on: masked updates and sealed models were random bytes to it, and what was computed stands "
    "in a contract that all hospitals signed. It saw which hospitals took part and when, their numbers of sequences, "
    "and the evaluation counts that are reported here, with histograms of scores."
)
_SEEN_IN_CLEAR = "SECURE AGGREGATION WAS OFF: it received every hospital's update, and the model, as rows of weights."
_BEYOND_THE_MASK = (
    "A hospital that alters its own updates can steer the model within the bounds of a step, and may read something of "
    "other hospitals' patients from later models. If more hospitals collude with the coordinator than the contract "
    "reckons with, they can open a single hospital's update."
)
_OF_TWO_SITES = (
    "TWO HOSPITALS HIDE NOTHING FROM EACH OTHER: each can compute the other's update, and its evaluation counts, from "
    "the sum and its own. Only the coordinator sees neither."
)
_CHANGED = (
    "HOSPITALS LEFT OR JOINED DURING THE RUN: {changes} such changes were by few hospitals. What these contributed may "
    "show in the difference of the sums before and after."
)
_AT_RISK = (
    "A LOCK WAS LIFTED ({}): the hospital had left without showing that it released nothing, and the others continued "
    "without it. If it released after all, or a copy of its vault did, its update of that round can be computed."
)
_WITHOUT_MASK = (
    "The evaluation key can be computed from rows of weights: regard the model and every hospital's update as readable "
    "by the coordinator. By models of its choice it can also read single images from evaluation counts."
)


@dataclass(frozen=True)
class RoundResult:
    """One round: its contributors, the figures of its model on their validation splits, and its duration."""

    round: int
    sites: tuple[str, ...]
    validation: Metrics  # on all of them together
    seconds: float
    by_site: Mapping[str, Metrics] = field(default_factory=dict)
    attempt: int = 1  # the one whose model the sites accepted; above 1 after retries
    excluded: Mapping[str, str] = field(default_factory=dict)  # site -> reason

    @classmethod
    def of(cls, record: RoundRecord) -> Self:
        """Return the figures of a round's evaluation counts."""
        by_site = {site: metrics(counts) for site, counts in record.validation.items()}
        together = metrics(record.together)
        return cls(record.number, record.sites, together, record.seconds, by_site, record.attempt, record.excluded)

    def to_mapping(self) -> dict[str, Any]:
        """Return the row of `report.json`; the loss is called `val_loss` there."""
        figures = self.validation.to_mapping()
        loss = figures.pop("loss")
        row = {"round": self.round, "sites": list(self.sites), "val_loss": loss, **figures, "seconds": self.seconds}
        by_site = {site: of_site.to_mapping() for site, of_site in self.by_site.items()}
        return {**row, "by_site": by_site, "attempt": self.attempt, "excluded": dict(self.excluded)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        figures = dict(values)
        number, sites, seconds = (figures.pop(name) for name in ("round", "sites", "seconds"))
        by_site = {site: Metrics(**of_site) for site, of_site in figures.pop("by_site").items()}
        attempt, excluded = (figures.pop(name) for name in ("attempt", "excluded"))
        validation = Metrics(loss=figures.pop("val_loss"), **figures)
        return cls(number, tuple(sites), validation, seconds, by_site, attempt, excluded)


@dataclass(frozen=True)
class SiteBaselines:
    """Figures of the `Baselines` on one site's own test split; None for a baseline that was not trained."""

    plaintext_federated: Metrics | None = None
    plaintext_central: Metrics | None = None
    local_baseline: Metrics | None = None  # trained on the site's own data

    def to_mapping(self) -> dict[str, Any]:
        """Return the figures of the baselines that were trained."""
        return {name: figures for name, figures in asdict(self).items() if figures is not None}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        return cls(**{name: Metrics(**figures) for name, figures in values.items()})


@dataclass(frozen=True)
class Gain:
    """Gain of a site: the federated model's figures minus those of its local baseline, on the site's test split."""

    auc: float | None
    accuracy: float | None

    @classmethod
    def of(cls, federated: Metrics, local: Metrics) -> Self:
        """Return the differences; a difference is None if one of its figures is."""
        return cls(_difference(federated.auc, local.auc), _difference(federated.accuracy, local.accuracy))

    @property
    def outcome(self) -> Literal["better", "worse", "equal"] | None:
        """Return how the federated model compares: by AUC, else by accuracy; None if neither is defined."""
        difference = self.accuracy if self.auc is None else self.auc
        if difference is None:
            return None
        return "better" if difference > 0 else "worse" if difference < 0 else "equal"

    def to_mapping(self) -> dict[str, Any]:
        """Return the entry of `report.json`."""
        return {**asdict(self), "outcome": self.outcome}


@dataclass(frozen=True)
class SiteResult:
    """One admitted site: its data, and the figures of the final model and of baselines on its own test split."""

    name: str
    patients: int | None  # None if the site does not report it
    sequences: Mapping[str, int]  # split -> sequences
    test: Metrics | None
    baselines: SiteBaselines = field(default_factory=SiteBaselines)

    @property
    def gain(self) -> Gain | None:
        """Return the gain over the local baseline; None without a test or without a local baseline."""
        local = self.baselines.local_baseline
        return Gain.of(self.test, local) if self.test and local else None

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
            raise ValueError(f"the gain of {site.name!r:.80} does not follow from its figures")
        return site


@dataclass(frozen=True)
class RefusedSite:
    """A site that asked to join and was not admitted."""

    name: str
    reason: str


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix of the final model on all test splits: rows are true classes, columns predicted classes."""

    classes: tuple[str, ...]
    matrix: Matrix

    def __post_init__(self) -> None:
        """Raise `FederationError` unless there is one name for each class of the matrix."""
        if {len(self.classes)} != {len(self.matrix), *map(len, self.matrix)}:
            raise FederationError(f"a confusion matrix of {len(self.matrix)} classes cannot have names {self.classes}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read the entry of `report.json`."""
        return cls(tuple(values["classes"]), tuple(map(tuple, values["matrix"])))


@dataclass(frozen=True)
class FindingResult:
    """Figures of the final model on one finding, over the test sequences of all sites where the finding is known."""

    known: int
    present: int
    test: Metrics
    operating_point: OperatingPoint | None  # None if no validation sequence has the finding

    @classmethod
    def of(cls, validation: Counts, test: Counts, sensitivity: float) -> Self:
        """Return the figures of a finding's counts, with the operating point chosen for this validation sensitivity."""
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
    """Figures of the same task trained in other ways, on all test splits together; None for what was not trained.

    All baselines start from the federation's initial weights and train for its rounds and local epochs; the number of
    steps follows from the number of training sequences in one place.
    """

    plaintext_federated: Metrics | None = None
    plaintext_central: Metrics | None = None
    local_baseline: Mapping[str, Metrics] | None = None  # site -> figures of its local baseline

    def to_mapping(self) -> dict[str, Any]:
        """Return the figures of the baselines that were trained."""
        return {name: figures for name, figures in asdict(self).items() if figures is not None}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        local = values.get("local_baseline")
        return cls(
            _metrics(values.get("plaintext_federated")),
            _metrics(values.get("plaintext_central")),
            None if local is None else {site: Metrics(**figures) for site, figures in local.items()},
        )


@dataclass(frozen=True)
class SharedPatients:
    """Patients at more than one site, found by equal pseudonyms; each is counted once at each of its sites."""

    patients: int
    trained_and_tested: int  # in training at one site and in test at another: that test is not independent
    central_excluded: int | None = None  # training sequences excluded from the pooled baseline for that reason


@dataclass(frozen=True)
class Parity:
    """Largest differences between the federation and its plaintext reference: same initial weights and batches.

    The control is the plaintext reference against itself with initial weights moved by one unit in the last place, one
    value a draw. It shows how much rounding alone changes: in float32, ciphertext cannot be expected to be closer.
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
    """Report of one run; `to_mapping` returns the content of `report.json`."""

    scenario: str
    seed: int
    scheme: str
    n: int  # slots of a ciphertext row
    dtype: str
    mode: Literal["simulation", "deployment"]
    data: str  # one line on the images and their source
    sites: tuple[SiteResult, ...]
    rounds: tuple[RoundResult, ...]
    final: Metrics  # on all test splits together; of several findings, the mean of those with a value
    confusion: Confusion | None  # None for several findings
    privacy: Privacy  # no default: it must be stated for each run
    operating_point: OperatingPoint | None = None  # chosen on all validation splits, tested on all test splits
    findings: Mapping[str, FindingResult] = field(default_factory=dict)  # by finding; empty for a single label
    refused: tuple[RefusedSite, ...] = ()
    shared_patients: SharedPatients | None = None  # None if pseudonyms of different sites cannot be compared
    baselines: Baselines = field(default_factory=Baselines)
    parity: Parity | None = None
    auc_bins: int = SCORE_BINS  # of the score histograms from which AUCs and thresholds are computed
    settings: Mapping[str, str | int | float] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)  # name -> seconds
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return the record; a figure that is not finite becomes None, since JSON cannot express it."""
        values = asdict(self)
        values["sites"] = [site.to_mapping() for site in self.sites]
        values["rounds"] = [result.to_mapping() for result in self.rounds]
        values["baselines"] = self.baselines.to_mapping()
        values["operating_point"] = self.operating_point and self.operating_point.to_mapping()
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
    """Write `report.json` and `report.html` into the folder `out`; earlier files stay unchanged if rendering fails."""
    from fedpp.reporting.report_page import render

    record = report.to_mapping()
    texts = {
        "report.json": json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": render(record),
    }
    for name, text in texts.items():
        replace(out / name, text.encode())


def load_report(path: Path) -> Report:
    """Read a `report.json`; raise `FederationError` for any other file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FederationError(f"cannot read the report {path}: {error}") from error
    return Report.from_mapping(values)


def summary(report: Report) -> str:
    """Return the final figures as lines for a terminal, with those of the plaintext reference if there is one."""
    reference = report.baselines.plaintext_federated
    # With secure aggregation no site's own figures are known, and all sites are tested.
    tested_sites = [site for site in report.sites if site.test] or report.sites
    tested = sum(site.sequences.get("test", 0) for site in tested_sites)
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
    lines += [_finding_line(name, finding) for name, finding in report.findings.items()]
    if report.operating_point:
        lines.append(f"  {_point_text(report.operating_point)}")
    lines += _baseline_lines(report)
    lines += [f"  refused: {site.name}: {site.reason}" for site in report.refused]
    return "\n".join(lines)


def _finding_line(name: str, finding: FindingResult) -> str:
    line = f"  {name}: AUC {_three_digits(finding.test.auc)}, present in {finding.present} of {finding.known}"
    return f"{line}; {_point_text(finding.operating_point)}" if finding.operating_point else line


def _point_text(point: OperatingPoint) -> str:
    """Return a threshold, the sensitivity it was chosen for, and its figures on test data."""
    sensitivity, specificity = (_three_digits(v) for v in (point.decisions.sensitivity, point.decisions.specificity))
    return f"{point.heading}: on test data sensitivity {sensitivity}, specificity {specificity}"


def _baseline_lines(report: Report) -> list[str]:
    """Return lines on the pooled model, on each local baseline, and on patients at several sites."""
    lines = []
    if report.baselines.plaintext_central:
        lines.append(f"  all data in one place, plaintext: AUC {_three_digits(report.baselines.plaintext_central.auc)}")
    everywhere = report.baselines.local_baseline or {}
    for site in report.sites:
        local = site.baselines.local_baseline
        if local is None:
            continue
        federated = _three_digits(site.test.auc if site.test else None)
        own = f"{_three_digits(local.auc)} on its own tests (federated {federated}{_warning(site.gain)})"
        together = f"AUC {_three_digits(everywhere[site.name].auc)}, " if site.name in everywhere else "AUC "
        plaintext = ", plaintext" if report.mode == "simulation" else ""
        lines.append(f"  local baseline of {site.name}{plaintext}: {together}{own}")
    shared = report.shared_patients
    if shared and shared.patients:
        lines.append(
            f"  patients at several sites: {shared.patients}, "
            f"of whom {shared.trained_and_tested} in training at one and in test at another"
        )
    return lines


def _warning(gain: Gain | None) -> str:
    if gain is None or gain.outcome != "worse":
        return ""
    return ": WORSE" if gain.auc is not None else ": WORSE in accuracy"


def _three_digits(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _difference(federated: float | None, local: float | None) -> float | None:
    return None if federated is None or local is None else federated - local


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
