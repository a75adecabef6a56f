"""Trial: one training of a network on one fold and side, and its saved result."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import NDArray

from fedpp.learning.early_stopping import EarlyStopping
from fedpp.learning.metrics import count, metrics, softmax

from .sides import Side
from .study import Fold

CURVE_SAMPLE = 32  # training sequences for the curves: to predict all of them would cost a third more
CURVES = ("training_loss", "training_accuracy", "validation_loss", "validation_accuracy")


@dataclass(frozen=True)
class Trial:
    """Result of one training. Probabilities are of all sequences, so that sides can be compared on all."""

    probabilities: tuple[tuple[float, ...], ...]  # [k, classes]
    curves: dict[str, tuple[float, ...]]  # by CURVES, a figure an epoch; of controls none
    epoch_seconds: tuple[float, ...]  # of training alone; the first of a side includes compilation
    best_epoch: int  # whose weights were kept, from 1

    @property
    def array(self) -> NDArray[np.float64]:
        """Return the probabilities as an array."""
        return np.array(self.probabilities)

    def to_mapping(self) -> dict[str, Any]:
        """Return values for JSON, which keeps float64 to the bit."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        rows = tuple(tuple(row) for row in values["probabilities"])
        curves = {name: tuple(curve) for name, curve in values["curves"].items()}
        return cls(rows, curves, tuple(values["epoch_seconds"]), int(values["best_epoch"]))


def train(side: Side, fold: Fold, *, curves: bool, report: Callable[[int], None]) -> Trial:
    """Train a started side, and predict all sequences with the kept weights.

    On ciphertext the curves and the loss of early stopping are of predictions that the owner has decrypted.
    """
    early = side.settings.stopping == "early"
    follow = Follow(side, fold, curves=curves or early, report=report)
    callbacks: list[keras.callbacks.Callback] = [follow]
    best = None
    if early:
        best = EarlyStopping(lambda _: follow.curves["validation_loss"][-1])
        callbacks.append(best)
    side.fit(fold, callbacks)
    probabilities = softmax(side.logits(np.arange(len(side.study.labels))))
    kept = best.best_epoch if best else len(follow.seconds)
    figures = {name: tuple(values) for name, values in follow.curves.items() if curves}
    return Trial(tuple(map(tuple, probabilities.tolist())), figures, tuple(follow.seconds), kept)


class Follow(keras.callbacks.Callback):  # type: ignore[misc]
    """Callback that times each epoch, and then evaluates the validation and some training sequences."""

    def __init__(self, side: Side, fold: Fold, *, curves: bool, report: Callable[[int], None]) -> None:
        """Follow the training of a side on a fold; `report` is called with the number of each finished epoch."""
        super().__init__()
        self._side, self._labels, self._wanted, self._report = side, side.study.labels, curves, report
        sample = np.random.default_rng([fold.seed, fold.number]).permutation(fold.train)[:CURVE_SAMPLE]
        self._parts = {"training": np.sort(sample), "validation": fold.validation}
        self.curves: dict[str, list[float]] = {name: [] for name in CURVES}
        self.seconds: list[float] = []
        self._started = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Stop the clock, and evaluate."""
        self.seconds.append(time.perf_counter() - self._started)
        if self._wanted:
            positions = np.concatenate(list(self._parts.values()))
            split = len(self._parts["training"])
            probabilities = softmax(self._side.logits(positions))
            for part, of in (("training", slice(split)), ("validation", slice(split, None))):
                figures = metrics(count(self._labels[positions[of]], probabilities[of]))
                self.curves[f"{part}_loss"].append(float(figures.loss or 0.0))
                self.curves[f"{part}_accuracy"].append(float(figures.accuracy or 0.0))
        self._report(epoch + 1)
