"""Report of a finished federation, from its `federation.json` alone; not part of the app bundle."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.config.run_config import SPLITS
from fedpp.errors import ConfigError, FederationError
from fedpp.learning.assessment import Assessment
from fedpp.learning.metrics import OperatingPoint, metrics, operating_point
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.label_counts import described
from fedpp.protocol.run_record import RECORD, FederationRecord
from fedpp.protocol.site_description import SiteDescription
from fedpp.reporting.report import Report, write_report
from fedpp.reporting.report_assessment import ReportAssessment
from fedpp.reporting.report_privacy import privacy_of
from fedpp.reporting.report_results import Confusion, FindingResult, RefusedSite, RoundResult, SiteBaselines, SiteResult

if TYPE_CHECKING:
    from fedpp.learning.exact_metrics import Predictions

BALANCED = "balanced loss"  # the setting that says how training labels weigh
WRITTEN = ("report.json", "report.html")


def write(out: Path, *, sensitivity: float, overwrite: bool) -> Report:
    """Write the report of the federation in `out` beside its record; raise `ConfigError` if there is one already."""
    present = [name for name in WRITTEN if (out / name).exists()]
    if present and not overwrite:
        raise ConfigError(f"{out} holds {' and '.join(present)} already: --overwrite replaces them")
    made = report_of(FederationRecord.load(out / RECORD), sensitivity, written_on(out / RECORD))
    write_report(out, made)
    return made


def written_on(record: Path) -> str:
    """Return the date (UTC) on which a run wrote its record, which is when it ended."""
    return datetime.fromtimestamp(record.stat().st_mtime, UTC).date().isoformat()


def report_of(
    record: FederationRecord, sensitivity: float, date: str = "", predictions: Sequence["Predictions"] = ()
) -> Report:
    """Return the report of a federation, with operating points for this sensitivity on validation data.

    A simulation has the predictions of all test splits at hand, of the label or of each finding, for exact curves.
    """
    if not (record.sites and record.rounds and (record.test or record.counts)):
        raise FederationError(
            f"the record of run {record.run} has no site, no round or no test: it is not a finished run"
        )
    task, tested = record.sites[0].task, record.test_counts()
    return Report(
        scenario=f"run {record.run}",
        seed=record.seed,
        scheme=record.scheme,
        n=record.sites[0].n,
        dtype=record.dtype,
        mode="deployment",
        data=f"Each hospital's own images: {task}.",
        sites=tuple(_site(site, record) for site in record.sites),
        rounds=tuple(map(RoundResult.of, record.rounds)),
        final=metrics(tested),
        date=date,
        privacy=privacy_of(
            masked=record.masked,
            two_sites=len(record.sites) == 2,
            changes=record.changes,
            lifted=record.lifted,
        ),
        **_decisions(task.classes, record.result_round().together, tested, sensitivity, predictions),
        refused=tuple(RefusedSite(name, reason) for name, reason in record.refused.items()),
        settings={
            **record.settings,
            **({BALANCED: described(record.labels, task)} if record.labels else {}),
            "parameters": record.network.parameters(),
            "wanted sensitivity": sensitivity,
        },
        timing={"rounds": sum(r.seconds for r in record.rounds), "total": record.seconds},
        versions={"app bundle, SHA-256": record.bundle},
    )


def _site(site: SiteDescription, record: FederationRecord) -> SiteResult:
    test, alone = (
        metrics(counts[site.name]) if site.name in counts else None for counts in (record.test, record.local_baseline)
    )
    sequences = dict(zip(SPLITS, site.sequences, strict=True))
    counts = record.test.get(site.name)
    matrix = counts.confusion if isinstance(counts, Counts) else None
    return SiteResult(site.name, sum(site.patients), sequences, test, SiteBaselines(local_baseline=alone), matrix)


def _decisions(
    classes: tuple[str, ...],
    validation: AnyCounts,
    tested: AnyCounts,
    sensitivity: float,
    predictions: Sequence["Predictions"],
) -> dict[str, Any]:
    """Return the report's confusion and operating point, or its findings."""
    if isinstance(tested, FindingCounts) and isinstance(validation, FindingCounts):
        of_each = list(zip(classes, validation.findings, tested.findings, strict=True))
        results = {name: FindingResult.of(chosen, found, sensitivity) for name, chosen, found in of_each}
        exact: Sequence[Predictions | None] = predictions or [None] * len(of_each)
        assessments = tuple(
            _assessed(found, (name,), results[name].operating_point, of, finding=True)
            for (name, _, found), of in zip(of_each, exact, strict=True)
        )
        return {"confusion": None, "findings": results, "assessments": assessments}
    if isinstance(tested, FindingCounts) or isinstance(validation, FindingCounts):
        raise FederationError("counts of one label and of several findings do not belong to one federation")
    point = operating_point(validation, tested, sensitivity)
    return {
        "confusion": Confusion(classes, tested.confusion),
        "operating_point": point,
        "assessments": (_assessed(tested, classes, point, next(iter(predictions), None)),),
    }


def _assessed(
    tested: Counts,
    classes: tuple[str, ...],
    point: OperatingPoint | None,
    predictions: "Predictions | None",
    *,
    finding: bool = False,
) -> ReportAssessment:
    """Return the assessment of single predictions where they are at hand, or else of the counts."""
    made = (
        predictions.assessment(classes, finding=finding, point=point)
        if predictions
        else Assessment.of_counts(tested, classes, finding=finding, point=point)
    )
    return ReportAssessment.of(made, predictions)
