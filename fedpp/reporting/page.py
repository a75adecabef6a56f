"""HTML pages: the Jinja environment of their templates (`templates/base.html.j2`), and filters that they share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def page_template(file: Path, **filters: Callable[..., Any]) -> "jinja2.Template":
    """Return the template in a file, which may extend `base.html.j2`.

    Every value is escaped; a name without a value raises `jinja2.UndefinedError`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([file.parent, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(file.name)


def duration(seconds: float) -> str:
    """Return seconds as text: 3.2 s, 4 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def scientific(value: float) -> str:
    """Return a number, finite and not zero, as digits times a power of ten, without line breaks."""
    digits, exponent = f"{value:.1e}".split("e")
    power = str(int(exponent)).translate(_SUPERSCRIPTS)
    return f"{digits} \N{MULTIPLICATION SIGN} 10{power}".replace(" ", "\N{NO-BREAK SPACE}")
