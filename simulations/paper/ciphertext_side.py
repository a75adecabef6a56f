"""Ciphertext side of the paper's experiment: a trainer with the evaluation key, and an owner who decrypts predictions.

In a hospital they are two zones: there the trainer sends the rows of its predictions to the vault (`Evaluate`).
"""

from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from fedpp.config.model_spec import ModelSpec
from fedpp.keys import encryption
from fedpp.learning.batches import Indices
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.learning.initial_weights import encrypted_initial_weights

from .paper_settings import Settings
from .study import Fold, Study

Values = NDArray[np.floating]


class CiphertextSide:
    """Encrypted network, compiled once for many trainings."""

    def __init__(self, study: Study, network: ModelSpec, settings: Settings) -> None:
        """Build and compile the network in the algebra of the dataset's domain."""
        self._study, self._network, self._settings = study, network, settings
        self._key = study.domain.evaluation_key()
        self._trainer = EncryptedTrainer(
            network, self._key.algebra(), settings.training.hyperparameters, settings.training.dtype
        )

    def start(self, seed: int) -> None:
        """Set the encrypted initial weights of a seed; their message slot is the plaintext side's."""
        initial = self._study.domain.initial_seed(seed)
        self._trainer.load(encrypted_initial_weights(self._network, initial, self._key))

    def fit(self, fold: Fold, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Train on the fold's training sequences."""
        self._trainer.fit(
            self._study.dataset,
            epochs=self._settings.training.epochs,
            seed=(fold.seed, fold.number),
            indices=fold.train,
            callbacks=callbacks,
        )

    def logits(self, positions: Indices) -> Values:
        """Return logits `[k, classes]`, decrypted with the secret key, which nothing else here uses."""
        return encryption.decrypt(self._study.domain, self._trainer.logits(self._study.dataset, positions))
