"""Plaintext side of the paper's experiment: a network of stock Keras layers on sequences in clear."""

from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from fedpp.cipher.components import Algebra
from fedpp.config.model_spec import ModelSpec
from fedpp.learning.batches import Indices, Reader
from fedpp.learning.initial_weights import initial_weights
from fedpp.learning.learner import Learner
from simulations.plaintext_reference import moved

from .paper_settings import Settings
from .study import Fold, Study

Values = NDArray[np.floating]


class PlaintextSide:
    """Plaintext network, compiled once for many trainings."""

    def __init__(self, study: Study, network: ModelSpec, settings: Settings) -> None:
        """Build and compile the network."""
        self._study, self._network, self._settings = study, network, settings
        self._learner = Learner(
            network, Algebra.plaintext(), settings.training.hyperparameters, settings.training.dtype
        )
        self._one_hot = np.eye(len(network.task.classes), dtype=settings.training.dtype)[study.labels]

    def start(self, seed: int, draw: int | None = None) -> None:
        """Set the initial weights of a seed, for a control's draw each moved by one unit in the last place."""
        drawn = initial_weights(self._network, self._study.domain.initial_seed(seed))
        weights = [drawn[spec.name].astype(self._settings.training.dtype) for spec in self._network.weights()]
        self._learner.model.set_weights(weights if draw is None else moved(weights, draw))
        self._learner.model.optimizer.restart()

    def fit(self, fold: Fold, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Train on the fold's training sequences."""
        self._learner.fit(
            self._inputs(),
            lambda i: self._one_hot[i],
            fold.train,
            epochs=self._settings.training.epochs,
            seed=(fold.seed, fold.number),
            callbacks=callbacks,
        )

    def logits(self, positions: Indices) -> Values:
        """Return logits `[k, classes]`."""
        return self._learner.predict(self._inputs(), positions).astype(np.float64)

    def _inputs(self) -> list[Reader]:
        return [lambda i: self._study.frames[i], lambda i: self._study.valid[i]]
