"""Batches of sequences for Keras's `fit` and `predict`, prefetched from disk."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Indices = NDArray[np.integer]
Reader = Callable[[Indices], NDArray[Any]]  # positions of k sequences -> values `[k, ...]`; k may be 0

AHEAD = 2  # prefetched batches: with the one being read and the one in use, four are in memory


class Batches:
    """Batches in an order fixed by a seed, shuffled in each epoch; without a seed, in the given order."""

    def __init__(
        self,
        inputs: Sequence[Reader],
        labels: Reader | None,
        indices: Indices,
        batch_size: int,
        seed: Sequence[int] | None = None,
    ) -> None:
        """Read the inputs of a network, and labels for training, of the sequences at `indices`."""
        self._readers = (*inputs, *([labels] if labels else []))
        self._inputs = len(inputs)
        self._indices, self._batch_size, self._seed = indices, batch_size, seed
        self._failure: Exception | None = None

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return (len(self._indices) + self._batch_size - 1) // self._batch_size

    def order(self, epochs: int, done: int = 0) -> Iterator[Indices]:
        """Yield the positions of each batch of the epochs after `done`, shuffled by epoch; epochs count from 1."""
        for epoch in range(done + 1, epochs + 1):
            order = self._indices
            if self._seed is not None:
                seed = np.random.SeedSequence([*self._seed, epoch])
                order = np.random.Generator(np.random.Philox(seed)).permutation(order)
            for start in range(0, len(order), self._batch_size):
                yield order[start : start + self._batch_size]

    def batch(self, epoch: int, number: int) -> tuple[tuple[NDArray[Any], ...], NDArray[Any]]:
        """Read inputs and labels of one batch again; epochs are counted from 1, batches of an epoch from 0."""
        indices = next(islice(self.order(epoch, epoch - 1), number, None))
        *inputs, labels = self._read(indices)
        return tuple(inputs), labels

    def fit(
        self,
        model: keras.Model,
        epochs: int,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int = 0,
        done: int = 0,
    ) -> list[float]:
        """Train a compiled model for the epochs after `done`; return their losses. Reraise a reader's error."""
        with self._reading():
            history = model.fit(
                self._dataset(epochs, done),
                epochs=epochs,
                initial_epoch=done,
                steps_per_epoch=len(self),
                shuffle=False,
                callbacks=list(callbacks),
                verbose=verbose,
            )
        return [float(loss) for loss in history.history["loss"]]

    def predict(self, model: keras.Model) -> NDArray[np.floating]:
        """Return the model's outputs of at least one batch. Reraise a reader's error unchanged."""
        with self._reading():
            outputs: NDArray[np.floating] = model.predict(self._dataset(1), steps=len(self), verbose=0)
        return outputs

    def _dataset(self, epochs: int, done: int = 0) -> tf.data.Dataset:
        """Return the batches of all epochs as one dataset, so that prefetching continues across epochs.

        Keras casts float64 arrays to float32, but not the batches of a dataset.
        """
        nothing = np.empty(0, np.int64)
        parts = [read(nothing) for read in self._readers]  # for shapes and dtypes
        types = [tf.as_dtype(part.dtype) for part in parts]

        def load(indices: tf.Tensor) -> tuple[Any, ...]:
            tensors = tf.numpy_function(self._read, [indices], types)
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.set_shape((None, *part.shape[1:]))
            return tuple(tensors[: self._inputs]), *tensors[self._inputs :]

        batch = tf.TensorSpec((None,), tf.int64)
        order = tf.data.Dataset.from_generator(lambda: self.order(epochs, done), output_signature=batch)
        # AutoGraph has nothing to convert here; on Python 3.13 it warns of its own parser
        return order.map(tf.autograph.experimental.do_not_convert(load)).prefetch(AHEAD)

    def _read(self, indices: Indices) -> list[NDArray[Any]]:
        try:
            return [read(indices) for read in self._readers]
        except Exception as error:
            self._failure = error
            raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raise a reader's own error in place of TensorFlow's error about it."""
        try:
            yield
        except tf.errors.OpError:
            if self._failure is None:
                raise
            raise self._failure from None
