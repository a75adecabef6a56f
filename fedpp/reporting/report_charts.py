"""Charts of a report's page: validation figures by round, of all hospitals together and of each.

Names of sites stand in an HTML legend, since Matplotlib's typeface may lack their script.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpp.reporting import charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {"s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}  # Matplotlib's marker -> as text
_DASHES = {"--": "dashed", ":": "dotted", "-.": "dashed"}  # Matplotlib's line style -> CSS
_MAX_NAMED = 15  # hospitals whose curves can differ; with more, no curve is named


@dataclass(frozen=True)
class _Curve:
    label: str
    values: Sequence[float | None]
    style: str  # a Matplotlib format: curves differ in more than colour
    colour: str
    width: float = 1.5


def together(rounds: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the charts of all hospitals together: loss, and the other figures."""
    styles = {"auc": "o-", "sensitivity": "s--", "specificity": "^:", "accuracy": "D-."}
    labels = {"auc": "AUC", **{name: name.capitalize() for name in ("sensitivity", "specificity", "accuracy")}}
    loss = (_Curve("Loss", [row["val_loss"] for row in rounds], "o-", charts.SERIES[0]),)
    quality = [
        _Curve(labels[name], [row[name] for row in rounds], style, colour)
        for (name, style), colour in zip(styles.items(), charts.SERIES, strict=True)
    ]
    numbers = [row["round"] for row in rounds]
    return (
        _chart("loss", "Validation loss by round", numbers, loss, limits=None, named_curves=False),
        _chart("quality", "Validation quality by round", numbers, quality, limits=(0.0, 1.0), named_curves=True),
    )


def named(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the sites that reported figures in any round, in order of their first report."""
    return list(dict.fromkeys(name for row in rounds for name in row["by_site"]))


def _look(number: int) -> tuple[str, str, str]:
    """Return marker, line style and colour of a site's curve: 3 colours and 5 markers give 15 different curves."""
    markers, dashes, colours = list(_MARKERS), list(_DASHES), charts.SERIES[1:]
    return markers[number % len(markers)], dashes[number % len(dashes)], colours[number % len(colours)]


def by_site(rounds: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[str, str]:
    """Return the charts of the sites' losses and AUCs, with those of all together; `legend` has their names."""
    numbers = [row["round"] for row in rounds]

    def chart(name: str, title: str, figure: str, total: str, limits: tuple[float, float] | None) -> str:
        curves = []
        for number, site in enumerate(names):
            values = [row["by_site"].get(site, {}).get(figure) for row in rounds]
            marker, dashes, colour = _look(number) if len(names) <= _MAX_NAMED else ("", "-", charts.SOFT)
            curves.append(_Curve(site, values, marker + dashes, colour, width=1.0))
        together = _Curve("All hospitals", [row[total] for row in rounds], "o-", charts.SERIES[0], width=2.5)
        return _chart(name, title, numbers, [*curves, together], limits=limits, named_curves=False)

    return (
        chart("site-loss", "Validation loss of each hospital", "loss", "val_loss", None),
        chart("site-auc", "Validation AUC of each hospital", "auc", "auc", (0.0, 1.0)),
    )


def legend(names: Sequence[str]) -> list[dict[str, str]]:
    """Return label, marker, CSS border style and colour of each curve in the sites' charts."""
    total = {"label": "All hospitals", "marker": "●", "dashes": "solid", "colour": charts.COLOURS[charts.SERIES[0]]}
    if len(names) > _MAX_NAMED:
        each = f"each of {len(names)} hospitals"
        return [total, {"label": each, "marker": "", "dashes": "solid", "colour": charts.COLOURS[charts.SOFT]}]
    looks = zip(names, map(_look, range(len(names))), strict=True)
    return [
        total,
        *(
            {"label": name, "marker": _MARKERS[marker], "dashes": _DASHES[dashes], "colour": charts.COLOURS[colour]}
            for name, (marker, dashes, colour) in looks
        ),
    ]


def _chart(
    name: str,
    title: str,
    rounds: Sequence[int],
    curves: Sequence[_Curve],
    *,
    limits: tuple[float, float] | None,
    named_curves: bool,
) -> str:
    from matplotlib.figure import Figure

    with charts.style():
        drawn = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = drawn.add_subplot()
        for curve in curves:
            values = [math.nan if value is None else value for value in curve.values]
            (line,) = axes.plot(rounds, values, curve.style, color=curve.colour, linewidth=curve.width, markersize=5)
            line.set_label(curve.label if named_curves else "")
        _style_axes(axes, title, limits)
        if named_curves:
            drawn.legend(frameon=False, ncols=4, loc="outside lower center", fontsize=10)
        return charts.svg(drawn, name, title, _description(rounds, curves))


def _style_axes(axes: "Axes", title: str, limits: tuple[float, float] | None) -> None:
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


def _description(rounds: Sequence[int], curves: Sequence[_Curve]) -> str:
    return " ".join(
        f"{curve.label}: {figure(curve.values[0])} in round {rounds[0]}, "
        f"{figure(curve.values[-1])} in round {rounds[-1]}."
        for curve in curves
    )


def figure(value: float | None) -> str:
    """Return a figure with three digits, or a dash for None."""
    return "–" if value is None else f"{value:.3f}"  # noqa: RUF001  an en dash
