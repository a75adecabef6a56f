"""HTML pages: the Jinja environment of their templates (`templates/base.html.j2`), and filters that they share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"

HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'{{ images }}">
<title>{{ title }}</title>
<style>
{{ style }}
</style>
</head>
"""

STYLE = """\
:root {
  --paper: #ffffff; --panel: #f5f7f9; --ink: #18222d; --soft: #566473; --line: #d8dee5;
  --accent: #0b6a88; --second: #b4500b; --third: #5a4fb0; --fourth: #3d7d31; --warn: #a3321f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12181f; --panel: #1a222b; --ink: #e6ebf0; --soft: #9dabb9; --line: #313c48;
    --accent: #57bcd9; --second: #f0a05f; --third: #a9a1f2; --fourth: #8bcb7a; --warn: #f29181;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 71rem; padding: 2.5rem clamp(1rem, 4vw, 3rem) 3rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { margin: 0 0 .5rem; font-size: clamp(1.7rem, 4vw, 2.4rem); line-height: 1.15; letter-spacing: -.015em; }
h2 { margin: 0 0 .5rem; font-size: 1.3rem; line-height: 1.25; letter-spacing: -.01em; }
h3 { margin: 0 0 .4rem; font-size: 1rem; }
p { margin: 0 0 1rem; }
section { margin-top: 2.75rem; }
.kicker { margin: 0 0 .35rem; color: var(--accent); font-weight: 600; font-size: .9rem; }
.lead { max-width: 46rem; font-size: 1.15rem; }
.note, figcaption, footer { color: var(--soft); font-size: .92rem; }
.note { max-width: 46rem; }
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 1.25rem 0 0; padding: .9rem 0;
  border-block: 1px solid var(--line); }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.2rem, 1fr)); gap: 1px; margin: 0;
  padding: 1px; list-style: none; background: var(--line); border-radius: .6rem; overflow: hidden; }
.cards li { display: flex; flex-direction: column; padding: 1rem 1.1rem; background: var(--panel); }
.cards .label { color: var(--soft); font-size: .9rem; }
.cards .value { font-size: 1.9rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
.cards .first .value { color: var(--accent); }
.cards .detail { color: var(--soft); font-size: .85rem; }
.protection { padding: 1.4rem 1.5rem; background: var(--panel); border: 1px solid var(--line);
  border-left: .3rem solid var(--warn); border-radius: .6rem; }
.protection ul { margin: 0; padding-left: 1.1rem; }
.protection li { margin-bottom: .5rem; font-size: .95rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1.5rem 3rem; }
.protection .columns { margin-top: .9rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--accent); }
.scroll { overflow-x: auto; margin-top: .5rem;  /* shadows at the edges beyond which there is more */
  background: linear-gradient(90deg, var(--paper) 40%, transparent) left / 2.5rem 100% no-repeat local,
    linear-gradient(270deg, var(--paper) 40%, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(90deg, var(--line), transparent) left / 1rem 100% no-repeat scroll,
    linear-gradient(270deg, var(--line), transparent) right / 1rem 100% no-repeat scroll; }
table { width: 100%; border-collapse: collapse; font-size: .95rem; }
th, td { padding: .5rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th:first-child { padding-left: 0; }
thead th { color: var(--soft); font-size: .85rem; font-weight: 600; vertical-align: bottom; }
tbody th { min-width: 7.5rem; font-weight: 500; }
tbody th.number { min-width: 0; }
tfoot th, tfoot td, .ours th, .ours td { font-weight: 650; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.refused td, .refused th { color: var(--warn); }
.legend { display: flex; flex-wrap: wrap; gap: .4rem 1.5rem; margin: .75rem 0 0; padding: 0; list-style: none;
  font-size: .92rem; }
.curve { display: inline-block; width: 2.2rem; margin-right: .2rem; border-bottom: 2px; line-height: 1.1;
  text-align: center; font-size: .8rem; }
#excluded { margin-top: 1.5rem; }
.below { margin-top: 2.75rem; }
.continued { margin-top: 1.5rem; }
.scroll + .note { margin-top: 1rem; }
.settings { columns: 20rem; column-gap: 3rem; }
.settings div { break-inside: avoid; }
.alarm { margin: 1rem 0 0; padding: .7rem 1rem; border: 1px solid var(--warn); border-left-width: .3rem;
  border-radius: .6rem; }
.alarm b, .alarm a { color: var(--warn); }
.gains th, .gains td { padding-inline: .55rem; }
.gains thead tr:first-child th { border-bottom: 0; }
.gains .first, .gains [scope=colgroup] { border-left: 1px solid var(--line); }
.outcome { white-space: nowrap; }
.worse th, .worse td { color: var(--warn); font-weight: 650; }
.worse th { box-shadow: inset .3rem 0 var(--warn); padding-left: .7rem !important; }
.confusion { width: auto; }
.confusion thead th { text-align: center; }
.confusion th, .confusion td { min-width: 0; border: 0; }
.confusion td[style] { min-width: 8rem; padding: 1.1rem .75rem; border: 2px solid var(--paper);
  text-align: center;
  background: color-mix(in srgb, var(--accent) var(--share), var(--panel)); }
.confusion td b { display: block; font-size: 1.4rem; line-height: 1.2; }
.confusion td span { font-size: .85rem; }
.pairs { margin: 0; }
.pairs div { display: flex; justify-content: space-between; gap: 1.5rem; padding: .45rem 0;
  border-bottom: 1px solid var(--line); }
.pairs dt { font-size: .95rem; }
.pairs dd { text-align: right; }
.long { overflow-wrap: anywhere; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media (max-width: 62rem) { table { font-size: .86rem; } th, td, .gains th, .gains td { padding-inline: .4rem; } }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media print { body { padding: 0; } section { break-inside: avoid; } details { display: none; } }
"""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def page_template(file: Path, **filters: Callable[..., Any]) -> "jinja2.Template":
    """Return the template in a file, which may extend `base.html.j2`.

    Every value is escaped; a name without a value raises `jinja2.UndefinedError`.
    """
    return _environment([file.parent, TEMPLATES], filters).get_template(file.name)


def template(text: str, **filters: Callable[..., Any]) -> "jinja2.Template":
    """Return the template of a text."""
    return _environment([TEMPLATES], filters).from_string(text)


def _environment(folders: list[Path], filters: dict[str, Callable[..., Any]]) -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment


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
