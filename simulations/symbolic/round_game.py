"""Game of rounds: the worlds that one message to one vault makes of another, and the sums that the adversary knows.

The coordinator and the colluding members are one adversary: it delivers messages in any order or never, knows what
colluders know, and signs for them. A crash loses nothing, as a vault stores its reply before it sends it.
"""

from collections.abc import Iterator
from functools import cached_property

from .copied_vault import looks
from .known_sums import Mask, Symbol, Update, Vector, known_sums, violation
from .revision_moves import abandons, burns, starts
from .round_moves import forbids_nothing, releases, steps, trains
from .setting import Setting
from .vault_world import Fact, Vault, World

_MOVES = (trains, releases, steps, starts, abandons, burns)


class RoundGame:
    """All worlds of a setting."""

    def __init__(self, setting: Setting) -> None:
        """Play a setting."""
        self.setting = setting
        self._sent: dict[tuple[int, Vault], frozenset[Vector]] = {}
        self._sums: dict[frozenset[Vector], tuple[tuple[Vector, ...], str]] = {}

    @cached_property
    def start(self) -> World:
        """Return the world before the first message."""
        return World((frozenset(),) * len(self.setting.federation.honest))

    def moves(self, world: World) -> Iterator[tuple[World, str]]:
        """Yield the worlds after one message more, each with the promise that it breaks, or an empty text."""
        moves = [
            (index, fact, fault)
            for index in self._different(world)
            for moves in _MOVES
            for fact, fault in moves(self.setting, world, index)
        ]
        at_once = next((move for move in moves if forbids_nothing(self.setting, world, *move[:2])), None)
        for index, fact, fault in [at_once] if at_once else moves:
            for saw, unnoticed in looks(self.setting, world, index, fact):
                after = self._after(world, index, fact, saw)
                yield after, fault or unnoticed or self._known(after)[1]
        if self.setting.copies and len(world.vaults) == len(self.start.vaults):
            yield world._replace(vaults=(*world.vaults, world.vaults[0])), ""

    def is_done(self, world: World) -> bool:
        """Tell whether all honest sites of a cohort have signed the last round of their run."""
        return any(
            request.round == self.setting.last_rounds[request.run] and self.setting.all_have(world, "step", name)
            for name, request in self.setting.requests.items()
        )

    def _after(self, world: World, index: int, fact: Fact, saw: tuple[Fact, ...]) -> World:
        """Return the world with a new fact; of vaults in equal roles it does not matter which is which."""
        knowing = world.knowing
        if fact.purpose == "release" and not world.having(fact):
            weights = self.setting.requests[fact.about].weights
            known = (symbol for vector in self._known(world)[0] for symbol, _ in vector)
            if any(isinstance(symbol, Update) and symbol.weights == weights for symbol in known):
                knowing |= {(fact.about, fact.choice)}
        vaults = list(world.storing(index, fact, *saw).vaults)
        for role in self._roles:
            for site, vault in zip(role, sorted((vaults[site] for site in role), key=hash), strict=True):
                vaults[site] = vault
        return World(tuple(vaults), knowing)

    @cached_property
    def _roles(self) -> tuple[tuple[int, ...], ...]:
        """Return the honest sites that are in the same cohorts, where there are two or more."""
        roles: dict[tuple[bool, ...], list[int]] = {}
        for site in self.setting.federation.honest:
            place = (site == 0 and self.setting.copies, *(site in of.cohort for of in self.setting.requests.values()))
            roles.setdefault(place, []).append(site)
        return tuple(tuple(role) for role in roles.values() if len(role) > 1)

    def _different(self, world: World) -> Iterator[int]:
        """Yield the vaults that differ in their role or content."""
        equal = {
            site
            for role in self._roles
            for at, site in enumerate(role)
            if world.vaults[site] == world.vaults[role[at - 1]] and at
        }
        yield from (index for index in range(len(world.vaults)) if index not in equal)

    def _known(self, world: World) -> tuple[tuple[Vector, ...], str]:
        """Return the sums that the adversary knows, and how they break a promise."""
        sent = frozenset[Vector]().union(*(self._sent_by(world, index) for index in range(len(world.vaults))))
        if sent not in self._sums:
            sums = known_sums(dict(vector) for vector in sent)
            self._sums[sent] = sums, violation(sums, self.setting.federation.min_honest)
        return self._sums[sent]

    def _sent_by(self, world: World, index: int) -> frozenset[Vector]:
        """Return the masked updates of a vault, without the masks that the adversary knows."""
        copied = self.setting.site_of(index) == 0 and len(world.vaults) > len(self.start.vaults)
        place = (-1 if copied else index, world.vaults[index])
        if place not in self._sent:
            self._sent[place] = frozenset(
                self._vectors(self.setting.site_of(index), world.vaults[index], copied=copied)
            )
        return self._sent[place]

    def _vectors(self, site: int, vault: Vault, *, copied: bool) -> Iterator[Vector]:
        """Yield masked updates; that of a copied vault stands for nothing, as the adversary may know the update."""
        reads = self.setting.federation.colluding or self.setting.copies
        for purpose, name, made in vault:
            if purpose == "train":
                request, context = self.setting.requests[name], self.setting.contexts[name]
                update = Update(site, request.weights, f"{request.plan}, {request.counts} counts")
                vector: dict[Symbol, int] = {} if copied else {update: 1}
                if not (reads and self.setting.has(vault, "release", name)):
                    vector[Mask((site,), (*context, str(made)))] = 1
                for other in self.setting.honest_of[name]:
                    if other != site:
                        vector[Mask((min(site, other), max(site, other)), context)] = 1 if site < other else -1
                yield frozenset(vector.items())
                if "counts in vector" not in self.setting.rules:
                    yield frozenset({(Update(site, request.weights, "counts"), 1)})
