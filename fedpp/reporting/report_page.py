"""HTML page of a report, rendered from the record in `report.json` and `templates/report.html.j2`.

Jinja and Matplotlib are imported when a page is rendered: command lines that import reports must start quickly.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedpp.learning.intervals import Estimate, share
from fedpp.reporting import curve_charts, report_charts
from fedpp.reporting.page import TEMPLATES, duration, page_template, scientific
from fedpp.reporting.report_assessment import VERDICTS
from fedpp.reporting.report_charts import figure

_SPLITS = ("train", "validation", "test")
_MODELS = {
    "local_baseline": "Local baseline",
    "plaintext_central": "All data in one place, plaintext",
    "plaintext_federated": "Federated in plaintext (reference)",
}


def render(record: Mapping[str, Any]) -> str:
    """Return the page of a report's record; equal records give equal pages."""
    from markupsafe import Markup

    page = page_template(
        TEMPLATES / "report.html.j2",
        figure=figure,
        interval=_interval,
        difference=_difference,
        duration=_duration,
        scientific=_scientific,
        words=_words,
        value=_value,
    )
    rounds, sites, parity = record["rounds"], record["sites"], record["parity"]
    patients = [site["patients"] for site in sites]
    names = report_charts.named(rounds)
    loss, quality = report_charts.together(rounds) if rounds else ("", "")
    site_loss, site_auc = report_charts.by_site(rounds, names) if len(names) > 1 else ("", "")
    return page.render(
        record,
        loss_chart=Markup(loss),  # noqa: S704  charts contain no text from users
        quality_chart=Markup(quality),  # noqa: S704
        site_loss_chart=Markup(site_loss),  # noqa: S704
        site_auc_chart=Markup(site_auc),  # noqa: S704
        legend=report_charts.legend(names),
        excluded=_excluded(rounds),
        retried=[row for row in rounds if row["attempt"] > 1],
        tested=sum(site["sequences"].get("test", 0) for site in [site for site in sites if site["test"]] or sites),
        cards=_cards(record),
        verdicts=VERDICTS,
        curve_charts=[_drawn(number, one) for number, one in enumerate(record["assessments"])],
        matrices=[site for site in sites if site["matrix"]],
        per_class=_per_class(record["confusion"]),
        points=_points(record),
        compared=_compared(record),
        gains=[site for site in sites if site["gain"]],
        worse=[site["name"] for site in sites if site["gain"] and site["gain"]["outcome"] == "worse"],
        models=_models(sites),
        patients=None if None in patients else sum(patients),
        totals={split: sum(site["sequences"].get(split, 0) for site in sites) for split in _SPLITS},
        **_parity_facts(parity),
    )


def _drawn(number: int, assessment: Mapping[str, Any]) -> dict[str, Any]:
    from markupsafe import Markup

    drawn = curve_charts.drawn(f"test-{number}", assessment)
    return {name: Markup(chart) for name, chart in drawn.items()}  # noqa: S704  charts contain no text from users


def _per_class(confusion: Mapping[str, Any] | None) -> list[tuple[Estimate, Estimate]]:
    """Return sensitivity and PPV of each class, where there are more than two."""
    if not confusion or len(confusion["classes"]) < 3:
        return []
    rows = confusion["matrix"]
    return [(share(row[k], sum(row)), share(row[k], sum(of[k] for of in rows))) for k, row in enumerate(rows)]


def _interval(estimate: Mapping[str, Any] | Estimate) -> str:
    """Return an estimate with its interval: `0.931 (0.802 to 0.978)`."""
    of = estimate.to_mapping() if isinstance(estimate, Estimate) else estimate
    return figure(of["value"]) + (f" ({figure(of['low'])} to {figure(of['high'])})" if of["value"] is not None else "")


def _cards(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the headline figures, each with the counts that it is computed from."""
    final, reference = record["final"], record["baselines"].get("plaintext_federated")
    details = _of_confusion(record["confusion"]["matrix"]) if record["confusion"] else _of_findings(record["findings"])
    if reference:
        details |= {name: f"plaintext reference {figure(reference[name])}" for name in ("auc", "f1")}
    doubtful = False
    if record["confusion"] and record["assessments"]:
        of = record["assessments"][0]
        auc, doubtful = of["figures"]["auc"], of["in_words"]["verdict"] != "better"
        final = {**final, "auc": auc["value"]}
        details["auc"] = f"{figure(auc['low'])} to {figure(auc['high'])}; 0.5 is chance"
    labels = {"auc": "AUC", "missed_diagnosis_rate": "Missed diagnoses", "f1": "F1"}
    return [
        {"label": labels.get(name, name.capitalize()), "value": final[name], "detail": detail, "doubtful": doubtful}
        for name, detail in details.items()
    ]


def _of_confusion(matrix: Sequence[Sequence[int]]) -> dict[str, str]:
    negatives, tested = sum(matrix[0]), sum(map(sum, matrix))
    positives, missed = tested - negatives, sum(row[0] for row in matrix[1:])
    right = sum(matrix[k][k] for k in range(len(matrix)))
    return {
        "auc": "0.5 is chance",
        "sensitivity": f"{positives - missed} of {positives} positive found",
        "specificity": f"{matrix[0][0]} of {negatives} negative cleared",
        "missed_diagnosis_rate": f"{missed} of {positives} positive missed",
        "f1": "mean of PPV and sensitivity",
        "accuracy": f"{right} of {tested} right; one answer for all: {max(map(sum, matrix))}",
    }


def _of_findings(findings: Mapping[str, Any]) -> dict[str, str]:
    """Return for each figure the number of findings for which it is defined, over which it is averaged."""
    names = ("auc", "sensitivity", "specificity", "missed_diagnosis_rate", "f1", "accuracy")
    defined = {name: sum(finding[name] is not None for finding in findings.values()) for name in names}
    return {name: f"mean of {count} finding{'' if count == 1 else 's'}" for name, count in defined.items()}


def _points(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each operating point: one for each finding, or one for the single label."""
    if record["findings"]:
        points = {name: finding["operating_point"] for name, finding in record["findings"].items()}
    else:
        points = {"All sequences": record["operating_point"]}
    return [{"label": label, **point, "figures": point["decisions"]} for label, point in points.items() if point]


def _compared(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    baselines = record["baselines"]
    rows = {"Federated on ciphertext (this run)": record["final"]}
    rows["Federated in plaintext (reference)"] = baselines.get("plaintext_federated")
    rows["All data in one place, plaintext"] = baselines.get("plaintext_central")
    rows |= {
        f"Local baseline of {site}, plaintext": figures for site, figures in baselines.get("local_baseline", {}).items()
    }
    return [{"label": label, "figures": figures} for label, figures in rows.items() if figures]


def _models(sites: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each model tested on a site's own test split, for the sites that have baselines."""
    rows = []
    for site in sites:
        others = [(label, site["baselines"].get(name)) for name, label in _MODELS.items()]
        if site["test"] and any(figures for _, figures in others):
            models = [("Federated", site["test"]), *others]
            rows += [{"site": site["name"], "label": label, "figures": figures} for label, figures in models if figures]
    return rows


def _excluded(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the sites excluded from rounds, one row for each site and reason, in order of the first round."""
    found: dict[tuple[str, str], list[int]] = {}
    for row in rounds:
        for site, reason in row["excluded"].items():
            found.setdefault((site, reason.removeprefix(f"round {row['round']}: ")), []).append(row["round"])
    return [{"site": site, "reason": reason, "rounds": _ranges(of)} for (site, reason), of in found.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text: `1, 3 to 5`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ", ".join(" to ".join(map(str, ends)) for ends in ranges)


def _parity_facts(parity: Mapping[str, Any] | None) -> dict[str, Any]:
    if not parity:
        return {}
    difference = parity["max_abs_probability_difference"]
    draws = parity["control_probability_differences"]
    control = None if None in draws else max(draws, default=None)
    within = difference is not None and control is not None and difference <= control
    return {"control": control, "within_control": within}


def _difference(value: float | None) -> str:
    """Return a difference with its sign, also if it rounds to zero."""
    if value is None:
        return figure(None)
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}") if value else figure(value)


def _value(setting: str | float) -> str:
    return {True: "yes", False: "no"}[setting] if isinstance(setting, bool) else str(setting)


def _duration(seconds: float | None) -> str:
    return figure(None) if seconds is None else duration(seconds)


def _scientific(value: float | None) -> str:
    if value is None:
        return "not finite"
    return scientific(value) if value else "none"


def _words(name: str) -> str:
    words = re.sub(r"[-_]", " ", name).removesuffix(" seconds")
    return words[:1].upper() + words[1:]
