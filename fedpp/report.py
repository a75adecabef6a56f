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
from fedpp.protocol.counts import Counts, Matrix


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
    """One round: the sites that took part, the figures on all their validation splits, and its duration."""

    round: int
    sites: tuple[str, ...]
    validation: Metrics
    seconds: float

    def to_mapping(self) -> dict[str, Any]:
        """Return the row of `report.json`; the loss is called `val_loss` there."""
        figures = self.validation.to_mapping()
        loss = figures.pop("loss")
        row = {"round": self.round, "sites": list(self.sites), "val_loss": loss}
        return {**row, **figures, "seconds": self.seconds}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        figures = dict(values)
        number, sites, seconds = (figures.pop(name) for name in ("round", "sites", "seconds"))
        return cls(number, tuple(sites), Metrics(loss=figures.pop("val_loss"), **figures), seconds)


@dataclass(frozen=True)
class SiteResult:
    """One admitted site: its data, and the final model's figures on its own test split."""

    name: str
    patients: int | None  # None where the site does not tell
    sequences: Mapping[str, int]  # split -> sequences
    test: Metrics | None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read the entry of `report.json`."""
        return cls(**{**values, "test": _metrics(values["test"])})


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
class LocalResult:
    """The figures of a model that was trained at one site alone."""

    together: Metrics  # on all sites' test splits together, as every other baseline
    own: Metrics  # on the site's own test split

    def to_mapping(self) -> dict[str, Any]:
        """Return the entry of `report.json`: the figures on all test splits, and `own_test`."""
        return {**self.together.to_mapping(), "own_test": self.own.to_mapping()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        figures = dict(values)
        own = Metrics(**figures.pop("own_test"))
        return cls(Metrics(**figures), own)


@dataclass(frozen=True)
class Baselines:
    """The same task trained otherwise, on the same splits; None where it was not asked for.

    All start from the federation's initial weights and train for its rounds and local epochs; the number of steps
    follows from how many sequences are in one place.
    """

    plaintext_federated: Metrics | None = None
    plaintext_central: Metrics | None = None
    local_only: Mapping[str, LocalResult] | None = None  # by site

    def to_mapping(self) -> dict[str, Any]:
        """Return those that were asked for."""
        federated, central, alone = self.plaintext_federated, self.plaintext_central, self.local_only
        entries: dict[str, Any] = {
            "plaintext_federated": federated and federated.to_mapping(),
            "plaintext_central": central and central.to_mapping(),
            "local_only": None if alone is None else {site: entry.to_mapping() for site, entry in alone.items()},
        }
        return {name: entry for name, entry in entries.items() if entry is not None}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        alone = values.get("local_only")
        return cls(
            _metrics(values.get("plaintext_federated")),
            _metrics(values.get("plaintext_central")),
            None if alone is None else {site: LocalResult.from_mapping(entry) for site, entry in alone.items()},
        )


@dataclass(frozen=True)
class SharedPatients:
    """Patients of more than one site, found by their pseudonyms; each counts once at each of its sites."""

    patients: int
    trained_and_tested: int  # of them: in training at one site and in test at another, so that a test is no test
    central_left_out: int | None = None  # training sequences kept from the pooled baseline for that reason


@dataclass(frozen=True)
class Parity:
    """How far the federation is from its plaintext twin: same initial weights, batches and arithmetic.

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
    settings: Mapping[str, str | int | float] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)  # name -> seconds
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return the record; a figure that is not finite becomes None, since JSON has no such number."""
        values = asdict(self)
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
    from fedpp.report_page import render

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
    """Return the final figures as lines for a terminal, beside the plaintext twin's where there is one."""
    twin = report.baselines.plaintext_federated
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
        lines.append(line + (f"   plaintext {_three_digits(getattr(twin, name))}" if twin else ""))
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
    """Return lines on the pooled and the local baselines, and on patients of several sites."""
    lines = []
    if report.baselines.plaintext_central:
        lines.append(f"  all data in one place, plaintext: AUC {_three_digits(report.baselines.plaintext_central.auc)}")
    joined = {site.name: site.test.auc if site.test else None for site in report.sites}
    for site, alone in (report.baselines.local_only or {}).items():
        own = f"{_three_digits(alone.own.auc)} on its own tests (federated {_three_digits(joined.get(site))})"
        lines.append(f"  {site} alone, plaintext: AUC {_three_digits(alone.together.auc)}, {own}")
    shared = report.shared_patients
    if shared and shared.patients:
        lines.append(
            f"  patients at several sites: {shared.patients}, "
            f"of whom {shared.trained_and_tested} in training at one and in test at another"
        )
    return lines


def _three_digits(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


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
