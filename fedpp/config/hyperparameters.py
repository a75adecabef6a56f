"""How a network learns, at a site and between rounds: values that both twins, every site and a checkpoint share."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from fedpp.errors import ConfigError

MAX = 4096  # sequences of a batch
ServerOptimizer = Literal["fedavg", "fedavgm", "fedadam", "fedyogi"]

SERVER_OPTIMIZERS: tuple[ServerOptimizer, ...] = get_args(ServerOptimizer)
MIN_DELTA, PATIENCE = 0.001, 10  # of early stopping, the paper's: nats, and epochs


@dataclass(frozen=True)
class Hyperparameters:
    """The settings of the training, but its length and its seed.

    A step takes the mean gradient of a batch, whose sequences go through the network `micro_batch` at a time: the
    steps are the same, the memory is that of a micro-batch. `positive_weight` multiplies the loss of every class but
    the first, or of every finding that is present; `label_smoothing` is Keras's.
    `proximal` is the mu of FedProx (Li et al. 2020, arXiv:1812.06127): each step's gradient gets mu times the way that
    the weights have gone from those that training began with.
    """

    learning_rate: float = 1e-3
    batch_size: int = 8
    micro_batch: int = 16
    positive_weight: float = 1.0
    label_smoothing: float = 0.0
    proximal: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("batch_size", "micro_batch"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX:
                raise _refused(name, f"a whole number from 1 to {MAX}", value)
        for name in ("learning_rate", "positive_weight"):
            value = getattr(self, name)
            if type(value) not in {int, float} or not 0 < value <= sys.float_info.max:
                raise _refused(name, "positive and finite", value)
        if type(self.label_smoothing) not in {int, float} or not 0 <= self.label_smoothing < 1:
            raise _refused("label_smoothing", "at least 0 and below 1", self.label_smoothing)
        if type(self.proximal) not in {int, float} or not 0 <= self.proximal <= sys.float_info.max:
            raise _refused("proximal", "at least 0 and finite", self.proximal)

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)


@dataclass(frozen=True)
class ServerOptimizerConfig:
    """How the mean update of a round moves the global model; `fedpp.aggregation.server_step` takes the step.

    `momentum` is the beta of FedAvgM, and beta_1 of FedAdam and FedYogi; they alone have `beta_2` and `tau`.
    """

    name: ServerOptimizer = "fedavg"
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta_2: float = 0.99
    tau: float = 0.001

    def __post_init__(self) -> None:
        """Refuse values out of range; numbers become floats, so that equal rules are the same bytes."""
        if self.name not in SERVER_OPTIMIZERS:
            raise _refused("server_optimizer", f"one of {', '.join(SERVER_OPTIMIZERS)}", self.name)
        for name in ("learning_rate", "tau"):
            value = getattr(self, name)
            if type(value) not in {int, float} or not 0 < value <= sys.float_info.max:
                raise _refused(f"server_{name}", "positive and finite", value)
        for name in ("momentum", "beta_2"):
            value = getattr(self, name)
            if type(value) not in {int, float} or not 0 <= value < 1:
                raise _refused(f"server_{name}", "at least 0 and below 1", value)
        for name in ("learning_rate", "momentum", "beta_2", "tau"):
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)  # -0.0 is 0.0

    @property
    def moments(self) -> tuple[str, ...]:
        """Return what is remembered of the updates of the rounds before."""
        return {"fedavg": (), "fedavgm": ("first",)}.get(self.name, ("first", "second"))

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned; raise `ConfigError` for anything else."""
        try:
            return cls(**values)
        except TypeError:
            raise ConfigError("a server's rule has name, learning_rate, momentum, beta_2 and tau, got others") from None


def _refused(name: str, wanted: str, value: object) -> ConfigError:
    return ConfigError(f"setting {name.replace('_', '-')} must be {wanted}, got {value!r:.40}")
