"""Command `python -m simulations symbolic`: runs all searches and controls, and yields a row for each."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .exhaustive_search import FEDERATIONS, PAIR, REDUNDANT, Found, control, controls, searched
from .protocol_rules import RULES, Federation

Row = dict[str, Any]


def run() -> Iterator[Row]:
    """Yield a row for each federation, each control and each redundant rule: what was found, and as designed or not."""
    for federation in FEDERATIONS:
        yield _row(_title(federation), partial(searched, federation), wanted=False)
    for off in controls():
        yield _row(f"without {' and '.join(off)}", partial(control, off), wanted=True, rules=off)
    for rule in REDUNDANT:
        row = _row(f"without {rule}", partial(searched, FEDERATIONS[0], (rule,)), wanted=False, rules=(rule,))
        yield {**row, "redundant": True}


def shown(row: Row) -> str:
    """Return a row as a line."""
    found = row["found"] or ("nothing: redundant" if row.get("redundant") else "nothing")
    designed = "as designed" if row["as designed"] else "NOT AS DESIGNED"
    return f"{row['search']:60} {row['worlds']:7} worlds {row['seconds']:6.1f} s  {designed}: {found}"


def notes() -> Iterator[str]:
    """Yield what the rows mean."""
    yield "as designed: with all rules nothing is found; without one of them an attack is found, or a dead end"
    yield f"redundant: a rule that can be left out alone; of {' and '.join(PAIR)} one is needed"
    yield "the rules:"
    yield from (f"  {name}: {text}" for name, text in RULES.items())


def _row(title: str, find: Callable[[], Found], *, wanted: bool, rules: tuple[str, ...] = ()) -> Row:
    started = time.perf_counter()
    found = find()
    return {
        "search": title,
        "rules off": list(rules),
        "found": found.violation,
        "worlds": found.worlds,
        "seconds": time.perf_counter() - started,
        "as designed": bool(found.violation) == wanted,
    }


def _title(of: Federation) -> str:
    colluding = "none colluding" if of.outsider else f"{of.colluders} colluding"
    return f"all rules, {of.members} members, {colluding}"
