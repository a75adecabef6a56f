"""Federation and requests: who takes part, and which rounds the adversary may request of the sites.

A *request* is one round as it is requested of the sites: a run, a round, a base state, a plan (all that determines a
site's update beside the base model) and a cohort.
"""

from dataclasses import dataclass
from functools import cached_property

OPENED, CHOSEN = "opened", "chosen"  # counts of a base: those that its sites opened, or others


@dataclass(frozen=True)
class Federation:
    """Members of a federation: honest ones 0, 1, ..., then those that collude with the coordinator.

    `colluders` is what the contract declares; with none `colluding` the adversary is the coordinator alone. A site
    whose vault was `copied` counts as a colluder in the contract, but keeps the rules.
    """

    members: int
    colluders: int
    colluding: int
    copied: bool = False
    min_honest: int = 2

    @cached_property
    def honest(self) -> tuple[int, ...]:
        """Return the honest members."""
        return tuple(range(self.members - self.colluding))

    @cached_property
    def cohort(self) -> frozenset[int]:
        """Return all members."""
        return frozenset(range(self.members))

    def threshold(self, cohort: frozenset[int]) -> int:
        """Return t, the number of signatures that certify a state."""
        return (len(cohort) + self.colluders) // 2 + 1

    def is_large_enough(self, cohort: frozenset[int]) -> bool:
        """Tell whether a cohort has the members that the contract asks for."""
        return len(cohort) >= self.min_honest + self.colluders


@dataclass(frozen=True)
class RoundRequest:
    """One round as it is requested of the sites."""

    run: str
    round: int
    weights: str  # of the base model
    plan: str
    cohort: frozenset[int]
    base: str = ""  # the request whose step made the base state; empty: the initial model of the run
    variant: int = 0  # of that step
    counts: str = OPENED  # of the base state, as the request states them
    endorsed: bool = True  # each site's operator endorsed the initial model
    forged: bool = False  # colluders alone signed the base state
    revises: str = ""  # the run that this one continues

    @cached_property
    def state(self) -> str:
        """Return the base state: its weights, and where they come from."""
        return f"{self.base}/{self.variant}" if self.base else self.weights
