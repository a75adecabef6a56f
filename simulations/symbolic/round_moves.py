"""Moves of a vault in a round: P1 train, P2 release, P3 step."""

from collections.abc import Iterator

from .federation import CHOSEN
from .protocol_rules import CHOICE, FALSE, KNOWING, SPLIT, STATES
from .revision_moves import Move, fork, has_base, is_burned, is_current, is_free, may_release
from .setting import Setting
from .vault_world import Fact, Vault, World

_SHARED = "shared abandonment"


def trains(setting: Setting, world: World, index: int) -> Iterator[Move]:
    """Yield requests for which a vault masks its update (P1)."""
    vault, site = world.vaults[index], setting.site_of(index)
    for name, request in setting.requests.items():
        if (
            site in request.cohort
            and not setting.has(vault, "train", name)
            and not setting.has(vault, "burn", name)
            and ("cohort size" not in setting.rules or setting.federation.is_large_enough(request.cohort))
            and is_current(setting, world, index, name)
            and _is_certified(setting, world, vault, name)
            and is_free(setting, world, vault, name)
        ):
            chosen = request.forged or not request.endorsed
            yield Fact("train", name, int(index != site)), CHOICE if chosen else ""


def releases(setting: Setting, world: World, index: int) -> Iterator[Move]:
    """Yield T's for which a vault releases its own mask (P2): every member has signed the context."""
    vault = world.vaults[index]
    for purpose, name, made in vault:
        if (
            purpose == "train"
            and (not setting.has(vault, "release", name) or "one T" not in setting.rules)
            and setting.all_have(world, "train", name)
            and is_current(setting, world, index, name)
            and is_free(setting, world, vault, name)
            and may_release(setting, vault, name)
        ):
            for variant in _variants(setting, world, index, name, made):
                fact = Fact("release", name, variant)
                if fact not in vault and not is_burned(setting, vault, name, variant):
                    yield fact, ""


def steps(setting: Setting, world: World, index: int) -> Iterator[Move]:
    """Yield sums that a vault steps (P3): every member has released its mask for the T that this vault named."""
    vault = world.vaults[index]
    for purpose, name, named in vault:
        if purpose == "release" and setting.all_have(world, "release", name, (named,)):
            request = setting.requests[name]
            rounds = ((setting.requests[of].run, setting.requests[of].round) for kind, of, _ in vault if kind == "step")
            is_first = (request.run, request.round) not in rounds
            for total in (named,) if "sum in T" in setting.rules else range(setting.variants):
                fact = Fact("step", name, total)
                if (
                    fact not in vault
                    and (is_first or "one state" not in setting.rules)
                    and _passes(setting, name, total)
                ):
                    yield fact, _fault(setting, world, index, fact, named)


def forbids_nothing(setting: Setting, world: World, index: int, fact: Fact) -> bool:
    """Tell whether a fact forbids nothing that could happen without it: it is then searched in no order but "at once".

    So is a step where a vault names one T and needs no counts, and no other request is of its round. So is a
    training once the vault has released its masks of the rounds before, if it can leave the run: a colluder can always
    abandon a revision.
    """
    if (
        setting.copies
        or not {"one T", "sum in T", "counts in digest"} <= setting.rules
        or fact.purpose not in {"train", "step"}
    ):
        return False
    request, vault = setting.requests[fact.about], world.vaults[index]
    of_run = [(name, of) for name, of in setting.requests.items() if of.run == request.run and name != fact.about]
    if fact.purpose == "step":
        return all(of.round != request.round for _, of in of_run)
    before = (name for name, of in of_run if of.round <= request.round)
    leaves = not request.revises or (setting.is_helped(fact.about) and not setting.honest and _SHARED in setting.rules)
    return leaves and all(setting.has(vault, "release", name) for name in before)


def _variants(setting: Setting, world: World, index: int, name: str, made: int) -> Iterator[int]:
    """Yield the variants of T that a vault can be asked for; of a copied vault's two statements one is in T."""
    if not setting.copies:
        yield from range(setting.variants)
    elif setting.site_of(index) == 0:
        yield made
    else:
        yield from (variant for variant in (0, 1) if world.having(Fact("train", name, variant)))


def _passes(setting: Setting, name: str, total: int) -> bool:
    """Tell whether a sum passes the linear check: it is true, a colluder's tag pays for it, or it fits the challenge.

    Whoever knows the challenge before it fixes the sum adds a difference that is orthogonal to it.
    """
    early = not {"sum in T", "challenge after sum"} <= setting.rules
    return total == 0 or setting.copies or setting.is_helped(name) or early


def _fault(setting: Setting, world: World, index: int, fact: Fact, named: int) -> str:
    """Return which promise breaks when a vault steps a sum."""
    _, name, total = fact
    if not setting.is_helped(name) and total and not setting.copies:
        return FALSE
    stepped = {other.choice for _, other in world.stored("step") if other.about in setting.sharing[name]}
    if stepped - {total}:
        return SPLIT
    if setting.is_helped(name) and ((name, named) in world.knowing or total != named):
        return KNOWING
    return _two_states(setting, world.storing(index, fact), name) or fork(setting, world, name)


def _two_states(setting: Setting, world: World, name: str) -> str:
    """Return a fault if two states of a request's round are certified."""
    place = (setting.requests[name].run, setting.requests[name].round)
    rivals = (of for of, other in setting.requests.items() if (other.run, other.round) == place)
    certified = sum(setting.has_certificate(world, of, variant) for of in rivals for variant in (0, 1))
    return STATES if certified > 1 else ""


def _is_certified(setting: Setting, world: World, vault: Vault, name: str) -> bool:
    """Tell whether a vault takes the base of a request, with counts that it opened itself, or that others report."""
    request = setting.requests[name]
    if not request.base:
        return request.endorsed or "endorsement" not in setting.rules
    if "t certificates" not in setting.rules:
        return True
    if not has_base(setting, world, name):
        return False
    opened = any(fact.purpose == "step" and fact.about == request.base for fact in vault)
    return request.counts != CHOSEN or not (opened or "counts in digest" in setting.rules)
