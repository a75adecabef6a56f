"""Results in a report: of rounds, sites, findings and baselines, each with its entry in `report.json`."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from fedpp.errors import FederationError
from fedpp.learning.metrics import Metrics, OperatingPoint, metrics, operating_point
from fedpp.protocol.counts import Counts, Matrix
from fedpp.protocol.run_record import RoundRecord


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
    matrix: Matrix | None = None  # confusion on its test split: rows are true classes; None if not opened

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
        parts: dict[str, Any] = {
            "test": _metrics_from(values["test"]),
            "baselines": SiteBaselines.from_mapping(values["baselines"]),
        }
        parts["matrix"] = values["matrix"] and tuple(map(tuple, values["matrix"]))
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
        return cls(known, present, Metrics(**figures), point_from(point))


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
            _metrics_from(values.get("plaintext_federated")),
            _metrics_from(values.get("plaintext_central")),
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


def _difference(federated: float | None, local: float | None) -> float | None:
    return None if federated is None or local is None else federated - local


def _metrics_from(values: Mapping[str, Any] | None) -> Metrics | None:
    return None if values is None else Metrics(**values)


def point_from(values: Mapping[str, Any] | None) -> OperatingPoint | None:
    """Read an operating point's entry of `report.json`, or null."""
    return None if values is None else OperatingPoint.from_mapping(values)


def _figure(value: float | None) -> float:
    return math.nan if value is None else value
