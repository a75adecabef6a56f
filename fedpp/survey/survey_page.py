"""HTML page of a survey with its charts and thumbnails, for the secret zone."""

import os
import warnings
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fedpp.errors import ConfigError
from fedpp.files import create_exclusively, replace
from fedpp.imaging.account import Outcome
from fedpp.reporting import charts
from fedpp.reporting.page import TEMPLATES, page_template
from fedpp.survey.facts import Survey, Thumbnails

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_FILES = 5000  # rows of a table, so that browsers can open the page
MAX_PAIRS = 200
MAX_LABELS = 32
_BARS = 12
_LETTERS = 28  # of a label under a bar


def require_new(path: Path, *, overwrite: bool, option: str = "--out") -> None:
    """Raise `ConfigError` before work starts if a page exists and must not be replaced, or cannot be written.

    `option` names the page on the command line.
    """
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(f"{path} exists: choose another name, or replace it with --overwrite")
    if path.parent.exists() and not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write {path}: its folder is not yours to write in: choose another {option}")


def write(path: Path, survey: Survey, *, overwrite: bool = False) -> None:
    """Write the page, mode 0600; raise `ConfigError` if it exists and must not be replaced."""
    write_page(path, render(survey), overwrite=overwrite)


def write_page(path: Path, page: str, *, overwrite: bool, option: str = "--out") -> None:
    """Write a page of the secret zone as `write` does."""
    try:
        (replace if overwrite else create_exclusively)(path, page.encode())
    except OSError as error:
        require_new(path, overwrite=overwrite, option=option)
        raise ConfigError(f"cannot write {path}: {error.strerror}: choose another {option}") from None


def render(survey: Survey) -> str:
    """Return the page; the same survey gives the same text."""
    page = page_template(TEMPLATES / "survey.html.j2", title_case=_title, sentence=_sentence, path=_path)
    remarked = [file for file in survey.files if file.outcome == Outcome.LOST or file.suspicion or file.blank]
    marked = {file.path for file in remarked}
    return page.render(
        survey=survey,
        name=Path(survey.raw).name or survey.raw,
        cards=_cards(survey),
        charts=_charts(survey),
        facts=_facts(survey) if survey.sequences else {},
        visits=survey.unlabelled_visits is not None,
        samples=list(map(_sample, sorted(survey.thumbnails, key=lambda shown: (shown.label or "", shown.path)))),
        pairs=sorted(survey.duplicates, key=lambda pair: (pair.one_patient, not pair.same)),
        remarked=sorted(remarked, key=lambda file: file.outcome != Outcome.LOST),
        plain=[file for file in survey.files if file.path not in marked],
        most_files=MAX_FILES,
        most_pairs=MAX_PAIRS,
        most_labels=MAX_LABELS,
    )


def _cards(survey: Survey) -> dict[str, int]:
    return {
        "Sequences": survey.sequences,
        "Patients": survey.patients,
        "Images": survey.frames,
        "Files read": survey.count(Outcome.READ),
        "Files lost": survey.count(Outcome.LOST),
        "Issues": len(survey.issues),
    }


def _facts(survey: Survey) -> dict[str, str]:
    size, *others = survey.sizes
    sizes = {"Different sizes": str(len(survey.sizes))} if others else {"Size of all": size}
    shortest, longest = min(survey.lengths), max(survey.lengths)
    facts = {
        "Images in a sequence": f"{shortest} to {longest}" if shortest < longest else str(shortest),
        "Sequences of one image": str(survey.lengths.get(1, 0)),
        **sizes,
    }
    if survey.gaps is None:
        return {**facts, "Days between images": "not known"}
    low, first, middle, third, high = (f"{value:.4g}" for value in survey.gaps.quartiles)
    return {
        **facts,
        "Days between images, median": middle,
        "Half of them between": f"{first} and {third}",
        "Shortest and longest": f"{low} and {high}",
        "Images dated before their predecessor": str(survey.gaps.backward),
    }


def _sample(shown: Thumbnails) -> dict[str, Any]:
    places = {1: ("only",), 2: ("first", "last")}.get(len(shown.images), ("first", "middle", "last"))
    images = [{"uri": data_uri(image), "place": place} for image, place in zip(shown.images, places, strict=True)]
    return {"label": shown.label, "path": shown.path, "frames": shown.frames, "images": images}


def data_uri(png: bytes) -> str:
    """Return a picture as an address that holds it, so that a page loads nothing."""
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _charts(survey: Survey) -> dict[str, Markup | None]:
    drawn: dict[str, Markup | None] = dict.fromkeys(("labels", "lengths", "sizes", "gaps"))
    if survey.labels:
        series = {"Sequences": "sequences", "Patients": "patients"}
        if survey.unlabelled_visits is not None:
            series["Visits"] = "visits"
        most = sorted(survey.labels, key=lambda label: -label.sequences)[:_BARS]
        counts = {name: [getattr(label, field) for label in most] for name, field in series.items()}
        drawn["labels"] = _bars("labels", "How often each label occurs", [label.label for label in most], counts)
    if len(survey.lengths) > 1:
        lengths = _binned(survey.lengths)
        drawn["lengths"] = _columns("lengths", "Sequences by their number of images", lengths)
    if len(survey.sizes) > 1:
        sizes = dict(list(survey.sizes.items())[:_BARS])
        drawn["sizes"] = _bars("sizes", "Images by size", list(sizes), {"Images": list(sizes.values())})
    if survey.gaps is not None:
        drawn["gaps"] = _columns("gaps", "Days from one image to the next", survey.gaps.classes)
    return drawn


def _binned(lengths: Mapping[int, int]) -> dict[str, int]:
    """Return a few lengths as they are, many in classes that double: 1, 2, 3-4, 5-8, and so on."""
    if len(lengths) <= _BARS:
        return {str(length): count for length, count in lengths.items()}
    classes: dict[str, int] = {}
    for length, count in lengths.items():
        end = 1 << (length - 1).bit_length()
        name = str(end) if end <= 2 else f"{end // 2 + 1}\N{EN DASH}{end}"
        classes[name] = classes.get(name, 0) + count
    return classes


def _bars(name: str, title: str, labels: Sequence[str], series: Mapping[str, Sequence[int]]) -> Markup:
    """Draw horizontal bars, one group for each label."""
    from matplotlib.figure import Figure

    with charts.style(), warnings.catch_warnings(action="ignore"):  # letters that its measuring font lacks
        figure = Figure(figsize=(6.4, 1.4 + 0.26 * len(series) * len(labels)), layout="constrained")
        axes = figure.add_subplot()
        thickness = 0.8 / len(series)
        for position, ((heading, values), colour) in enumerate(zip(series.items(), charts.SERIES, strict=False)):
            places = [row + (position - (len(series) - 1) / 2) * thickness for row in range(len(labels))]
            drawn = axes.barh(places, values, thickness * 0.9, color=colour, label=heading)
            axes.bar_label(drawn, padding=4, fontsize=10)
        axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        _dress(axes, title)
        if len(series) > 1:
            figure.legend(loc="outside lower left", frameon=False, ncols=len(series), fontsize=10)
        return charts.svg(figure, name, title, _as_text(labels, series))


def _columns(name: str, title: str, counts: Mapping[str, int]) -> Markup:
    """Draw a histogram of named classes."""
    from matplotlib.figure import Figure

    with charts.style():
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        drawn = axes.bar(range(len(counts)), list(counts.values()), 0.85, color=charts.SERIES[0])
        axes.bar_label(drawn, padding=2, fontsize=10)
        slanted = max(map(len, counts)) > 7
        axes.set_xticks(
            range(len(counts)), list(counts), rotation=30 if slanted else 0, ha="right" if slanted else "center"
        )
        axes.margins(y=0.12)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        _dress(axes, title)
        return charts.svg(figure, name, title, _as_text(list(counts), {"Count": list(counts.values())}))


def _dress(axes: "Axes", title: str) -> None:
    axes.set_title(title, loc="left", fontsize=12)
    axes.tick_params(length=0)


def _as_text(labels: Sequence[str], series: Mapping[str, Sequence[int]]) -> str:
    rows = zip(labels, *series.values(), strict=True)
    names = [name.lower() for name in series]
    return "; ".join(
        f"{label}: {', '.join(f'{value} {name}' for value, name in zip(values, names, strict=True))}"
        for label, *values in rows
    )


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"


def _title(kind: str) -> str:
    return _sentence(kind.replace("-", " ")).removesuffix(".")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('?', '.')) else '.'}"


def _path(path: str) -> Markup:
    """Let a long path break after its slashes."""
    return Markup("/<wbr>").join(path.split("/"))
