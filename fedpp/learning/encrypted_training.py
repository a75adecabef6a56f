"""Trainer: training and prediction on an encrypted dataset, under one evaluation key."""

from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from fedpp.cipher.components import Algebra
from fedpp.config.hyperparameters import Dtype, Hyperparameters
from fedpp.config.model_spec import ModelSpec
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import DatasetError, ModelError
from fedpp.learning import models
from fedpp.learning.batches import Indices, Reader
from fedpp.learning.learner import Learner, State
from fedpp.protocol.label_counts import LabelCounts

Rows = NDArray[np.floating]


class EncryptedTrainer:
    """Network in the algebra of one key domain, compiled once and used for many rounds.

    Orthogonal frame mixing (`more-frame`) uses plaintext algebra, n = 1: frames are mixed, weights and labels are not.
    """

    def __init__(self, network: ModelSpec, algebra: Algebra, hyperparameters: Hyperparameters, dtype: Dtype) -> None:
        """Build and compile the network; `load` sets its weights."""
        self.network, self.dtype, self.domain = network, dtype, algebra.domain
        self._algebra = algebra
        self._learner = Learner(network, algebra, hyperparameters, dtype)
        self.model = self._learner.model

    def load(self, rows: models.Weights) -> None:
        """Set the weights and reset the optimizer's state."""
        models.set_rows(self.model, self.network, self._algebra, rows)
        self.model.optimizer.restart()

    def balance(self, labels: LabelCounts | None) -> None:
        """Let the loss weigh by these training labels, where the hyperparameters say so; None: all classes alike."""
        self._learner.balance(labels)

    def rows(self) -> dict[str, Rows]:
        """Return the weights as rows."""
        return models.get_rows(self.model, self.network, self._algebra)

    def state(self) -> State:
        """Return all that training changes, bit for bit; the optimizer's moments are plaintext, so seal it."""
        return self._learner.state()

    def restore(self, state: State) -> None:
        """Set what `state` returned; raise `ModelError` if it is another network's."""
        try:
            self._learner.restore(state)
        except ValueError:
            raise ModelError("the checkpoint's arrays do not fit its network: it is from another version") from None

    def fit(
        self,
        dataset: EncryptedDataset,
        *,
        epochs: int,
        seed: Sequence[int],
        indices: Indices | None = None,
        done: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int = 0,
    ) -> list[float]:
        """Train on the sequences at `indices` (default: training split); return the loss of each epoch, with decoys.

        `epochs` includes the first `done` epochs, which are finished already. Raises `ModelError`, with the name of the
        layer, when a value is not finite.
        """
        self._check(dataset)
        chosen = dataset.indices("train") if indices is None else indices
        if not len(chosen):
            raise DatasetError("the dataset has no sequence in split train: ingest more patients")
        return self._learner.fit(
            self.inputs(dataset),
            self._cast(dataset.labels),
            chosen,
            epochs=epochs,
            seed=seed,
            done=done,
            callbacks=callbacks,
            verbose=verbose,
        )

    def logits(self, dataset: EncryptedDataset, indices: Indices) -> Rows:
        """Return encrypted logits, rows `[k, classes, n]`, of the sequences at `indices`."""
        self._check(dataset)
        logits = self._learner.predict(self.inputs(dataset), indices)
        return logits[..., np.newaxis] if self._algebra.n == 1 else logits

    def inputs(self, dataset: EncryptedDataset) -> list[Reader]:
        """Return the readers of the network's inputs."""

        def gaps(indices: Indices) -> Rows:
            values = dataset.gaps(indices)
            if dataset.manifest.gaps == "encrypted":
                return values
            return np.stack(self._algebra.to_rows(self._algebra.public(values.astype(np.float64))), axis=-1)

        inputs: list[Reader] = [self._cast(dataset.frames), dataset.valid]
        return [*inputs, self._cast(gaps)] if self.network.task.gaps else inputs

    def _cast(self, read: Reader) -> Reader:
        """Return a reader in the network's dtype; plaintext arrays lose their axis of slots."""

        def cast(indices: Indices) -> Rows:
            rows = read(indices).astype(self.dtype, copy=False)
            return rows[..., 0] if self._algebra.n == 1 else rows

        return cast

    def _check(self, dataset: EncryptedDataset) -> None:
        dataset.require_domain(self.domain)
        if misfit := self.network.misfit(dataset.manifest.task):
            raise DatasetError(f"{misfit}: ingest again with the network's sizes")
