"""Report of a federation: data, figures of the model and of its baselines, times, and what was not protected.

A `Report` is written as `report.json`, and as the page `report.html`, which is made from the JSON record alone.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from fedpp.errors import FederationError
from fedpp.files import replace
from fedpp.learning.metrics import Metrics, OperatingPoint
from fedpp.protocol.counts import SCORE_BINS
from fedpp.reporting.report_assessment import ReportAssessment
from fedpp.reporting.report_privacy import Privacy
from fedpp.reporting.report_results import (
    Baselines,
    Confusion,
    FindingResult,
    Parity,
    RefusedSite,
    RoundResult,
    SharedPatients,
    SiteResult,
    point_from,
)


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
    assessments: tuple[ReportAssessment, ...] = ()  # of the label, or of each finding, on all test splits together
    date: str = ""  # on which the run ended, as in 2026-01-31
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
        values["assessments"] = [assessment.to_mapping() for assessment in self.assessments]
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
                "operating_point": point_from(values["operating_point"]),
                "findings": {name: FindingResult.from_mapping(entry) for name, entry in values["findings"].items()},
                "assessments": tuple(map(ReportAssessment.from_mapping, values["assessments"])),
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


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
