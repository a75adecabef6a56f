"""The page of a report: its charts and its HTML, from the record in `report.json` alone.

Jinja and Matplotlib are loaded when a page is made, since every command line imports what leads here.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpp import charts
from fedpp.page import STYLE, duration, scientific, template
from fedpp.report_template import TEMPLATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class _Curve:
    label: str
    values: Sequence[float | None]
    style: str  # a Matplotlib format, so that curves differ without colour too


def render(record: Mapping[str, Any]) -> str:
    """Return the page of a report's record; the same record gives the same text."""
    from markupsafe import Markup

    page = template(TEMPLATE, figure=_figure, duration=_duration, scientific=_scientific, words=_words)
    rounds, sites, parity = record["rounds"], record["sites"], record["parity"]
    patients = [site["patients"] for site in sites]
    loss, quality = _charts(rounds) if rounds else ("", "")
    return page.render(
        record,
        title=f"fedpp report: {record['scenario']}",
        images="",
        style=Markup(STYLE),  # noqa: S704
        loss_chart=Markup(loss),  # noqa: S704  no text of a user's stands in a chart
        quality_chart=Markup(quality),  # noqa: S704
        tested=sum(site["sequences"].get("test", 0) for site in sites if site["test"]),
        cards=_cards(record),
        points=_points(record),
        compared=_compared(record),
        joined=_joined(record),
        patients=None if None in patients else sum(patients),
        totals={split: sum(site["sequences"].get(split, 0) for site in sites) for split in _SPLITS},
        **_judged(parity),
    )


def _cards(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the headline figures, each with the numbers behind it."""
    final, twin = record["final"], record["baselines"].get("plaintext_federated")
    details = _of_confusion(record["confusion"]["matrix"]) if record["confusion"] else _of_findings(record["findings"])
    if twin:
        details |= {name: f"plaintext twin {_figure(twin[name])}" for name in ("auc", "f1")}
    labels = {"auc": "AUC", "missed_diagnosis_rate": "Missed diagnoses", "f1": "F1"}
    return [
        {"label": labels.get(name, name.capitalize()), "value": final[name], "detail": detail}
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
        "f1": "precision with sensitivity",
        "accuracy": f"{right} of {tested} right",
    }


def _of_findings(findings: Mapping[str, Any]) -> dict[str, str]:
    """Say of each figure over how many findings it is a mean: it is not defined where a finding lacks what it needs."""
    names = ("auc", "sensitivity", "specificity", "missed_diagnosis_rate", "f1", "accuracy")
    defined = {name: sum(finding[name] is not None for finding in findings.values()) for name in names}
    return {name: f"mean of {count} finding{'' if count == 1 else 's'}" for name, count in defined.items()}


def _points(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each operating point: of each finding, or of the one label."""
    if record["findings"]:
        points = {name: finding["operating_point"] for name, finding in record["findings"].items()}
    else:
        points = {"All sequences": record["operating_point"]}
    return [{"label": label, **point, "figures": point["decisions"]} for label, point in points.items() if point]


def _compared(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    baselines = record["baselines"]
    rows = {"Federated on ciphertext (this run)": record["final"]}
    rows["Federated in plaintext (twin)"] = baselines.get("plaintext_federated")
    rows["All data in one place, plaintext"] = baselines.get("plaintext_central")
    rows |= {f"{site} alone, plaintext": figures for site, figures in baselines.get("local_only", {}).items()}
    return [{"label": label, "figures": figures} for label, figures in rows.items() if figures]


def _joined(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each site its own test split's AUC, of the model trained there alone and of the federation's."""
    alone = record["baselines"].get("local_only", {})
    return [
        {"label": site["name"], "alone": alone[site["name"]]["own_test"]["auc"], "federated": site["test"]["auc"]}
        for site in record["sites"]
        if site["name"] in alone and site["test"]
    ]


def _judged(parity: Mapping[str, Any] | None) -> dict[str, Any]:
    if not parity:
        return {}
    difference = parity["max_abs_probability_difference"]
    draws = parity["control_probability_differences"]
    control = None if None in draws else max(draws, default=None)
    within = difference is not None and control is not None and difference <= control
    return {"control": control, "within_control": within}


def _charts(rounds: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    def curve(label: str, name: str, style: str) -> _Curve:
        return _Curve(label, [row[name] for row in rounds], style)

    numbers = [row["round"] for row in rounds]
    loss = (curve("Loss", "val_loss", "o-"),)
    quality = (
        curve("AUC", "auc", "o-"),
        curve("Sensitivity", "sensitivity", "s--"),
        curve("Specificity", "specificity", "^:"),
        curve("Accuracy", "accuracy", "D-."),
    )
    return (
        _chart("loss", "Validation loss by round", numbers, loss, limits=None),
        _chart("quality", "Validation quality by round", numbers, quality, limits=(0.0, 1.0)),
    )


def _chart(
    name: str,
    title: str,
    rounds: Sequence[int],
    curves: Sequence[_Curve],
    limits: tuple[float, float] | None,
) -> str:
    from matplotlib.figure import Figure

    with charts.style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for curve, colour in zip(curves, charts.SERIES, strict=False):
            values = [math.nan if value is None else value for value in curve.values]
            axes.plot(rounds, values, curve.style, color=colour, label=curve.label, markersize=5)
        _dress(axes, title, limits)
        if len(curves) > 1:
            axes.legend(frameon=False, ncols=2, loc="lower right", fontsize=10)
        return charts.svg(figure, name, title, _in_words(rounds, curves))


def _dress(axes: "Axes", title: str, limits: tuple[float, float] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=12)
    axes.set_xlabel("Round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.grid(axis="y", linewidth=0.8)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    if limits:
        axes.set_ylim(limits[0] - 0.02, limits[1] + 0.02)
    else:
        axes.set_ylim(0, 1.08 * axes.dataLim.ymax if axes.dataLim.ymax > 0 else 1)


def _in_words(rounds: Sequence[int], curves: Sequence[_Curve]) -> str:
    return " ".join(
        f"{curve.label}: {_figure(curve.values[0])} in round {rounds[0]}, "
        f"{_figure(curve.values[-1])} in round {rounds[-1]}."
        for curve in curves
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"  # noqa: RUF001  an en dash, as tables have it


def _duration(seconds: float | None) -> str:
    return _figure(None) if seconds is None else duration(seconds)


def _scientific(value: float | None) -> str:
    if value is None:
        return "not finite"
    return scientific(value) if value else "none"


def _words(name: str) -> str:
    words = re.sub(r"[-_]", " ", name).removesuffix(" seconds")
    return words[:1].upper() + words[1:]
