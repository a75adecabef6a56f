"""Chosen strategy: the Flower strategy that a run configuration names, with settings, checked before the run starts.

Its settings are the numeric arguments of its constructor, but for those that select clients: it gets all updates.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy

from fedpp.cipher.domain_card import Scheme
from fedpp.config.run_config import RunSettings
from fedpp.errors import ConfigError

_TREES = "it grows trees, and a run trains a neural network"
_AT_CLIENTS = "it is for clients that clip their updates, which sites do not: use the ServerSide one"
REFUSED: Mapping[str, str] = {
    "FedProx": "its proximal term is the sites' part: set proximal, and no strategy",
    "FedXgbBagging": _TREES,
    "FedXgbCyclic": _TREES,
    "DifferentialPrivacyClientSideAdaptiveClipping": _AT_CLIENTS,
    "DifferentialPrivacyClientSideFixedClipping": _AT_CLIENTS,
}
_ALL_SITES = {  # no sampling and no wait: the updates are there
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
}
_NOT_SETTINGS = (*_ALL_SITES, "num_sampled_clients", "eta_l")  # Flower itself never reads eta_l
_NUMBERS: tuple[tuple[object, type], ...] = ((int, int), (float, float), (float | None, float))


@dataclass(frozen=True)
class ChosenStrategy:
    """A class of `flwr.serverapp.strategy`, and settings for its constructor."""

    kind: type[Strategy]
    settings: Mapping[str, int | float]

    @classmethod
    def of(cls, config: RunSettings, scheme: Scheme) -> Self | None:
        """Return the strategy of a run, None if it names none; raise `ConfigError` if a run cannot have it."""
        if not config.strategy:
            return None
        if config.strategy in REFUSED:
            raise ConfigError(f"run setting strategy cannot be {config.strategy}: {REFUSED[config.strategy]}")
        if config.strategy not in names():
            raise ConfigError(f"run setting strategy must be one of {', '.join(names())}, got {config.strategy!r:.80}")
        if scheme != "more-frame":
            raise ConfigError(
                f"run setting strategy={config.strategy} is for domains of the scheme more-frame, this one is of "
                f"{scheme}: on rows of slots a median or a norm is not that of the weights"
            )
        kind: type[Strategy] = getattr(flower, config.strategy)
        chosen = cls(kind, _parsed(kind, config.strategy_settings))
        chosen.made(config.min_sites())
        return chosen

    def made(self, sites: int) -> Strategy:
        """Return a new strategy object for this number of sites; raise `ConfigError` if its settings do not fit."""
        takes = inspect.signature(self.kind).parameters
        ours: dict[str, Any] = {**_ALL_SITES, "num_sampled_clients": sites}
        if "strategy" in takes:  # it wraps another
            ours["strategy"] = FedAvg(**_ALL_SITES)  # type: ignore[arg-type]
        try:
            return self.kind(**{name: value for name, value in ours.items() if name in takes}, **self.settings)
        except (ValueError, ArithmeticError) as error:
            raise ConfigError(
                f"run setting strategy-settings does not fit {self.kind.__name__} of {sites} sites: "
                f"{' '.join(str(error).split())}"
            ) from None


def names() -> list[str]:
    """Return the names of the strategies that a run may use."""
    found = {name: getattr(flower, name) for name in flower.__all__ if name not in REFUSED}
    return sorted(
        name
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Strategy) and not inspect.isabstract(kind)
    )


def _parsed(kind: type[Strategy], text: str) -> dict[str, int | float]:
    """Parse `name=value, name=value`, with the types of the constructor."""
    takes = _takes(kind)
    known = f"{kind.__name__} takes {', '.join(f'{name} ({of.__name__})' for name, of in takes.items()) or 'none'}"
    settings: dict[str, int | float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in takes or name in settings:
            raise ConfigError(f"run setting strategy-settings is name=value, each name once, got {part!r:.80}: {known}")
        settings[name] = _number(takes[name], name, value)
    missing = [name for name in takes if name not in settings and _has_no_default(kind, name)]
    if missing:
        raise ConfigError(f"run setting strategy-settings must give {', '.join(missing)}, got {text!r:.80}: {known}")
    return settings


def _takes(kind: type[Strategy]) -> dict[str, type[int | float]]:
    """Return the names and types of a strategy's numeric arguments."""
    found = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        for annotation, number in _NUMBERS:
            if parameter.annotation == annotation and name not in _NOT_SETTINGS:
                found[name] = number
    return found


def _has_no_default(kind: type[Strategy], name: str) -> bool:
    return inspect.signature(kind).parameters[name].default is inspect.Parameter.empty


def _number(kind: type[int | float], name: str, text: str) -> int | float:
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        wanted = "a whole number" if kind is int else "a finite number"
        raise ConfigError(f"run setting strategy-settings: {name} must be {wanted}, got {text!r:.80}")
    return number
