"""HTML page of an experiment, made from its record and its charts alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpp.reporting.page import duration, page_template, scientific
from fedpp.texts import counted

from .paper_settings import NETWORK_NAMES
from .scores import FIGURES, HEADINGS
from .trial import CURVE_SAMPLE

# Settings of some layouts -> the first words of the description of their data (`fedpp.imaging.readers.layout`).
_OF_LAYOUT = {
    "target": ("CheXpert", "MIMIC-CXR", "NIH"),
    "uncertain": ("CheXpert", "MIMIC-CXR"),
    "views": ("CheXpert", "MIMIC-CXR"),
    "series": ("BreakHis",),
}
TEMPLATE = Path(__file__).parent / "templates" / "paper.html.j2"
_DASH = "\N{EN DASH}"


def render(record: Mapping[str, Any], charts: Mapping[str, Sequence[Any]]) -> str:
    """Return the page; `charts` are elements by "accuracy" and "loss", one a network."""
    page = page_template(
        TEMPLATE,
        figure=_figure,
        spread=_spread,
        bounds=_bounds,
        scientific=_scientific,
        duration=duration,
        network=_network,
        counted=counted,
    )
    return page.render(
        record=record,
        charts=charts,
        columns=FIGURES,
        sample=CURVE_SAMPLE,
        headings=HEADINGS,
        settings=_shown_settings(record),
    )


def _shown_settings(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that applied, as texts, without file names of the user's machine."""
    texts, networks = {}, record["settings"]["networks"]
    for name, value in record["settings"].items():
        of_other_data = not record["data"]["described"].startswith(_OF_LAYOUT.get(name, ""))
        if value is None or of_other_data or (name == "lstm" and set(networks) <= {"cnn"}):
            continue
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        texts[name.replace("_", " ").capitalize()] = {"True": "yes", "False": "no"}.get(text, text)
    return texts


def _network(name: str) -> str:
    return NETWORK_NAMES.get(name, name)


def _figure(value: float | None, digits: int = 3) -> str:
    return _DASH if value is None else f"{value:.{digits}f}"


def _spread(summary: Mapping[str, Any], digits: int = 3) -> str:
    return "" if summary["spread"] is None else f"± {summary['spread']:.{digits}f}"


def _bounds(interval: Sequence[float] | None, sign: str = "") -> str:
    if interval is None:
        return _DASH
    low, high = (format(bound, f"{sign}.3f") for bound in interval)
    return f"{low} to {high}".replace(" ", "\N{NO-BREAK SPACE}")


def _scientific(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    return scientific(value)
