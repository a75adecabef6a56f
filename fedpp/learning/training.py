"""Training and prediction on an encrypted dataset, through Keras's own `fit` and `predict`."""

from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from fedpp.cipher.components import Algebra
from fedpp.cipher.dataset import EncryptedDataset
from fedpp.cipher.evaluation_key import EvaluationKey
from fedpp.config import Dtype, NetworkSpec, Task
from fedpp.errors import DatasetError, DomainMismatchError, ModelError
from fedpp.learning import models
from fedpp.learning.batches import Batches, Reader
from fedpp.learning.losses import EncryptedCrossEntropy
from fedpp.learning.model_file import EncryptedModel
from fedpp.learning.optimizers import Adam

Rows = NDArray[np.floating]


class EncryptedTrainer:
    """One encrypted network under one evaluation key, compiled once and used for many rounds."""

    def __init__(self, network: NetworkSpec, key: EvaluationKey, dtype: Dtype) -> None:
        """Build and compile the network; its weights are zero until `load`."""
        self.network, self.dtype, self.domain = network, dtype, key.domain
        self._algebra: Algebra = key.algebra()
        self.model = models.encrypted(network, self._algebra, dtype)
        self.model.compile(
            optimizer=Adam(self._algebra),
            loss=EncryptedCrossEntropy(self._algebra, dtype),
            jit_compile=False,  # measured: XLA on the CPU gains nothing here and costs seconds of compilation
        )

    def load(self, rows: models.Weights) -> None:
        """Set the weights, and forget the optimizer's state."""
        models.set_rows(self.model, self.network, self._algebra, rows)
        self.model.optimizer.restart()

    def rows(self) -> dict[str, Rows]:
        """Return the weights as rows."""
        return models.get_rows(self.model, self.network, self._algebra)

    def fit(
        self,
        dataset: EncryptedDataset,
        *,
        learning_rate: float,
        epochs: int,
        batch_size: int,
        seed: Sequence[int],
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int = 0,
    ) -> list[float]:
        """Train on the training split; return the loss, decoys included, of each epoch.

        Raises `ModelError` if the weights are not finite any more.
        """
        self._check(dataset)
        if not len(dataset.indices("train")):
            raise DatasetError("the dataset has no sequence in split train: ingest more patients")
        self.model.optimizer.learning_rate = learning_rate
        labels = self._cast(dataset.labels)
        data = Batches(self.inputs(dataset), labels, dataset.indices("train"), batch_size, seed)
        losses = data.fit(self.model, epochs, callbacks, verbose)
        if not all(np.isfinite(weight).all() for weight in self.model.get_weights()):
            raise ModelError(
                f"the training diverged at learning rate {learning_rate}: weights are not finite; lower it"
            )
        return losses

    def logits(self, dataset: EncryptedDataset, split: str, batch_size: int) -> Rows:
        """Return encrypted logits, rows `[k, classes, n]`, of a split in the dataset's order."""
        self._check(dataset)
        data = Batches(self.inputs(dataset), None, dataset.indices(split), batch_size)
        if not len(data):
            return np.zeros((0, self.network.classes, self._algebra.n), self.dtype)
        return data.predict(self.model)

    def check_model(self, model: EncryptedModel, dataset: EncryptedDataset) -> None:
        """Raise an error for a model of another domain, or of other classes than a labelled dataset's."""
        if model.domain != self.domain:
            raise DomainMismatchError(
                f"the model belongs to domain {model.domain[:16]}, the key to {self.domain[:16]}: take the other"
            )
        classes = dataset.manifest.classes
        if classes and classes != model.classes:
            raise ModelError(
                f"the model's classes are {', '.join(model.classes)}, the dataset's {', '.join(classes)}: "
                "ingest again with --classes in the model's order"
            )

    def inputs(self, dataset: EncryptedDataset) -> list[Reader]:
        """Return the readers of the network's inputs."""

        def gaps(indices: NDArray[np.integer]) -> Rows:
            values = dataset.gaps(indices)
            if dataset.manifest.gaps == "encrypted":
                return values
            return np.stack(self._algebra.to_rows(self._algebra.public(values.astype(np.float64))), axis=-1)

        inputs: list[Reader] = [self._cast(dataset.frames), dataset.valid]
        return [*inputs, self._cast(gaps)] if self.network.gaps else inputs

    def _cast(self, read: Reader) -> Reader:
        return lambda indices: read(indices).astype(self.dtype, copy=False)

    def _check(self, dataset: EncryptedDataset) -> None:
        dataset.require_domain(self.domain)
        if misfit := self.network.misfit(Task.of(dataset.manifest)):
            raise DatasetError(f"{misfit}: ingest again with the network's sizes")
