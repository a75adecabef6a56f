"""Limits of run contracts: what a hospital's vault signs without asking its staff, in the part `limits` of `site.yaml`.

They bound who takes part, how much one round can move the model, and how often a run may start, so that nobody can ask
the hospital's data more than its staff allows. The defaults admit every scenario that comes with the project, but for
those of two sites.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from fedpp.config.model_spec import ARCHITECTURES, Architecture
from fedpp.config.run_config import MAX_BOUND, MAX_SITES, MIN_BOUND, MIN_HONEST, Reporting
from fedpp.errors import ConfigError
from fedpp.values import Declared, Listed, number, text, whole

MAX_STEP = 4.0  # learning rates a local step: what Adam steps at most in practice
VALIDITY_DAYS, MAX_DAYS = 60, 36_525  # of a contract, as coordinators make them and at most
SMALL_COHORT = 5  # members, up to which a run pauses when one is away

InitialModel = Literal["fresh", "endorsed"]
INITIAL_MODELS: tuple[InitialModel, ...] = ("fresh", "endorsed")

_MAX_COUNT = 2**31 - 1
_Name = Annotated[str, text(200)]


@dataclass(frozen=True)
class RunLimits(Declared, label="limits", hyphens=True):
    """What a run contract may say for this site's vault to sign it."""

    members: Annotated[tuple[_Name, ...] | None, Listed(least=1, distinct=True)] = None  # None: any certified site
    min_honest: Annotated[int, whole(MIN_HONEST, MAX_SITES)] = MIN_HONEST  # the contract has at least as many
    colluders: Annotated[int, whole(1, MAX_SITES)] = 1  # the contract reckons with at least as many
    max_rounds: Annotated[int, whole(1, _MAX_COUNT)] = 1000
    max_days: Annotated[int, whole(1, MAX_DAYS)] = VALIDITY_DAYS  # from now to the contract's end
    min_learning_rate: Annotated[float, number(above=0)] = 1e-6  # of the sites' optimizer
    max_learning_rate: Annotated[float, number(above=0)] = 0.1
    # Near zero, models of many rounds hardly differ, and their sums can be compared.
    min_server_learning_rate: Annotated[float, number(above=0)] = 0.001
    max_server_learning_rate: Annotated[float, number(above=0)] = 1.0
    max_update_value: Annotated[float, number(least=MIN_BOUND, most=MAX_BOUND)] = 64.0  # a wider range is coarser
    max_step: Annotated[float, number(above=0, most=MAX_STEP)] = MAX_STEP  # RMS of a step, in learning rates a step
    architectures: Annotated[tuple[Architecture, ...], Listed(least=1, distinct=True)] = ARCHITECTURES
    max_batch_share: Annotated[float, number(above=0, most=1)] = 1.0  # of the site's training sequences
    max_changes: Annotated[int, whole(0, _MAX_COUNT)] | None = None  # of the cohort; none: by its size
    initial_models: Annotated[tuple[InitialModel, ...], Listed(least=1, distinct=True)] = INITIAL_MODELS
    reporting: Reporting = "aggregate"  # per-site: figures of this site alone may go to the coordinator, too
    max_epsilon: Annotated[float, number(above=0)] | None = None  # spent on a patient; none: runs without privacy, too
    max_runs: Annotated[int, whole(0, _MAX_COUNT)] = 12  # started without the operator within a year
    max_starts: Annotated[int, whole(0, _MAX_COUNT)] = 5  # coins shown without the operator within a day
    two_sites: Literal["refused", "accepted"] = "refused"  # runs of two sites, which hide nothing from each other

    def __post_init__(self) -> None:
        """Refuse bounds that nothing fits."""
        super().__post_init__()
        for of, least, most in (
            ("learning-rate", self.min_learning_rate, self.max_learning_rate),
            ("server-learning-rate", self.min_server_learning_rate, self.max_server_learning_rate),
        ):
            if least > most:
                raise ConfigError(f"limits: min-{of} must be at most max-{of}, {most:g}, got {least:g}")

    def changes(self, members: int) -> int:
        """Return how many changes a run whose cohort has so many members may see."""
        if self.max_changes is not None:
            return self.max_changes
        return 0 if members <= SMALL_COHORT else 1
