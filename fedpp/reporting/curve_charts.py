"""Charts of a model's test: ROC, precision-recall and calibration curve, each with the line of chance.

Names of sides stand in the captions, since Matplotlib's typeface may lack their script.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedpp.reporting import charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 5  # points of a curve that its text alternative tells


def drawn(name: str, assessment: Mapping[str, Any]) -> dict[str, str]:
    """Return the three charts of an assessment's entry in `report.json`; none where it has no curves."""
    curves = assessment["curves"]
    if curves is None:
        return {}
    return {
        "roc": _roc(f"{name}-roc", curves, assessment),
        "precision_recall": _precision_recall(f"{name}-pr", curves, assessment),
        "calibration": _calibration(f"{name}-calibration", curves),
    }


def _roc(name: str, curves: Mapping[str, Any], assessment: Mapping[str, Any]) -> str:
    x, y = curves["false_positive_rate"], curves["sensitivity"]
    figures = [assessment[of] for of in ("figures", "at_threshold")]
    marks = [(1 - of["specificity"]["value"], of["sensitivity"]["value"]) for of in figures if of]

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], "--", color=charts.SOFT, linewidth=1.2)
        axes.text(0.66, 0.5, "chance", color=charts.SOFT, fontsize=10)
        axes.plot(x, y, "-", color=charts.SERIES[0], linewidth=2)
        _mark(axes, marks)

    return _chart(name, "ROC curve", ("False positive rate (1 - specificity)", "Sensitivity"), draw, _told(x, y))


def _precision_recall(name: str, curves: Mapping[str, Any], assessment: Mapping[str, Any]) -> str:
    x, y, prevalence = curves["recall"], curves["precision"], assessment["prevalence"]["value"]
    figures = [assessment[of] for of in ("figures", "at_threshold")]
    marks = [
        (of["sensitivity"]["value"], of["precision"]["value"])
        for of in figures
        if of and of["precision"]["value"] is not None
    ]

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [prevalence, prevalence], "--", color=charts.SOFT, linewidth=1.2)
        axes.text(0.02, prevalence + 0.02, "chance: the prevalence", color=charts.SOFT, fontsize=10)
        axes.step(x, y, "-", where="post", color=charts.SERIES[0], linewidth=2)
        _mark(axes, marks)

    return _chart(name, "Precision-recall curve", ("Recall (sensitivity)", "Precision (PPV)"), draw, _told(x, y))


def _calibration(name: str, curves: Mapping[str, Any]) -> str:
    x, y = curves["predicted_probability"], curves["observed_share"]

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], "--", color=charts.SOFT, linewidth=1.2)
        axes.text(0.66, 0.5, "as predicted", color=charts.SOFT, fontsize=10)
        axes.plot(x, y, "o-", color=charts.SERIES[0], linewidth=1.5, markersize=6)

    return _chart(name, "Calibration", ("Predicted probability", "Share that is positive"), draw, _told(x, y))


def _mark(axes: "Axes", points: Sequence[tuple[float, float]]) -> None:
    """Mark the threshold of one half by a square, and the operating point by a triangle."""
    for (x, y), marker, colour in zip(points, "s^", charts.SERIES[1:3], strict=False):
        axes.plot([x], [y], marker, color=colour, markersize=9)


def _chart(name: str, title: str, labels: tuple[str, str], draw: "Any", told: str) -> str:
    from matplotlib.figure import Figure

    with charts.style():
        figure = Figure(figsize=(4.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title, loc="left", fontsize=12)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.04)
        axes.grid(linewidth=0.6)
        axes.tick_params(length=0)
        axes.set_axisbelow(True)
        return charts.svg(figure, name, title, f"{labels[1]} by {labels[0].lower()}: {told}.")


def _told(x: Sequence[float], y: Sequence[float]) -> str:
    """Return some points of a curve as text, its ends among them."""
    last = len(x) - 1
    shown = sorted({round(k * last / (_SHOWN - 1)) for k in range(_SHOWN)}) if last > 0 else range(len(x))
    return ", ".join(f"{y[k]:.2f} at {x[k]:.2f}" for k in shown)
