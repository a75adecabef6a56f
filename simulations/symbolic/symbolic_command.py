"""Command `python -m simulations symbolic`: runs all searches and controls, and yields a row for each."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .exhaustive_search import Found, control, limits, searched, searched_in_all
from .federation import Federation
from .protocol_rules import CONTROLS, LIMITS, REDUNDANT, RULES, Rules
from .schedules import FEDERATIONS

Row = dict[str, Any]


def run() -> Iterator[Row]:
    """Yield a row for each federation, control, redundant rule and limit: what was found, and as designed or not."""
    for federation in FEDERATIONS:
        yield _row(_title(federation), partial(searched, federation), "")
    for off, wanted in CONTROLS.items():
        yield _row(f"without {' and '.join(off)}", partial(control, off, wanted), wanted, off)
    for off, reason in REDUNDANT.items():
        row = _row(f"without {' and '.join(off)}", partial(searched_in_all, off), "", off)
        yield {**row, "redundant": reason}
    for name, (find, wanted) in limits().items():
        yield {**_row(f"limit: {name}", find, wanted), "limit": LIMITS[name]}


def shown(row: Row) -> str:
    """Return a row as a line."""
    found = row["found"] or (f"nothing: {row['redundant']}" if "redundant" in row else "nothing")
    designed = "as designed" if row["as designed"] else "NOT AS DESIGNED"
    return f"{row['search']:52} {row['worlds']:7} worlds {row['seconds']:6.1f} s  {designed}: {found}"


def notes() -> Iterator[str]:
    """Yield what the rows mean."""
    yield "as designed: with all rules nothing is found but the limits; without one of them an attack, or a dead end"
    yield "the rules:"
    yield from (f"  {name}: {text}" for name, text in RULES.items())
    yield "the limits:"
    yield from (f"  {name}: {text}" for name, text in LIMITS.items())


def _row(title: str, find: Callable[[], Found], wanted: str, rules: Rules = ()) -> Row:
    started = time.perf_counter()
    found = find()
    return {
        "search": title,
        "rules off": list(rules),
        "found": found.violation,
        "worlds": found.worlds,
        "seconds": time.perf_counter() - started,
        "as designed": found.violation == wanted,
    }


def _title(of: Federation) -> str:
    colluding = f"{of.colluding or 'none'} colluding"
    return f"all rules, {of.members} members, {colluding}{', one copied' if of.copied else ''}"
