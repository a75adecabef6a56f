"""World of the symbolic search: what every honest vault has stored, as facts that are never taken back."""

from collections.abc import Iterator
from typing import NamedTuple


class Fact(NamedTuple):
    """A statement that a vault has stored and signed.

    `choice` is by purpose: train - which copy of a vault made it; release - the variant that T fixes; step - the sum.
    A variant is another part of the colluders, another claim of the sum, or another statement of a copied vault.
    """

    purpose: str  # train, release, step, burn, start (of a revision), abandon, saw
    about: str  # a request; start and abandon: a run
    choice: int = 0


Vault = frozenset[Fact]


class World(NamedTuple):
    """The honest vaults, a copy of the first one's at the end if one was made, and which T were named knowingly."""

    vaults: tuple[Vault, ...]
    knowing: frozenset[tuple[str, int]] = frozenset()  # request and variant of T, fixed when a sum of it was known

    def storing(self, index: int, *facts: Fact) -> "World":
        """Return the world after a vault has stored facts."""
        return self._replace(vaults=(*self.vaults[:index], self.vaults[index].union(facts), *self.vaults[index + 1 :]))

    def having(self, fact: Fact) -> int:
        """Return how many vaults have stored a fact."""
        return sum(fact in vault for vault in self.vaults)

    def stored(self, purpose: str) -> Iterator[tuple[int, Fact]]:
        """Yield the facts of a purpose, each with the index of its vault."""
        for index, vault in enumerate(self.vaults):
            yield from ((index, fact) for fact in vault if fact.purpose == purpose)
