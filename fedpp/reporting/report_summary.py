"""Summary of a report: its final figures as lines for a terminal."""

from fedpp.learning.metrics import OperatingPoint
from fedpp.reporting.report import Report
from fedpp.reporting.report_assessment import VERDICTS, ReportAssessment
from fedpp.reporting.report_results import FindingResult, Gain
from fedpp.texts import counted, printable


def summary(report: Report) -> str:
    """Return the final figures as lines for a terminal, with those of the plaintext reference if there is one."""
    reference = report.baselines.plaintext_federated
    # With secure aggregation no site's own figures are known, and all sites are tested.
    tested_sites = [site for site in report.sites if site.test] or report.sites
    tested = sum(site.sequences.get("test", 0) for site in tested_sites)
    done = f"{counted(len(report.sites), 'site')}, {counted(len(report.rounds), 'round')}"
    lines = [f"{report.scenario}: {done}, {counted(tested, 'test sequence')}"]
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
    lines += [line for one in report.assessments for line in _words(one, single=len(report.assessments) == 1)]
    lines += [_finding_line(name, finding) for name, finding in report.findings.items()]
    if report.operating_point:
        lines.append(f"  {_point_text(report.operating_point)}")
    lines += _baseline_lines(report)
    lines += [f"  refused: {site.name}: {site.reason}" for site in report.refused]
    return "\n".join(lines)


def _words(one: ReportAssessment, *, single: bool) -> list[str]:
    """Return the verdict on a label or finding and the remarks on it, each a line."""
    of = f'"{one.positive}" against "{one.negative}"' if single else f'"{one.positive}"'
    verdict = printable(f"  {of}: {VERDICTS[one.verdict].lower()}")
    return [verdict, f"    AUC {one.figures['auc']}", *(f"  note: {remark}" for remark in one.remarks)]


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
