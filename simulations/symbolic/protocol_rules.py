"""Rules of a round as data, and the moves of honest vaults under them: train, release, step, burn, enter a revision.

Every rule can be switched off. The search must then find an attack, alone or with a second rule off, or the rule is
redundant. The coordinator and the colluding members are one adversary: it delivers messages in any order or never,
knows what colluders know, and signs for them. Signatures, hashes and seals hold by assumption.

A *question* is one round as it is put to the sites: a run, a round, a base state, a plan (all that determines a site's
update beside the base model) and a cohort. T is what P2 names: all statements of P1, and the hash of the sum. A
*variant* of T stands for another part of the colluders, or another claim of the sum.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from .known_sums import Context, Mask, Symbol, Update, Vector, known_sums

RULES: Mapping[str, str] = {
    "lock": "a vault releases for one cohort and plan for the weights of a base model, for ever",
    "plan in lock": "the lock names the plan beside the cohort",
    "no second mask": "an update whose mask was released in one context is released in no other, save after a burn",
    "cohort size": "a cohort has at least min_honest + colluders members",
    "burn before move": "a lock moves to a smaller cohort only after each site that is left out has burned the context",
    "counts in vector": "evaluation counts are values of the masked vector",
    "counts in digest": "the digest of a state covers the opened counts",
    "challenge after sum": "the challenge of the linear check follows from the hash of the sum",
    "sum in T": "T covers the hash of the sum, which is so fixed before any release",
    "one T": "a vault names one T in a context, for ever",
    "base in context": "the context of masks and signatures names the base state",
    "t certificates": "a base state needs the signatures of t members",
    "one state": "a vault signs one state of a round, for ever",
    "no restore": "a restored or copied vault is a new member",
    "agreed revision": "a revision starts when its whole cohort has signed that no lock forbids it",
}
ALL = frozenset(RULES)


@dataclass(frozen=True)
class Federation:
    """Members of a federation: honest ones 0, 1, ..., then the colluders.

    With `outsider` no member colludes, and the adversary is the coordinator alone.
    """

    members: int
    colluders: int
    min_honest: int = 2
    outsider: bool = False

    @cached_property
    def honest(self) -> tuple[int, ...]:
        """Return the honest members."""
        return tuple(range(self.members if self.outsider else self.members - self.colluders))

    @cached_property
    def cohort(self) -> frozenset[int]:
        """Return all members."""
        return frozenset(range(self.members))


@dataclass(frozen=True)
class Question:
    """One round as it is put to the sites."""

    run: str
    round: int
    weights: str  # of the base model
    plan: str
    cohort: frozenset[int]
    base: str = ""  # the question whose step made the base state; empty: all members endorsed it
    variant: int = 0  # of that step
    forged: bool = False  # colluders alone signed the base state
    revises: str = ""  # the run that this one continues

    @cached_property
    def state(self) -> str:
        """Return the digest of the base state."""
        return f"{self.base}/{self.variant}" if self.base else self.weights


@dataclass(frozen=True)
class Vault:
    """What an honest vault has stored."""

    masked: Mapping[Context, str] = field(default_factory=dict)  # P1: the question it replied to
    released: frozenset[tuple[Context, int]] = frozenset()  # P2: variants of T
    signed: frozenset[tuple[str, int, str]] = frozenset()  # P3: run, round and digest of the new state
    burned: frozenset[Context] = frozenset()

    def __hash__(self) -> int:
        """Hash the content."""
        return hash((frozenset(self.masked.items()), self.released, self.signed, self.burned))


@dataclass(frozen=True)
class World:
    """All vaults, the revisions that started, and what happened that an end result depends on."""

    vaults: tuple[Vault, ...]
    revisions: frozenset[str] = frozenset()
    abandoned: frozenset[str] = frozenset()
    seen: frozenset[tuple[int, Context, str, bool]] = frozenset()  # masked updates on the wire, and own masks released
    blind: Mapping[tuple[Context, int], bool] = field(default_factory=dict)  # T fixed before a sum of its base is known
    faults: frozenset[str] = frozenset()

    def __hash__(self) -> int:
        """Hash the content."""
        return hash(
            (self.vaults, self.revisions, self.abandoned, self.seen, frozenset(self.blind.items()), self.faults)
        )


@dataclass(frozen=True)
class Game:
    """The rules in force, the federation, and the questions that the adversary may put."""

    federation: Federation
    questions: Mapping[str, Question]
    rules: frozenset[str] = ALL
    variants: int = 2
    burns: bool = False
    honest: bool = False  # the coordinator: it asks a site to burn for a revision without it only

    @cached_property
    def start(self) -> World:
        """Return the world before the first message."""
        return World((Vault(),) * len(self.federation.honest))

    def moves(self, world: World) -> Iterator[World]:
        """Yield the worlds that one message to one vault makes of this one."""
        for run in {question.run for question in self.questions.values() if question.revises} - world.revisions:
            yield from self._enter(world, run)
        for site, vault in enumerate(world.vaults):
            for name, question in self.questions.items():
                if site in question.cohort:
                    yield from self._train(world, site, vault, name)
                    for variant in range(self.variants):
                        yield from self._release(world, site, vault, name, variant)
                        yield from self._step(world, site, vault, name, variant)
            if self.burns:
                yield from self._burn(world, site, vault)
            if "no restore" not in self.rules and vault != Vault():
                yield self._with(world, site, Vault())

    def known(self, world: World) -> tuple[Vector, ...]:
        """Return the sums that the adversary knows."""
        return known_sums(self._vectors(world))

    def is_done(self, world: World) -> bool:
        """Tell whether all honest sites of a cohort have signed the last round of their run."""
        last: dict[str, int] = {}
        for question in self.questions.values():
            last[question.run] = max(question.round, last.get(question.run, 0))
        return any(
            question.round == last[question.run]
            and all(
                (question.run, question.round) in {s[:2] for s in vault.signed} for vault in self._of(world, question)
            )
            for question in self.questions.values()
        )

    def _enter(self, world: World, run: str) -> Iterator[World]:
        """Start a revision: every honest site of its cohort signs that no lock forbids it, and leaves the old run.

        All leave at once. Earlier revisions of the run are abandoned, unless a site of this one's cohort trains in one.
        """
        if run in world.abandoned:
            return
        (revision,) = [question for question in self.questions.values() if question.run == run]
        if not self._is_large_enough(revision):
            return
        others = {of.run for of in self.questions.values() if of.revises == revision.revises} & world.revisions
        for vault in self._of(world, revision):
            if any(self.questions[name].run in others for name in vault.masked.values()):
                return
            if "agreed revision" in self.rules and not self._is_free(world, vault, revision):
                return
        yield replace(world, revisions=world.revisions - others | {run}, abandoned=world.abandoned | others)

    def _train(self, world: World, site: int, vault: Vault, name: str) -> Iterator[World]:
        """P1: mask the stored update."""
        question, context = self.questions[name], self._context(name)
        if (
            context not in vault.masked
            and context not in vault.burned
            and self._is_current(world, site, vault, question)
            and self._is_large_enough(question)
            and self._is_certified(world, question)
            and self._is_free(world, vault, question)
        ):
            after = self._with(world, site, replace(vault, masked={**vault.masked, context: name}))
            yield replace(after, seen=after.seen | {(site, context, name, False)})

    def _release(self, world: World, site: int, vault: Vault, name: str, variant: int) -> Iterator[World]:
        """P2: name T, lock, and release the own mask."""
        question, context = self.questions[name], self._context(name)
        named = {of for at, of in vault.released if at == context}
        if (
            vault.masked.get(context) != name
            or context in vault.burned
            or variant in named
            or (named and "one T" in self.rules)
            or not self._is_current(world, site, vault, question)
            or any(context not in other.masked for other in self._of(world, question))
            or not self._is_free(world, vault, question)
        ):
            return
        blind = world.blind
        if (context, variant) not in blind:
            known = (symbol for vector in self.known(world) for symbol, _ in vector if isinstance(symbol, Update))
            blind = {**blind, (context, variant): all(symbol.weights != question.weights for symbol in known)}
        after = self._with(world, site, replace(vault, released=vault.released | {(context, variant)}))
        yield replace(after, blind=blind, seen=after.seen | {(site, context, name, True)})

    def _step(self, world: World, site: int, vault: Vault, name: str, variant: int) -> Iterator[World]:
        """P3: check the sum, step, and sign the new state."""
        question, context = self.questions[name], self._context(name)
        state = (question.run, question.round, f"{name}/{variant}")
        if (
            vault.masked.get(context) != name
            or state in vault.signed
            or (any(of[:2] == state[:2] for of in vault.signed) and "one state" in self.rules)
            or any((context, variant) not in other.released for other in self._of(world, question))
        ):
            return
        bound = {"sum in T", "challenge after sum"} <= self.rules
        helped = not question.cohort <= set(self.federation.honest)
        if not helped and variant and bound:
            return  # a false sum fails the linear check
        faults = set(world.faults)
        if not helped and variant:
            faults.add("a false sum is stepped")
        if "sum in T" not in self.rules:
            faults.add("a sum that was chosen after the release is stepped")
        if helped and not world.blind[context, variant]:
            faults.add("a colluder chose its part knowing the sum")
        if "counts in digest" not in self.rules:
            faults.add("a state is accepted with counts that its signatures do not cover")
        after = self._with(world, site, replace(vault, signed=vault.signed | {state}))
        states = {of for other in after.vaults for of in other.signed if of[:2] == state[:2]}
        if sum(self._has_certificate(after, question, of[2]) for of in states) > 1:
            faults.add("two states of a round are certified")
        yield replace(after, faults=frozenset(faults))

    def _burn(self, world: World, site: int, vault: Vault) -> Iterator[World]:
        """Sign that nothing was released in a context, and that nothing will be."""
        contexts = {self._context(name) for name in self.questions if self._may_burn(site, self.questions[name])}
        for context in contexts - vault.burned - {of for of, _ in vault.released}:
            yield self._with(world, site, replace(vault, burned=vault.burned | {context}))

    def _may_burn(self, site: int, question: Question) -> bool:
        """Tell whether a site is asked to burn: by the adversary whenever it likes, else for a revision without it."""
        revisions = (of for of in self.questions.values() if of.revises == question.run and self._is_large_enough(of))
        return site in question.cohort and (not self.honest or any(site not in of.cohort for of in revisions))

    def _context(self, name: str) -> Context:
        question = self.questions[name]
        place = (question.run, str(question.round))
        return (*place, question.state) if "base in context" in self.rules else place

    def _vectors(self, world: World) -> Iterator[Mapping[Symbol, int]]:
        """Yield the masked updates that were sent, without the masks that the adversary knows."""
        for site, context, name, _ in world.seen:
            question = self.questions[name]
            vector: dict[Symbol, int] = {Update(site, question.weights, question.plan): 1}
            if self.federation.outsider or (site, context, name, True) not in world.seen:
                vector[Mask((site,), context)] = 1
            for other in self.federation.honest:
                if other != site and other in question.cohort:
                    vector[Mask((min(site, other), max(site, other)), context)] = 1 if site < other else -1
            yield vector
            if "counts in vector" not in self.rules:
                yield {Update(site, question.weights, "counts"): 1}

    def _is_free(self, world: World, vault: Vault, question: Question) -> bool:
        """Tell whether no release of this vault forbids the question: the lock of the base model's weights."""
        for context, _ in vault.released:
            locked = self.questions[vault.masked[context]]
            if locked == question or locked.weights != question.weights:
                continue
            moved = self._is_moved(world, locked, context, question)
            if "lock" in self.rules and "plan in lock" in self.rules and locked.plan != question.plan:
                return False
            if "lock" in self.rules and locked.cohort != question.cohort and not moved:
                return False
            same = (locked.plan, locked.cohort) == (question.plan, question.cohort)
            if "no second mask" in self.rules and same and not moved:
                return False
        return True

    def _is_moved(self, world: World, locked: Question, context: Context, question: Question) -> bool:
        """Tell whether the lock moves to the question: a smaller cohort without the sites that burned the context."""
        if not question.cohort < locked.cohort:
            return False
        out = [site for site in self.federation.honest if site in locked.cohort - question.cohort]
        return "burn before move" not in self.rules or all(context in world.vaults[site].burned for site in out)

    def _is_large_enough(self, question: Question) -> bool:
        least = self.federation.min_honest + self.federation.colluders
        return "cohort size" not in self.rules or len(question.cohort) >= least

    def _is_certified(self, world: World, question: Question) -> bool:
        if "t certificates" not in self.rules:
            return True
        if question.forged:
            return False
        return not question.base or self._has_certificate(world, self.questions[question.base], question.state)

    def _has_certificate(self, world: World, question: Question, state: str) -> bool:
        """Tell whether t members have signed the state after a question; colluders sign anything."""
        signed = sum((question.run, question.round, state) in vault.signed for vault in self._of(world, question))
        colluding = len(question.cohort) - sum(site in question.cohort for site in self.federation.honest)
        return signed + colluding >= (len(question.cohort) + self.federation.colluders) // 2 + 1

    def _is_current(self, world: World, site: int, vault: Vault, question: Question) -> bool:
        """Tell whether a site still works on this round of this run."""
        if question.revises and question.run not in world.revisions:
            return False
        for of in self.questions.values():
            if of.revises == question.run and of.run in world.revisions and site in of.cohort:
                return False
        rounds = [self.questions[name] for name in vault.masked.values()]
        return all(of.run != question.run or of.round <= question.round for of in rounds)

    def _of(self, world: World, question: Question) -> list[Vault]:
        """Return the honest vaults of a question's cohort."""
        return [world.vaults[site] for site in self.federation.honest if site in question.cohort]

    @staticmethod
    def _with(world: World, site: int, vault: Vault) -> World:
        return replace(world, vaults=(*world.vaults[:site], vault, *world.vaults[site + 1 :]))
