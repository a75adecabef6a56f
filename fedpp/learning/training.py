"""Training and prediction on an encrypted dataset, through Keras's own `fit` and `predict`."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from fedpp.cipher.components import Algebra
from fedpp.cipher.dataset import EncryptedDataset
from fedpp.cipher.evaluation_key import EvaluationKey
from fedpp.config import Dtype, NetworkSpec
from fedpp.errors import DatasetError, DomainMismatchError, ModelError
from fedpp.learning import models
from fedpp.learning.losses import EncryptedCrossEntropy
from fedpp.learning.model_file import EncryptedModel
from fedpp.learning.optimizers import Adam

Rows = NDArray[np.floating]
Reader = Callable[[NDArray[np.integer]], Rows]


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of sequences, read when they are needed, in an order that a seed fixes.

    Keras casts float64 arrays that it is given whole to float32; it leaves a PyDataset's batches alone.
    """

    def __init__(
        self,
        read: Sequence[Reader],
        indices: NDArray[np.integer],
        batch_size: int,
        seed: Sequence[int] | None,
    ) -> None:
        """Read `indices` with each reader, shuffled anew in each epoch, or in order if there is no seed."""
        super().__init__()
        self._read, self._indices, self._batch_size, self._seed = read, indices, batch_size, seed
        self._epoch = 0
        self._order = self._draw()

    def __len__(self) -> int:
        """Return the number of batches."""
        return (len(self._indices) + self._batch_size - 1) // self._batch_size

    def __getitem__(self, batch: int) -> tuple[Rows, ...]:
        """Return one array a reader."""
        chosen = self._order[batch * self._batch_size : (batch + 1) * self._batch_size]
        return tuple(read(chosen) for read in self._read)

    def on_epoch_end(self) -> None:
        """Shuffle for the next epoch."""
        self._epoch += 1
        self._order = self._draw()

    def _draw(self) -> NDArray[np.integer]:
        if self._seed is None:
            return self._indices
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([*self._seed, self._epoch])))
        return generator.permutation(self._indices)


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
        data = Batches(self._readers(dataset), dataset.indices("train"), batch_size, seed)
        history = self.model.fit(data, epochs=epochs, shuffle=False, callbacks=list(callbacks), verbose=verbose)
        if not all(np.isfinite(weight).all() for weight in self.model.get_weights()):
            raise ModelError(
                f"the training diverged at learning rate {learning_rate}: weights are not finite; lower it"
            )
        return [float(loss) for loss in history.history["loss"]]

    def logits(self, dataset: EncryptedDataset, split: str, batch_size: int) -> Rows:
        """Return encrypted logits, rows `[k, classes, n]`, of a split in the dataset's order."""
        self._check(dataset)
        data = Batches(self._readers(dataset)[:1], dataset.indices(split), batch_size, None)
        if not len(data):
            return np.zeros((0, self.network.classes, self._algebra.n), self.dtype)
        rows: Rows = self.model.predict(data, verbose=0)
        return rows

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

    def _readers(self, dataset: EncryptedDataset) -> tuple[Reader, Reader]:
        def frames(indices: NDArray[np.integer]) -> Rows:
            return dataset.frames(indices).astype(self.dtype, copy=False)

        def labels(indices: NDArray[np.integer]) -> Rows:
            return dataset.labels(indices).astype(self.dtype, copy=False)

        return frames, labels

    def _check(self, dataset: EncryptedDataset) -> None:
        dataset.require_domain(self.domain)
        m = dataset.manifest
        shape, classes = (m.frames, m.height, m.width, m.channels), len(m.classes)
        n = self.network
        if shape != (n.frames, n.height, n.width, n.channels) or classes not in (0, n.classes):
            raise DatasetError(
                f"the dataset is {shape} (frames, height, width, channels) of {classes} classes, the network is for "
                f"{(n.frames, n.height, n.width, n.channels)} of {n.classes}: ingest again with the network's sizes"
            )
