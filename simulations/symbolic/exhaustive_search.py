"""Exhaustive search: all orders of messages in each schedule, for violations of the promises and for dead ends."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from .federation import Federation
from .protocol_rules import ALL, DEAD_END, FEW, KNOWING, MORE_BURNS, OF_STARTS, Rules
from .round_game import RoundGame
from .schedules import FEDERATIONS, MANY, Schedule, schedules
from .setting import Setting
from .starting_game import StartingGame
from .vault_world import World


class Game(Protocol):
    """Worlds, and the moves between them."""

    @property
    def start(self) -> World:
        """Return the world before the first message."""

    def moves(self, world: World) -> Iterator[tuple[World, str]]:
        """Yield the worlds after one message more, each with the promise that it breaks, or an empty text."""

    def is_done(self, world: World) -> bool:
        """Tell whether a run is completed."""


@dataclass(frozen=True)
class Found:
    """Result of a search: the promise that breaks, or an empty text, and how many worlds were visited."""

    violation: str
    worlds: int


def search(game: Game, wanted: str = "", limit: str = "") -> Found:
    """Visit all worlds of a game until one breaks a promise: the wanted one, if one is named, and not the limit."""
    todo, visited = deque([game.start]), {game.start}
    while todo:
        for after, fault in game.moves(todo.popleft()):
            if fault not in {"", limit} and fault == (wanted or fault):
                return Found(fault, len(visited))
            if after not in visited and fault in {"", limit}:
                visited.add(after)
                todo.append(after)
    return Found("", len(visited))


def dead_end(game: Game) -> Found:
    """Visit all worlds; find one from which no run can be completed."""
    before: dict[World, list[World]] = {game.start: []}
    todo = deque([game.start])
    while todo:
        world = todo.popleft()
        for after, _ in game.moves(world):
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


def searched(of: Federation, off: Rules = ()) -> Found:
    """Search all schedules of a federation, with some rules off, for all violations but known limits, and dead ends."""
    return _first((*_violations(of, off, long=not off), *_dead_ends(of, off, long=not off)))


def searched_in_all(off: Rules) -> Found:
    """Search one federation after another with these rules off, until a promise breaks or a dead end is found."""
    return _first(partial(searched, of, off) for of in FEDERATIONS)


def control(off: Rules, wanted: str) -> Found:
    """Search one federation after another with these rules off, until the wanted promise breaks."""
    searches = (
        find
        for of in FEDERATIONS
        for find in (_dead_ends(of, off) if wanted == DEAD_END else _violations(of, off, wanted))
    )
    return _first(searches)


def limits() -> Mapping[str, tuple[Callable[[], Found], str]]:
    """Return the search that shows each limit, and what it finds."""
    of = Federation(5, 2, 2)
    colluder = next(schedule for schedule in schedules(of) if schedule.limit)
    one = next(schedule for schedule in schedules(of) if schedule.burns)
    more = ALL | {MORE_BURNS}
    return {
        "burn of a colluder": (partial(search, _game(of, colluder), KNOWING), KNOWING),
        "no limit by more burns": (partial(search, _game(of, colluder, more)), ""),
        "dead end by more burns": (partial(dead_end, _game(of, one, more, honest=True)), DEAD_END),
        "burn of a lost machine": (partial(search, _game(of, one, lost=True)), FEW),
    }


def _first(searches: Iterable[Callable[[], Found]]) -> Found:
    worlds = 0
    for find in searches:
        found = find()
        worlds += found.worlds
        if found.violation:
            return Found(found.violation, worlds)
    return Found("", worlds)


def _violations(of: Federation, off: Rules, wanted: str = "", *, long: bool = False) -> Iterator[Callable[[], Found]]:
    if of.members < MANY + 1:
        yield partial(search, StartingGame(of, ALL - set(off)), wanted)
    for schedule in schedules(of):
        if (long or not schedule.long) and (not off or not OF_STARTS.issuperset(off)):
            yield partial(search, _game(of, schedule, ALL - set(off)), wanted, schedule.limit)


def _dead_ends(of: Federation, off: Rules, *, long: bool = True) -> Iterator[Callable[[], Found]]:
    for schedule in schedules(of):
        completes = schedule.completes and of.is_large_enough(of.cohort) and not of.copied
        if completes and (long or not schedule.long) and (not off or not OF_STARTS.issuperset(off)):
            yield partial(dead_end, _game(of, schedule, ALL - set(off), honest=True))


def _game(
    of: Federation, schedule: Schedule, rules: frozenset[str] = ALL, *, honest: bool = False, lost: bool = False
) -> RoundGame:
    """Return the game of a schedule; an honest coordinator names one T in a context."""
    burns, variants = (True, 1) if honest else (schedule.burns, schedule.variants)
    return RoundGame(Setting(of, schedule.requests, rules, variants, burns, lost, honest))
