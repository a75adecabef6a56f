"""Attack: an attempt on real vaults, what chance would learn, and the control, in which a protection is off.

Protections are switched off here, by other functions in place of the product's, for the time of a control alone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpp.errors import FedppError

from .scene.laboratory import Laboratory

Off = Callable[[], AbstractContextManager[Any]]
TOLERANCE = 0.01  # of the truth's standard deviation: a value so near is known
CHANCE = 0.05  # of values that are near by chance: 1 % of a normal distribution is, give or take


@dataclass(frozen=True)
class Attack:
    """One attack: `attempt` returns what the attackers learned, with all protections on or with some `off`."""

    claim: str  # which of G1 to G6, or item of the page on threats, it tries to break
    attempt: Callable[[Laboratory], float]
    off: Off
    chance: float = 0.0  # the most that is learned by guessing
    threshold: float = 0.99  # the least that the control learns

    @property
    def tried(self) -> str:
        """Return one line that says what is tried."""
        return (self.attempt.__doc__ or "").partition("\n")[0]


@contextmanager
def replaced(*places: tuple[object, str, object]) -> Iterator[None]:
    """Put something else in place of attributes, given as holder, name and value, for a block."""
    with ExitStack() as stack:
        for holder, name, value in places:
            stack.callback(setattr, holder, name, vars(holder)[name])
            setattr(holder, name, value)
        yield


def known(estimate: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Return the share of values that an estimate tells."""
    return float(np.mean(np.abs(estimate - truth) <= TOLERANCE * truth.std()))


def likeness(estimate: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Return the magnitude of the correlation of two arrays; 0 for a constant one."""
    if not estimate.std() or not truth.std():
        return 0.0
    return abs(float(np.corrcoef(estimate.ravel(), truth.ravel())[0, 1]))


def share(succeeded: list[bool]) -> float:
    """Return the share of tries that succeeded."""
    return sum(succeeded) / len(succeeded)


def granted(request: Callable[..., object], *arguments: object) -> bool:
    """Tell whether a request is granted, and not refused."""
    with suppress(FedppError):
        request(*arguments)
        return True
    return False
