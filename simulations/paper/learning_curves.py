"""Learning curves (figures 4 and 5): accuracy and loss by epoch, in training and validation, on both sides.

A line is the mean over those folds of the first seed that still train; the bands go from the lowest to the highest
fold, on ciphertext where it was run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from fedpp.reporting import charts

from .experiment import Outcome
from .paper_settings import NETWORK_NAMES, Settings
from .trial import CURVES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = {  # part, side -> position in the series' colours, line style: curves differ without colour too
    ("training", "plaintext"): (0, "-"),
    ("training", "ciphertext"): (1, "--"),
    ("validation", "plaintext"): (2, "-"),
    ("validation", "ciphertext"): (3, "--"),
}


@dataclass(frozen=True)
class Curve:
    """Curve of one quantity of a network on one side, by epoch."""

    network: str
    side: str
    name: str  # one of CURVES
    mean: tuple[float, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    folds: tuple[int, ...]  # number that still trained

    @property
    def line(self) -> tuple[str, str]:
        """Return the part of the data, and the side."""
        return self.name.split("_")[0], self.side


def curves(settings: Settings, outcome: Outcome) -> list[Curve]:
    """Return all curves of the first seed's folds."""
    first = [fold for fold in outcome.folds if fold.seed == settings.training.seed]
    found: list[Curve] = []
    for network in settings.networks:
        for side in settings.sides:
            trials = [outcome.trial(network, fold, side) for fold in first]
            of_folds = [trial.curves for trial in trials if trial is not None]
            found += [_curve(network, side, name, [values[name] for values in of_folds]) for name in CURVES]
    return found


def _curve(network: str, side: str, name: str, of_folds: Sequence[Sequence[float]]) -> Curve:
    values = np.full((len(of_folds), max(map(len, of_folds))), np.nan)
    for row, curve in zip(values, of_folds, strict=True):
        row[: len(curve)] = curve
    columns = [values[~np.isnan(values[:, epoch]), epoch] for epoch in range(values.shape[1])]
    mean, lowest, highest = (tuple(float(of(column)) for column in columns) for of in (np.mean, np.min, np.max))
    return Curve(network, side, name, mean, lowest, highest, tuple(map(len, columns)))


def png(kind: str, title: str, all_curves: Sequence[Curve]) -> bytes:
    """Return a figure of all networks side by side; `kind` is "accuracy" or "loss"."""
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(curve.network for curve in all_curves))
    with charts.png_style():
        figure = Figure(figsize=(4.6 * len(networks), 4.2), layout="constrained")
        panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
        for axes, network in zip(panels, networks, strict=True):
            _draw(axes, kind, network, all_curves, charts.PNG_COLOURS)
        figure.suptitle(title, x=0.01, ha="left", fontsize=13)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        return charts.png(figure)


def svg(kind: str, network: str, all_curves: Sequence[Curve]) -> Markup:
    """Return the chart of one network for the page."""
    from matplotlib.figure import Figure

    title = f"{kind.capitalize()} of the {NETWORK_NAMES[network]}"
    with charts.style():
        figure = Figure(figsize=(6.0, 3.9), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, kind, network, all_curves, {colour: colour for colour in charts.COLOURS})
        axes.legend(frameon=False, fontsize=9)
        return charts.svg(figure, f"{kind}-{network}", title, _in_words(_shown(kind, network, all_curves)))


def rows(all_curves: Sequence[Curve]) -> list[Mapping[str, Any]]:
    """Return the curves as rows of a table, one an epoch."""
    return [
        {
            "network": curve.network,
            "side": curve.side,
            "curve": curve.name,
            "epoch": epoch + 1,
            **{name: getattr(curve, name)[epoch] for name in ("folds", "mean", "lowest", "highest")},
        }
        for curve in all_curves
        for epoch in range(len(curve.mean))
    ]


def _shown(kind: str, network: str, all_curves: Sequence[Curve]) -> list[Curve]:
    return [c for c in all_curves if c.network == network and c.name.endswith(kind)]


def _draw(axes: "Axes", kind: str, network: str, all_curves: Sequence[Curve], palette: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    shown = _shown(kind, network, all_curves)
    banded = shown[-1].side
    for curve in shown:
        number, style = _LINES[curve.line]
        colour = palette[charts.SERIES[number]]
        epochs = range(1, len(curve.mean) + 1)
        if curve.side == banded:  # two overlapping bands in similar colours cannot be read
            axes.fill_between(epochs, curve.lowest, curve.highest, color=colour, alpha=0.14, linewidth=0)
        axes.plot(epochs, curve.mean, style, color=colour, label=", ".join(curve.line), linewidth=1.8)
    axes.set_title(NETWORK_NAMES[network], loc="left", fontsize=12)
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Accuracy" if kind == "accuracy" else "Cross entropy, nats")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(axis="y", linewidth=0.8)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    if kind == "accuracy":
        axes.set_ylim(-0.02, 1.02)
    else:
        # without the bands, which may reach far beyond
        highest = max(max(curve.mean) for curve in all_curves if curve.name.endswith(kind))
        axes.set_ylim(0, 1.4 * highest if highest > 0 else 1)


def _in_words(shown: Sequence[Curve]) -> str:
    return " ".join(
        f"{', '.join(curve.line)}: {curve.mean[0]:.3f} in epoch 1, {curve.mean[-1]:.3f} in epoch {len(curve.mean)}."
        for curve in shown
    )
