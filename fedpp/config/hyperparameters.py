"""Hyperparameters: how a network learns, with one declaration of each, its bounds, its default and its help text.

A run, a scenario, the paper's experiment, a site's own training and every site of a federation hold the same value.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from fedpp.config.model_spec import ModelChoices
from fedpp.errors import ConfigError
from fedpp.values import Declared, Flat, number, whole

Dtype = Literal["float32", "float64"]

DTYPES: tuple[Dtype, ...] = ("float32", "float64")
MAX_BATCH = 4096  # sequences
MAX_EPOCHS = 1000
MIN_DELTA, PATIENCE = 0.001, 10  # of early stopping, the paper's: nats, and epochs


@dataclass(frozen=True)
class Hyperparameters(Declared, label="hyperparameters"):
    """Settings of the optimizer and the loss.

    A step takes the mean gradient of a batch, whose sequences go through the network `micro_batch` at a time: the
    steps are the same, the memory is that of a micro-batch. `label_smoothing` is Keras's.
    `proximal` is the mu of FedProx (Li et al. 2020, arXiv:1812.06127): each step's gradient gets mu times the distance
    of the weights from those that training began with.
    """

    learning_rate: Annotated[float, number(above=0), "of Adam"] = 1e-3
    batch_size: Annotated[int, whole(1, MAX_BATCH), "sequences of a step"] = 8
    micro_batch: Annotated[int, whole(1, MAX_BATCH), "sequences of a batch in memory at a time"] = 16
    positive_weight: Annotated[
        float,
        number(least=0),
        "weight of the loss of all classes but the first, or of a finding that is present; 0, in federations alone: "
        "balanced by the training labels of all sites, from round 2",
    ] = 1.0
    label_smoothing: Annotated[float, number(least=0, below=1), "share of a label that is spread over all classes"] = (
        0.0
    )
    proximal: Annotated[float, number(least=0), "mu of FedProx; 0: none"] = 0.0

    @property
    def balanced(self) -> bool:
        """Return whether the weights of the loss follow from the training labels of a federation's sites."""
        return self.positive_weight == 0

    def require_fixed(self) -> None:
        """Raise `ConfigError` for weights that only a federation has."""
        if self.balanced:
            raise ConfigError(
                "positive-weight 0 is of a federation, whose sites count their training labels together, got 0 for a "
                "training without one: give a number above 0"
            )


@dataclass(frozen=True)
class Training(Declared, label="training"):
    """All that decides which weights a training ends with, but its data: hyperparameters, model, length and seed."""

    epochs: Annotated[int, whole(1, MAX_EPOCHS), "passes over the training data; in a federation, of a round"] = 2
    hyperparameters: Annotated[Hyperparameters, Flat()] = Hyperparameters()
    seed: Annotated[int, whole(), "seed of initial weights and batches"] = 0
    dtype: Annotated[Dtype, "precision of weights and updates"] = "float32"
    model: Annotated[ModelChoices, Flat()] = ModelChoices()
