"""Sides of the paper's experiment: one network on sequences in clear, and the same network on ciphertext.

The ciphertext side is a trainer with the evaluation key and an owner who decrypts predictions. In a hospital they are
two zones: there the trainer sends the rows of its predictions to the vault (`Evaluate`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from fedpp.cipher.components import Algebra
from fedpp.config.model_spec import ModelSpec
from fedpp.keys import encryption
from fedpp.learning.batches import Indices, Reader
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights
from fedpp.learning.learner import Learner
from simulations.plaintext_reference import moved

from .paper_settings import Settings
from .study import Fold, Study

Values = NDArray[np.floating]
Callbacks = Sequence[keras.callbacks.Callback]


class Side(ABC):
    """Network of a study on one side, compiled once for many trainings."""

    def __init__(self, study: Study, network: ModelSpec, settings: Settings) -> None:
        """Keep what the sides have in common."""
        self.study, self.network, self.settings = study, network, settings

    @abstractmethod
    def start(self, seed: int, draw: int | None = None) -> None:
        """Set the initial weights of a seed, for a control's draw each moved by one unit in the last place."""

    @abstractmethod
    def fit(self, fold: Fold, callbacks: Callbacks) -> None:
        """Train on the fold's training sequences."""

    @abstractmethod
    def logits(self, positions: Indices) -> Values:
        """Return logits `[k, classes]`."""


class PlaintextSide(Side):
    """Network of stock Keras layers on sequences in clear."""

    def __init__(self, study: Study, network: ModelSpec, settings: Settings) -> None:
        """Build and compile the network."""
        super().__init__(study, network, settings)
        training = settings.training
        self._learner = Learner(network, Algebra.plaintext(), training.hyperparameters, training.dtype)
        self._one_hot = np.eye(len(network.task.classes), dtype=training.dtype)[study.labels]
        self._inputs: list[Reader] = [lambda i: study.frames[i], lambda i: study.valid[i]]

    def start(self, seed: int, draw: int | None = None) -> None:
        """Set the initial weights of a seed, for a control's draw each moved by one unit in the last place."""
        drawn = initial_weights(self.network, self.study.domain.initial_seed(seed))
        weights = [drawn[spec.name].astype(self.settings.training.dtype) for spec in self.network.weights()]
        self._learner.model.set_weights(weights if draw is None else moved(weights, draw))
        self._learner.model.optimizer.restart()

    def fit(self, fold: Fold, callbacks: Callbacks) -> None:
        """Train on the fold's training sequences."""
        epochs, seed = self.settings.training.epochs, (fold.seed, fold.number)
        labels = self._one_hot.__getitem__
        self._learner.fit(self._inputs, labels, fold.train, epochs=epochs, seed=seed, callbacks=callbacks)

    def logits(self, positions: Indices) -> Values:
        """Return logits `[k, classes]`."""
        return self._learner.predict(self._inputs, positions).astype(np.float64)


class CiphertextSide(Side):
    """Encrypted network on ciphertext."""

    def __init__(self, study: Study, network: ModelSpec, settings: Settings) -> None:
        """Build and compile the network in the algebra of the dataset's domain."""
        super().__init__(study, network, settings)
        self._key = study.domain.evaluation_key()
        training = settings.training
        self._trainer = EncryptedTrainer(network, self._key.algebra(), training.hyperparameters, training.dtype)

    def start(self, seed: int, draw: int | None = None) -> None:
        """Set the encrypted initial weights of a seed; their message slot is the plaintext side's. No draws."""
        del draw
        initial = self.study.domain.initial_seed(seed)
        self._trainer.load(encrypted_initial_weights(self.network, initial, self._key))

    def fit(self, fold: Fold, callbacks: Callbacks) -> None:
        """Train on the fold's training sequences."""
        epochs, seed, indices = self.settings.training.epochs, (fold.seed, fold.number), fold.train
        self._trainer.fit(self.study.dataset, epochs=epochs, seed=seed, indices=indices, callbacks=callbacks)

    def logits(self, positions: Indices) -> Values:
        """Return logits `[k, classes]`, decrypted with the secret key, which nothing else here uses."""
        return encryption.decrypt(self.study.domain, self._trainer.logits(self.study.dataset, positions))
