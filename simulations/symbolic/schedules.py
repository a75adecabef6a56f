"""Schedules: which requests the adversary may make in one search."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from .federation import CHOSEN, Federation, RoundRequest
from .protocol_rules import KNOWING

FEDERATIONS = (
    Federation(3, 1, 1),
    Federation(4, 1, 1),
    Federation(5, 1, 1),
    Federation(4, 1, 0, copied=True),
    Federation(3, 2, 2),
    Federation(4, 2, 2),
    Federation(5, 2, 2),
    Federation(3, 1, 0),
    Federation(4, 1, 0),
    Federation(5, 2, 1, copied=True),
)
MANY = 4  # honest sites: then a schedule with two successors and burns takes a minute


@dataclass(frozen=True)
class Schedule:
    """Requests that the adversary may make in one search."""

    name: str
    requests: Mapping[str, RoundRequest]
    burns: bool = False
    variants: int = 2  # of T, in a context
    completes: bool = False  # an honest coordinator may make them: some run can be completed from every world
    long: bool = False  # seconds: searched with all rules, and for no control
    limit: str = ""  # the promise that breaks even with all rules


def schedules(of: Federation) -> Iterator[Schedule]:
    """Yield the schedules of a federation."""
    yield from _rounds(of)
    if not of.copied:
        yield from _models(of)
        yield from _revisions(of)
        yield from _entries(of)


def _rounds(of: Federation) -> Iterator[Schedule]:
    """Yield schedules of one run, and of two with other cohorts."""
    first, after = _first(of), _second(of)
    forks = {"after 0": after, "after 1": replace(after, weights="first/1", variant=1)}
    altered = replace(after, counts=CHOSEN)
    less = replace(first, run="B", cohort=of.cohort - {of.honest[-1]})
    forged = replace(first, weights="chosen", base="forged", forged=True)
    alone = frozenset({0}) | (of.cohort - set(of.honest))
    yield Schedule("two rounds, and forks of the state between them", {"first": first, **forks}, completes=True)
    yield Schedule("two runs from one model: a site less", {"first": first, "again": less}, long=of.copied)
    yield Schedule(
        "two rounds, and other counts of the state between", {"first": first, "after 0": after, "altered": altered}
    )
    yield Schedule("a state that colluders alone certify", {"first": first, "forged": forged})
    yield Schedule("a cohort that is too small", {"first": replace(first, cohort=alone)})


def _models(of: Federation) -> Iterator[Schedule]:
    """Yield schedules of two runs from one initial model, or from one that nobody endorsed."""
    first = _first(of)
    again = replace(first, run="B")
    yield Schedule("two runs from one model: same plan", {"first": first, "again": again})
    yield Schedule("two runs from one model: other plan", {"first": first, "again": replace(again, plan="q")})
    yield Schedule("a model that nobody endorsed", {"first": replace(first, weights="chosen", endorsed=False)})


def _revisions(of: Federation) -> Iterator[Schedule]:
    """Yield schedules of a run and of revisions of it."""
    first, after = _first(of), _second(of)
    everybody, last = of.cohort, of.honest[-1]
    revision = replace(first, run="R", cohort=everybody - {last}, revises="A")
    successor = replace(revision, run="S", cohort=everybody - {0})
    later = replace(after, run="R", round=1, cohort=everybody - {last}, revises="A")
    base = {"first": first}
    yield Schedule("a revision without a site", {**base, "R": revision}, burns=True, completes=True)
    if of.colluding:
        fewer = replace(revision, cohort=everybody - {max(everybody)})
        limit = KNOWING if of.colluding > 1 else ""
        yield Schedule("a revision without a colluder", {**base, "R": fewer}, burns=True, completes=True, limit=limit)
    both = {**base, "second": after, "R": later}
    yield Schedule("a revision after a round", both, burns=True, completes=True, variants=1)
    two = {**base, "R": revision, "S": successor}
    burns = len(of.honest) < MANY
    yield Schedule("two successors", two, burns=burns, completes=True, variants=1, long=True)
    if len(of.honest) == MANY:
        pairs = (("R", {0, 1}), ("S", {2, 3}))
        halves = {run: replace(revision, run=run, cohort=everybody - out) for run, out in pairs}
        yield Schedule("two successors without a common site", {**base, **halves})


def _entries(of: Federation) -> Iterator[Schedule]:
    """Yield schedules of a run and of revisions by which a site enters it; a restored one enters as another site."""
    everybody, last = of.cohort, of.honest[-1]
    old = everybody - {last}
    if of.is_large_enough(old):
        first, after = replace(_first(of), cohort=old), replace(_second(of), cohort=old)
        entry = replace(first, run="R", cohort=everybody, revises="A")
        later = replace(after, run="R", round=1, cohort=everybody, revises="A")
        place = replace(entry, cohort=everybody - {0})
        yield Schedule("a new site", {"first": first, "R": entry}, burns=True, completes=True)
        # After a lock it takes two revisions, without the old site and then with the new: a lock moves to a part.
        yield Schedule("a new site in place of another", {"first": first, "R": place}, burns=True)
        yield Schedule(
            "a new site after a round", {"first": first, "second": after, "R": later}, completes=True, variants=1
        )


def _first(of: Federation) -> RoundRequest:
    return RoundRequest("A", 1, "W", "p", of.cohort)


def _second(of: Federation) -> RoundRequest:
    return RoundRequest("A", 2, "first/0", "p", of.cohort, base="first")
