"""Known sums: the sums of updates that follow from the masked updates and released masks that an adversary has seen.

A masked update is a vector over symbols: the update itself, the site's own mask, the masks that it shares with others.
Whoever can add and subtract what it has seen knows all linear combinations of it, and nothing else. Coefficients are
numbers modulo a prime, which stands for the ring of encoded updates.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

from .protocol_rules import FEW, MIXED, PLANS, SHARED

_PRIME = 2**31 - 1
Context = tuple[str, ...]


class Update(NamedTuple):
    """An honest site's update, with its evaluation counts; it is made once for each base model and plan."""

    site: int
    weights: str  # of the base model
    plan: str


class Mask(NamedTuple):
    """A mask in one context: of one site, or of a pair of sites."""

    sites: tuple[int, ...]
    context: Context


Symbol = Update | Mask
Vector = frozenset[tuple[Symbol, int]]
Row = dict[int, int]  # column -> coefficient


def known_sums(seen: Iterable[Mapping[Symbol, int]]) -> tuple[Vector, ...]:
    """Return the reduced echelon basis of all combinations of the vectors in which every mask cancels."""
    return _known(frozenset(frozenset(vector.items()) for vector in seen))


def violation(sums: Iterable[Vector], min_honest: int) -> str:
    """Return how known sums break the promise of one sum for each base model, or an empty text.

    Each must be the plain sum of the updates of at least `min_honest` sites at one base model and plan, and no site's
    updates at one base model may be in two of them.
    """
    used: set[tuple[int, str]] = set()
    for vector in sums:
        updates = [symbol for symbol, _ in vector if isinstance(symbol, Update)]
        sites = {(update.site, update.weights) for update in updates}
        if len({update.weights for update in updates}) > 1:
            return MIXED
        if len(sites) < min_honest:
            return FEW
        if len(sites) < len(updates) or sites & used or any(coefficient != 1 for _, coefficient in vector):
            return SHARED
        if len({update.plan for update in updates}) > 1:
            return PLANS
        used |= sites
    return ""


@cache
def _known(seen: frozenset[Vector]) -> tuple[Vector, ...]:
    symbols = sorted({symbol for vector in seen for symbol, _ in vector}, key=lambda s: (isinstance(s, Update), s))
    column_of = {symbol: column for column, symbol in enumerate(symbols)}
    rows = [{column_of[symbol]: c % _PRIME for symbol, c in vector} for vector in seen]
    basis: list[Row] = []
    for column, symbol in enumerate(symbols):  # masks first: a row without them is left when they are done
        pivot = next((row for row in rows if column in row), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        inverse = pow(pivot[column], -1, _PRIME)
        pivot = {at: c * inverse % _PRIME for at, c in pivot.items()}
        rows = [_reduced(row, pivot, column) for row in rows]
        if isinstance(symbol, Update):
            basis = [*(_reduced(row, pivot, column) for row in basis), pivot]
    return tuple(frozenset((symbols[at], c) for at, c in row.items()) for row in basis)


def _reduced(row: Row, pivot: Row, column: int) -> Row:
    factor = row.get(column, 0)
    if not factor:
        return row
    changed = {at: (row.get(at, 0) - factor * pivot.get(at, 0)) % _PRIME for at in row.keys() | pivot.keys()}
    return {at: c for at, c in changed.items() if c}
