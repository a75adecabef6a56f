"""The ciphertext side: the trainer, which holds the evaluation key, and the owner, who alone decrypts predictions.

In a hospital they are two zones: the trainer would send the rows of its predictions to the vault (`Score`).
"""

from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from fedpp.keys import encryption
from fedpp.keys.domain import KeyDomain
from fedpp.learning.batches import Indices
from fedpp.learning.initial import encrypted_initial_weights
from fedpp.learning.training import EncryptedTrainer
from fedpp.network import NetworkSpec

from .settings import Settings
from .study import Fold, Study

Values = NDArray[np.floating]


class Owner:
    """The key's owner (secret zone): the only one here who turns rows of predictions into numbers."""

    def __init__(self, domain: KeyDomain) -> None:
        """Hold the domain."""
        self._domain = domain

    def logits(self, rows: Values) -> Values:
        """Return logits `[k, classes]` of rows `[k, classes, n]`."""
        return encryption.decrypt(self._domain, rows)


class CiphertextSide:
    """One encrypted network, compiled once and trained again and again."""

    def __init__(self, study: Study, network: NetworkSpec, settings: Settings) -> None:
        """Build and compile the network in the algebra of the dataset's domain."""
        self._study, self._network, self._settings = study, network, settings
        self._key = study.domain.evaluation_key()
        self._trainer = EncryptedTrainer(network, self._key.algebra(), settings.recipe, settings.dtype)
        self._owner = Owner(study.domain)

    def start(self, seed: int) -> None:
        """Set the initial weights of a seed, encrypted: the plaintext side's in the message slot."""
        initial = self._study.domain.initial_seed(seed)
        self._trainer.load(encrypted_initial_weights(self._network, initial, self._key))

    def fit(self, fold: Fold, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Train on the fold's training sequences."""
        self._trainer.fit(
            self._study.dataset,
            epochs=self._settings.epochs,
            seed=(fold.seed, fold.number),
            indices=fold.train,
            callbacks=callbacks,
        )

    def logits(self, positions: Indices) -> Values:
        """Return logits `[k, classes]`, decrypted by the owner."""
        return self._owner.logits(self._trainer.logits(self._study.dataset, positions))
