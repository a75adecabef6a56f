"""How a network learns: one value that both twins, every site and a checkpoint share."""

from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from fedpp.errors import ConfigError

MOST = 4096  # sequences of a batch
MIN_DELTA, PATIENCE = 0.001, 10  # of early stopping, the paper's: nats, and epochs


@dataclass(frozen=True)
class Recipe:
    """The settings of the training, but its length and its seed.

    A step takes the mean gradient of a batch, whose sequences go through the network `micro_batch` at a time: the
    steps are the same, the memory is that of a micro-batch. `positive_weight` multiplies the loss of every class but
    the first, or of every finding that is present; `label_smoothing` is Keras's.
    """

    learning_rate: float = 1e-3
    batch_size: int = 8
    micro_batch: int = 16
    positive_weight: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("batch_size", "micro_batch"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MOST:
                raise _refused(name, f"a whole number from 1 to {MOST}", value)
        for name in ("learning_rate", "positive_weight"):
            value = getattr(self, name)
            if type(value) not in {int, float} or not 0 < value < inf:
                raise _refused(name, "positive and finite", value)
        if type(self.label_smoothing) not in {int, float} or not 0 <= self.label_smoothing < 1:
            raise _refused("label_smoothing", "at least 0 and below 1", self.label_smoothing)

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)


def _refused(name: str, wanted: str, value: object) -> ConfigError:
    return ConfigError(f"setting {name.replace('_', '-')} must be {wanted}, got {value!r:.40}")
