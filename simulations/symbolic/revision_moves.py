"""Locks, and the moves of a vault between runs: it signs a revision, abandons one, and burns a context."""

from collections.abc import Iterator

from .protocol_rules import FORK
from .setting import Setting
from .vault_world import Fact, Vault, World

Move = tuple[Fact, str]  # what a vault stores, and which promise breaks by it, or an empty text


def starts(setting: Setting, world: World, index: int) -> Iterator[Move]:
    """Yield revisions that a vault signs (S2): no lock of it forbids them, and it has signed no other."""
    vault, site = world.vaults[index], setting.site_of(index)
    for run, name in setting.first.items():
        request = setting.requests[name]
        if (
            request.revises
            and site in request.cohort
            and not {Fact("start", run), Fact("abandon", run)} & vault
            and ("cohort size" not in setting.rules or setting.federation.is_large_enough(request.cohort))
            and ("one successor" not in setting.rules or not _works_for(setting, vault, request.revises))
            and ("certified base" not in setting.rules or has_base(setting, world, name))
            and ("agreed revision" not in setting.rules or is_free(setting, world, vault, name))
        ):
            yield Fact("start", run), ""


def abandons(setting: Setting, world: World, index: int) -> Iterator[Move]:
    """Yield revisions that a vault leaves, for ever."""
    vault = world.vaults[index]
    for run, name in setting.first.items():
        left = Fact("abandon", run)
        if Fact("start", run) in vault and left not in vault and _is_asked_to_abandon(setting, world, name):
            trains = any(Fact("train", of) in vault for of in setting.requests if setting.requests[of].run == run)
            shown = world.having(left) or (setting.is_helped(name) and not setting.honest)
            shared = shown and "shared abandonment" in setting.rules
            if not trains or shared or "no way back" not in setting.rules:
                yield left, ""


def burns(setting: Setting, world: World, index: int) -> Iterator[Move]:
    """Yield contexts in which a vault signs that it has released nothing, and never will."""
    vault, site = world.vaults[index], setting.site_of(index)
    for name, request in setting.requests.items():
        if site in request.cohort and _is_asked_to_burn(setting, world, site, name):
            for variant in (0,) if "burn of a context" in setting.rules else range(setting.variants):
                fact = Fact("burn", name, variant)
                if fact not in vault and (setting.lost or not setting.has(vault, "release", name)):
                    yield fact, ""


def is_burned(setting: Setting, vault: Vault, name: str, variant: int) -> bool:
    """Tell whether a vault has burned this T of a request's context."""
    return setting.has(vault, "burn", name, (0,) if "burn of a context" in setting.rules else (variant,))


def is_current(setting: Setting, world: World, index: int, name: str) -> bool:
    """Tell whether a vault works for a request's run, and has not trained in a later round of it."""
    request, vault = setting.requests[name], world.vaults[index]
    if request.revises and (Fact("abandon", request.run) in vault or not _is_started(setting, world, name)):
        return False
    trained = (setting.requests[of] for purpose, of, _ in vault if purpose == "train")
    return all(of.run != request.run or of.round <= request.round for of in trained)


def may_release(setting: Setting, vault: Vault, name: str) -> bool:
    """Tell whether a vault has not signed a revision of a request's run, or has abandoned it."""
    return "agreement binds" not in setting.rules or not _works_for(setting, vault, setting.requests[name].run)


def is_free(setting: Setting, world: World, vault: Vault, name: str) -> bool:
    """Tell whether no release of a vault forbids a request: the locks of the base model's weights."""
    return not any(
        _forbids(setting, locked, name) and not _is_moved(setting, world, locked, variant, name)
        for purpose, locked, variant in vault
        if purpose == "release"
    )


def has_base(setting: Setting, world: World, name: str) -> bool:
    """Tell whether the base of a request is certified; an initial model needs no certificate."""
    request = setting.requests[name]
    certified = request.base and not request.forged and setting.has_certificate(world, request.base, request.variant)
    return not request.base or bool(certified)


def fork(setting: Setting, world: World, name: str) -> str:
    """Return a fault if another successor of a request's parent is active beside its run."""
    request = setting.requests[name]
    others = set(setting.successors.get(request.revises, ())) - {request.run}
    stepped = {setting.requests[fact.about].run for _, fact in world.stored("step")}
    return FORK if request.revises and stepped & others else ""


def _forbids(setting: Setting, locked: str, wanted: str) -> bool:
    old, new = setting.requests[locked], setting.requests[wanted]
    if old == new or old.weights != new.weights:
        return False
    if old.cohort != new.cohort:
        return "lock" in setting.rules
    if old.plan != new.plan:
        return {"lock", "plan in lock"} <= setting.rules
    return "no second mask" in setting.rules


def _is_moved(setting: Setting, world: World, locked: str, variant: int, wanted: str) -> bool:
    """Tell whether a lock moves to a request: a smaller cohort, without sites that burned the context."""
    old, new = setting.requests[locked], setting.requests[wanted]
    if not new.cohort < old.cohort or old.plan != new.plan:
        return False
    out = old.cohort - new.cohort
    burned = {site for site in setting.honest_of[locked] if is_burned(setting, world.vaults[site], locked, variant)}
    colluding = old.cohort - set(setting.federation.honest)  # these sign anything
    voices = burned | (colluding & out if setting.honest else colluding)
    if "more burns" in setting.rules and max(len(out), len(voices) - 1) < setting.federation.colluders:
        return False
    return "burn before move" not in setting.rules or out - colluding <= burned


def _works_for(setting: Setting, vault: Vault, parent: str) -> bool:
    """Tell whether a vault has signed a successor of a run, and not abandoned it."""
    runs = setting.successors.get(parent, ())
    return any(Fact("start", run) in vault and Fact("abandon", run) not in vault for run in runs)


def _is_started(setting: Setting, world: World, name: str) -> bool:
    """Tell whether the whole cohort of a revision has signed it, and t members of the old run."""
    request = setting.requests[name]
    signed = {setting.site_of(index) for index, fact in world.stored("start") if fact.about == request.run}
    old = setting.requests[setting.first[request.revises]].cohort
    voices = signed | (request.cohort - set(setting.federation.honest))
    enough = len(voices & old) >= setting.federation.threshold(old) or "t of the old" not in setting.rules
    return signed.issuperset(setting.honest_of[name]) and enough


def _is_asked_to_burn(setting: Setting, world: World, site: int, name: str) -> bool:
    """Tell whether a site is asked to burn: a lock may then move, and an honest coordinator needs it for a revision."""
    wanted = setting.requests[name]
    if not setting.honest:
        moves = any(site not in of.cohort and of.weights == wanted.weights for of in setting.requests.values())
        return setting.burns and (moves or "more burns" in setting.rules)
    return any(other.about == name for _, other in world.stored("release")) and any(
        site not in revision.cohort
        and revision.weights == wanted.weights
        and setting.federation.is_large_enough(revision.cohort)
        and not world.having(Fact("abandon", run))
        for run in setting.successors.get(wanted.run, ())
        for revision in (setting.requests[setting.first[run]],)
    )


def _is_asked_to_abandon(setting: Setting, world: World, name: str) -> bool:
    """Tell whether a site is asked to abandon a revision: by an honest coordinator only while another way is open.

    That is the old run, until a site burned for the revision; then a revision for which a site burned as well.
    """
    wanted = setting.requests[name]
    burned = {setting.site_of(index) for index, _ in world.stored("burn")}
    ways = [run for run in setting.successors[wanted.revises] if burned - setting.requests[setting.first[run]].cohort]
    kept = [run for run in ways if not world.having(Fact("abandon", run))]
    return not setting.honest or kept != [wanted.run]
