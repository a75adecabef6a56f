"""Game of starts: two runs are signed (S1), coins revealed (S2) and fresh weights drawn (S3), in any order.

The adversary wants weights of its choice. It has them if it can fix the last input of the draw, be it a colluder's coin
or the contract itself, when it knows all the others.
"""

from collections.abc import Iterator

from .federation import Federation
from .protocol_rules import GROUND, TRIED
from .vault_world import Fact, World

_RUNS = {"A": "nonce 1", "again with another nonce": "nonce 2", "again with the same nonce": "nonce 1"}
_STARTS = 1  # coins a day


class StartingGame:
    """Accept, coin and start of three contracts, by all members of a federation; a colluder has two coins at hand."""

    def __init__(self, federation: Federation, rules: frozenset[str]) -> None:
        """Play with these rules."""
        self._federation, self._rules = federation, rules
        self.start = World((frozenset(),) * len(federation.honest))

    def moves(self, world: World) -> Iterator[tuple[World, str]]:
        """Yield the worlds after one message more, each with the promise that it breaks, or an empty text."""
        for index in range(len(world.vaults)):
            for run in _RUNS:
                for fact, fault in (*self._accepts(world, index, run), *self._draws(world, index, run)):
                    after = world.storing(index, fact)
                    yield after._replace(vaults=tuple(sorted(after.vaults, key=hash))), fault

    def is_done(self, world: World) -> bool:
        """Tell whether all honest sites have started a run."""
        return any(all(self._has(vault, "start", run) for vault in world.vaults) for run in _RUNS)

    def _accepts(self, world: World, index: int, run: str) -> Iterator[tuple[Fact, str]]:
        """S1: sign a contract, with the hash of a coin."""
        vault = world.vaults[index]
        nonces = {_RUNS[about] for purpose, about, _ in vault if purpose == "accept"}
        if Fact("accept", run) not in vault and (_RUNS[run] not in nonces or "one nonce" not in self._rules):
            yield Fact("accept", run), "" if "coins in fresh" in self._rules else GROUND

    def _draws(self, world: World, index: int, run: str) -> Iterator[tuple[Fact, str]]:
        """S2: reveal the coin, given the hash of a colluder's; S3: draw the weights, given the colluder's coin."""
        vault = world.vaults[index]
        revealed = {about for purpose, about, _ in vault if purpose == "coin"}
        helped = self._federation.colluding > 0
        for coin in (0, 1) if helped else (0,):
            allowed = len(revealed) < _STARTS or "bounded starts" not in self._rules
            if all(Fact("accept", run) in other for other in world.vaults) and run not in revealed and allowed:
                tried = any(of != run and all(self._has(v, "coin", of) for v in world.vaults) for of in _RUNS)
                yield Fact("coin", run, coin), TRIED if tried else ""
            fixed = Fact("coin", run, coin) in vault or "coin commitment" not in self._rules
            if (
                all(self._has(other, "coin", run) for other in world.vaults)
                and fixed
                and not self._has(vault, "start", run)
            ):
                chosen = helped and Fact("coin", run, coin) not in vault
                yield Fact("start", run, coin), GROUND if chosen else ""

    @staticmethod
    def _has(vault: frozenset[Fact], purpose: str, run: str) -> bool:
        return any(fact[:2] == (purpose, run) for fact in vault)
