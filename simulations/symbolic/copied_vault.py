"""Copied vault: which statement chains of the first site, whose vault was copied, the other sites accept."""

from collections.abc import Iterator

from .protocol_rules import UNNOTICED
from .setting import Setting
from .vault_world import Fact, Vault, World

_SAW = "saw "
_PHASES = ("train", "release", "step")
_SHOWN = {"release": "train", "step": "release"}  # what a vault is shown of every member before it signs


def looks(setting: Setting, world: World, index: int, fact: Fact) -> Iterator[tuple[tuple[Fact, ...], str]]:
    """Yield what a vault sees of the first site when it signs a fact: the chain up to the statement that it needs.

    Either of two copies may show its chain. It must continue what the vault saw before, or be a part of it.
    """
    shown = _SHOWN.get(fact.purpose)
    request = setting.requests.get(fact.about)
    if not setting.copies or setting.site_of(index) == 0 or not shown or not request or 0 not in request.cohort:
        yield (), ""
        return
    seen = frozenset(
        of._replace(purpose=of.purpose.removeprefix(_SAW)) for of in world.vaults[index] if _SAW in of.purpose
    )
    of_run = frozenset(of for of in seen if setting.requests[of.about].run == request.run)
    for number, vault in enumerate(world.vaults):
        if setting.site_of(number) == 0 and fact._replace(purpose=shown) in vault:
            chain = _chain(setting, vault, request.run, (request.round, _PHASES.index(shown)))
            continues = of_run <= chain or chain <= of_run
            if continues or "statement chain" not in setting.rules:
                saw = tuple(of._replace(purpose=_SAW + of.purpose) for of in chain - of_run)
                yield saw, "" if continues else UNNOTICED


def _chain(setting: Setting, vault: Vault, run: str, end: tuple[int, int]) -> Vault:
    """Return the statements of a run up to a round and phase; in one run they have one order."""
    return frozenset(
        of
        for of in vault
        if of.purpose in _PHASES
        and setting.requests[of.about].run == run
        and (setting.requests[of.about].round, _PHASES.index(of.purpose)) <= end
    )
