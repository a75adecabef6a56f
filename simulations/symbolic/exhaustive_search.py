"""Exhaustive search: all orders of messages in a few schedules, for violations of the promises and for dead ends.

It does not search the signing of a run, two copies of one vault, a restore to a middle state, nor a revision that
starts at its sites one after another. Three controls rest on an assumption in place of an attack's steps: without
"counts in digest", "sum in T" or "challenge after sum" a wrong value is taken to be accepted.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from .known_sums import violation
from .protocol_rules import ALL, RULES, Federation, Game, Question, World

FEDERATIONS = (
    *(Federation(members, colluders) for members in (3, 4) for colluders in (1, 2)),
    Federation(3, 1, outsider=True),
)
REDUNDANT = ("base in context", "t certificates", "one state")  # each alone: T and the locks do its work
PAIR = ("base in context", "t certificates")
DEAD_END = "a world from which no run can be completed"
Rules = tuple[str, ...]


@dataclass(frozen=True)
class Schedule:
    """Questions that the adversary may put in one search."""

    name: str
    questions: Mapping[str, Question]
    burns: bool = False
    completes: bool = False  # an honest coordinator may put them: some run can be completed from every world


@dataclass(frozen=True)
class Found:
    """Result of a search: the violation, or an empty text, and how many worlds were visited."""

    violation: str
    worlds: int


def schedules(federation: Federation) -> Iterator[Schedule]:
    """Yield the schedules of a federation. A crash loses nothing, as a vault stores its reply before it sends it."""
    everybody, honest = federation.cohort, federation.honest
    first = Question("A", 1, "W", "p", everybody)
    forks = {
        f"after {variant}": Question("A", 2, f"first/{variant}", "p", everybody, base="first", variant=variant)
        for variant in (0, 1)
    }
    forged = replace(first, weights="chosen", base="forged", forged=True)
    again, less = replace(first, run="B"), everybody - {honest[-1]}
    revision = replace(first, run="R", cohort=less, revises="A")
    successor = replace(revision, run="S", cohort=everybody - {honest[0]})
    alone = everybody - {*honest[1:]}
    yield Schedule("two rounds, and forks of the state between them", {"first": first, **forks}, completes=True)
    yield Schedule("a state that colluders alone certify", {"first": first, "forged": forged})
    yield Schedule("two runs from one model: same plan", {"first": first, "again": again})
    yield Schedule("two runs from one model: other plan", {"first": first, "again": replace(again, plan="q")})
    yield Schedule("two runs from one model: a site less", {"first": first, "again": replace(again, cohort=less)})
    yield Schedule("a revision without a site", {"first": first, "revision": revision}, burns=True, completes=True)
    if not federation.outsider:
        fewer = replace(revision, cohort=everybody - {max(everybody)})
        yield Schedule("a revision without a colluder", {"first": first, "revision": fewer}, burns=True, completes=True)
    successors = {"first": first, "revision": revision, "successor": successor}
    yield Schedule("two successors of a run", successors, completes=True)
    yield Schedule("a cohort that is too small", {"first": replace(first, cohort=alone)})


def search(game: Game) -> Found:
    """Visit all worlds of a game until one violates a promise."""
    todo, visited = deque([game.start]), {game.start}
    while todo:
        for world in game.moves(todo.popleft()):
            if world not in visited:
                visited.add(world)
                if found := min(world.faults, default="") or violation(game.known(world), game.federation.min_honest):
                    return Found(found, len(visited))
                todo.append(world)
    return Found("", len(visited))


def dead_end(game: Game) -> Found:
    """Visit all worlds that an honest coordinator can come to; find one from which no run can be completed."""
    game = replace(game, variants=1, burns=True, honest=True)
    before: dict[World, list[World]] = {game.start: []}
    todo = deque([game.start])
    while todo:
        world = todo.popleft()
        for after in game.moves(world):
            if after not in before:
                before[after] = []
                todo.append(after)
            before[after].append(world)
    done = deque(world for world in before if game.is_done(world))
    completing = set(done)
    while done:
        for world in before[done.popleft()]:
            if world not in completing:
                completing.add(world)
                done.append(world)
    return Found(DEAD_END if len(completing) < len(before) else "", len(before))


def searched(federation: Federation, off: Rules = ()) -> Found:
    """Search all schedules of a federation with these rules off, until a violation or a dead end is found."""
    worlds = 0
    for schedule in schedules(federation):
        game = Game(federation, schedule.questions, ALL - set(off), burns=schedule.burns)
        large = len(federation.cohort) >= federation.min_honest + federation.colluders
        for visit in (search, dead_end) if schedule.completes and large else (search,):
            found = visit(game)
            worlds += found.worlds
            if found.violation:
                return Found(found.violation, worlds)
    return Found("", worlds)


def control(off: Rules) -> Found:
    """Search one federation after another with these rules off, until a violation or a dead end is found."""
    worlds = 0
    for federation in FEDERATIONS:
        found = searched(federation, off)
        worlds += found.worlds
        if found.violation:
            return Found(found.violation, worlds)
    return Found("", worlds)


def controls() -> tuple[Rules, ...]:
    """Return the rules of each control: each alone, but the redundant ones, of which a pair."""
    return (*((rule,) for rule in RULES if rule not in REDUNDANT), PAIR)
