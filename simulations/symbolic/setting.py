"""Setting of one search: the federation, the requests that may be made, and the rules in force."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from .federation import CHOSEN, Federation, RoundRequest
from .known_sums import Context
from .protocol_rules import ALL
from .vault_world import Fact, Vault, World


@dataclass(frozen=True)
class Setting:
    """The federation, the requests, the rules, and what else happens."""

    federation: Federation
    requests: Mapping[str, RoundRequest]
    rules: frozenset[str] = ALL
    variants: int = 2
    burns: bool = False  # sites may be asked to burn
    lost: bool = False  # a site whose disk is lost may burn what it has released
    honest: bool = False  # the coordinator and all members keep the protocol

    @cached_property
    def contexts(self) -> Mapping[str, Context]:
        """Return the context of each request, which its masks and signatures are bound to."""
        return {name: self._context(request) for name, request in self.requests.items()}

    @cached_property
    def sharing(self) -> Mapping[str, tuple[str, ...]]:
        """Return for each request the requests that share its context."""
        return {
            name: tuple(other for other, of in self.contexts.items() if of == context)
            for name, context in self.contexts.items()
        }

    @cached_property
    def honest_of(self) -> Mapping[str, tuple[int, ...]]:
        """Return the honest members of each request's cohort."""
        return {
            name: tuple(site for site in self.federation.honest if site in request.cohort)
            for name, request in self.requests.items()
        }

    @cached_property
    def successors(self) -> Mapping[str, tuple[str, ...]]:
        """Return for each run the revisions that may continue it."""
        return {
            request.run: tuple({of.run: None for of in self.requests.values() if of.revises == request.run})
            for request in self.requests.values()
        }

    @cached_property
    def first(self) -> Mapping[str, str]:
        """Return the first request of each run."""
        names = sorted(self.requests, key=lambda name: self.requests[name].round, reverse=True)
        return {self.requests[name].run: name for name in names}

    @cached_property
    def last_rounds(self) -> Mapping[str, int]:
        """Return the last round of each run."""
        ordered = sorted(self.requests.values(), key=lambda request: request.round)
        return {request.run: request.round for request in ordered}

    @cached_property
    def copies(self) -> bool:
        """Tell whether the adversary may copy the first site's vault; as a rule such a copy counts as a colluder."""
        return self.federation.copied or "copies count" not in self.rules

    def site_of(self, index: int) -> int:
        """Return whose vault it is; the copy at the end is the first site's."""
        return index if index < len(self.federation.honest) else 0

    def is_helped(self, name: str) -> bool:
        """Tell whether a colluder is in a request's cohort: it chooses its vector, its tag and its signatures."""
        return len(self.honest_of[name]) < len(self.requests[name].cohort)

    def has(self, vault: Vault, purpose: str, name: str, choices: tuple[int, ...] = (0, 1)) -> bool:
        """Tell whether a vault has stored a fact in the context of a request."""
        return not self._facts(purpose, name, choices).isdisjoint(vault)

    def all_have(self, world: World, purpose: str, name: str, choices: tuple[int, ...] = (0, 1)) -> bool:
        """Tell whether all honest members of a request's cohort have stored such a fact; one of two copies will do."""
        facts = self._facts(purpose, name, choices)
        without = [site for site in self.honest_of[name] if facts.isdisjoint(world.vaults[site])]
        return not without or (without == [0] and not facts.isdisjoint(world.vaults[-1]) and self.copies)

    def has_certificate(self, world: World, name: str, variant: int) -> bool:
        """Tell whether t members have signed the state after a request; colluders sign anything."""
        cohort = self.requests[name].cohort
        fact = Fact("step", name, variant)
        signed = {self.site_of(index) for index, vault in enumerate(world.vaults) if fact in vault}
        colluding = len(cohort) - len(self.honest_of[name])
        return len(signed) + colluding >= self.federation.threshold(cohort)

    def _facts(self, purpose: str, name: str, choices: tuple[int, ...]) -> frozenset[Fact]:
        key = (purpose, name, choices)
        if key not in self._facts_of:
            facts = (Fact(purpose, other, choice) for other in self.sharing[name] for choice in choices)
            self._facts_of[key] = frozenset(facts)
        return self._facts_of[key]

    @cached_property
    def _facts_of(self) -> dict[tuple[str, str, tuple[int, ...]], frozenset[Fact]]:
        """Return a cache of the facts, which the search looks up often."""
        return {}

    def _context(self, request: RoundRequest) -> Context:
        context: Context = (request.run, str(request.round))
        if "base in context" in self.rules:
            context = (*context, request.state)
            if "counts in digest" in self.rules and request.counts == CHOSEN:
                context = (*context, request.counts)
        return context
