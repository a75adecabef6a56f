"""Setting of one search: the federation, the questions that may be put, and the rules in force."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from .federation import CHOSEN, Federation, Question
from .known_sums import Context
from .protocol_rules import ALL
from .vault_world import Fact, Vault, World


@dataclass(frozen=True)
class Setting:
    """The federation, the questions, the rules, and what else happens."""

    federation: Federation
    questions: Mapping[str, Question]
    rules: frozenset[str] = ALL
    variants: int = 2
    burns: bool = False  # sites may be asked to burn
    lost: bool = False  # a site whose disk is lost may burn what it has released
    honest: bool = False  # the coordinator and all members keep the protocol

    @cached_property
    def contexts(self) -> Mapping[str, Context]:
        """Return the context of each question, which its masks and signatures are bound to."""
        return {name: self._context(question) for name, question in self.questions.items()}

    @cached_property
    def sharing(self) -> Mapping[str, tuple[str, ...]]:
        """Return for each question the questions of its context."""
        return {
            name: tuple(other for other, of in self.contexts.items() if of == context)
            for name, context in self.contexts.items()
        }

    @cached_property
    def honest_of(self) -> Mapping[str, tuple[int, ...]]:
        """Return the honest members of each question's cohort."""
        return {
            name: tuple(site for site in self.federation.honest if site in question.cohort)
            for name, question in self.questions.items()
        }

    @cached_property
    def successors(self) -> Mapping[str, tuple[str, ...]]:
        """Return for each run the revisions that may continue it."""
        return {
            question.run: tuple({of.run: None for of in self.questions.values() if of.revises == question.run})
            for question in self.questions.values()
        }

    @cached_property
    def first(self) -> Mapping[str, str]:
        """Return the first question of each run."""
        names = sorted(self.questions, key=lambda name: self.questions[name].round, reverse=True)
        return {self.questions[name].run: name for name in names}

    @cached_property
    def last_rounds(self) -> Mapping[str, int]:
        """Return the last round of each run."""
        ordered = sorted(self.questions.values(), key=lambda question: question.round)
        return {question.run: question.round for question in ordered}

    @cached_property
    def copies(self) -> bool:
        """Tell whether the adversary may copy the first site's vault; as a rule such a copy counts as a colluder."""
        return self.federation.copied or "copies count" not in self.rules

    def site_of(self, index: int) -> int:
        """Return whose vault it is; the copy at the end is the first site's."""
        return index if index < len(self.federation.honest) else 0

    def is_helped(self, name: str) -> bool:
        """Tell whether a colluder is in a question's cohort: it chooses its vector, its tag and its signatures."""
        return len(self.honest_of[name]) < len(self.questions[name].cohort)

    def has(self, vault: Vault, purpose: str, name: str, choices: tuple[int, ...] = (0, 1)) -> bool:
        """Tell whether a vault has stored a fact in the context of a question."""
        return not self._facts(purpose, name, choices).isdisjoint(vault)

    def all_have(self, world: World, purpose: str, name: str, choices: tuple[int, ...] = (0, 1)) -> bool:
        """Tell whether all honest members of a question's cohort have stored such a fact; one of two copies will do."""
        facts = self._facts(purpose, name, choices)
        without = [site for site in self.honest_of[name] if facts.isdisjoint(world.vaults[site])]
        return not without or (without == [0] and not facts.isdisjoint(world.vaults[-1]) and self.copies)

    def has_certificate(self, world: World, name: str, variant: int) -> bool:
        """Tell whether t members have signed the state after a question; colluders sign anything."""
        cohort = self.questions[name].cohort
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
        """Return what has been asked for, so that it is made once."""
        return {}

    def _context(self, question: Question) -> Context:
        context: Context = (question.run, str(question.round))
        if "base in context" in self.rules:
            context = (*context, question.state)
            if "counts in digest" in self.rules and question.counts == CHOSEN:
                context = (*context, question.counts)
        return context
