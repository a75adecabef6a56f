"""Charts for pages: Matplotlib's SVG in the page's own colours and typeface, with a title and a text alternative."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Matplotlib's colours and the page's variables that replace them, so that charts follow light and dark.
COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    "#040404": "var(--accent)",
    "#050505": "var(--second)",
    "#060606": "var(--third)",
    "#070707": "var(--fourth)",
}
INK, SOFT, LINE, *SERIES = COLOURS
# The values of these variables on paper (`templates/base.html.j2`), for a PNG, which has no variables.
_ON_PAPER = ("#18222d", "#566473", "#d8dee5", "#0b6a88", "#b4500b", "#5a4fb0", "#3d7d31")
PNG_COLOURS = dict(zip(COLOURS, _ON_PAPER, strict=True))
_RC: dict[Any, Any] = {
    "svg.hashsalt": "fedpp",  # equal figures give equal bytes
    "svg.fonttype": "none",  # text stays text, in the page's typeface
    "font.size": 11.0,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "grid.color": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a label with dollar signs is not a formula
}


@contextmanager
def style() -> Iterator[None]:
    """Use the page's chart style in this block, whatever the user's matplotlibrc says."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


@contextmanager
def png_style() -> Iterator[None]:
    """Use the page's chart style with `PNG_COLOURS` in this block."""
    import matplotlib as mpl

    with style():
        mpl.rcParams.update({name: PNG_COLOURS.get(str(value), value) for name, value in _RC.items()})
        yield


def png(figure: "Figure") -> bytes:
    """Return a figure on white as a PNG file; equal figures give equal bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return content.getvalue()


def svg(figure: "Figure", name: str, title: str, description: str) -> Markup:
    """Return a figure as an SVG element; `name` must be unique on its page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    start, rest = text[text.index("<svg") :].split(">", 1)
    start = re.sub(r' (xmlns(:xlink)?|width|height|version)="[^"]*"', "", start)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    for colour, variable in COLOURS.items():
        rest = rest.replace(colour, variable)
    # One page holds several charts: their inner ids must differ.
    rest = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", rest)
    start = start.replace("<svg", f'<svg role="img" aria-labelledby="{name}-title" aria-describedby="{name}-text"', 1)
    label = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>'
    return Markup(f"{start}>{label}{rest}")  # noqa: S704  Matplotlib and `escape` have escaped all texts
