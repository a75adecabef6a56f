"""Batches of sequences for Keras's `fit` and `predict`, read from the disk ahead of the step that needs them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Indices = NDArray[np.integer]
Reader = Callable[[Indices], NDArray[Any]]  # of the sequences at these positions, `[k, ...]`; k may be 0

AHEAD = 2  # batches that wait for the step: with the one being read and the one in use, four are in memory


class Batches:
    """Batches in an order that a seed fixes: shuffled anew in each epoch, or as they are if there is no seed."""

    def __init__(
        self,
        inputs: Sequence[Reader],
        labels: Reader | None,
        indices: Indices,
        batch_size: int,
        seed: Sequence[int] | None = None,
    ) -> None:
        """Read each input of a network, and the labels if it is to be trained, of the sequences at `indices`."""
        self._readers = (*inputs, *([labels] if labels else []))
        self._inputs = len(inputs)
        self._indices, self._batch_size, self._seed = indices, batch_size, seed
        self._failure: Exception | None = None

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return (len(self._indices) + self._batch_size - 1) // self._batch_size

    def order(self, epochs: int, done: int = 0) -> Iterator[Indices]:
        """Yield the positions of each batch of the epochs after `done`, each shuffled anew; they count from 1."""
        for epoch in range(done + 1, epochs + 1):
            order = self._indices
            if self._seed is not None:
                seed = np.random.SeedSequence([*self._seed, epoch])
                order = np.random.Generator(np.random.Philox(seed)).permutation(order)
            for start in range(0, len(order), self._batch_size):
                yield order[start : start + self._batch_size]

    def batch(self, epoch: int, number: int) -> tuple[tuple[NDArray[Any], ...], NDArray[Any]]:
        """Read one batch again, its inputs and labels: the `number`-th of this epoch, from 0; epochs count from 1."""
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
        """Train a compiled model in the epochs after `done`; return their losses. Raise a reader's error as it is."""
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
        """Return the model's outputs, of at least one batch. A reader's error is raised as it is."""
        with self._reading():
            outputs: NDArray[np.floating] = model.predict(self._dataset(1), steps=len(self), verbose=0)
        return outputs

    def _dataset(self, epochs: int, done: int = 0) -> tf.data.Dataset:
        """Return the batches of all epochs in a row, so that the next epoch's are read ahead, too.

        Keras casts float64 arrays that it is given whole to float32; it leaves a dataset's batches alone.
        """
        nothing = np.empty(0, np.int64)
        parts = [read(nothing) for read in self._readers]  # says shapes and dtypes
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
        """Raise what a reader raised, in place of TensorFlow's page about it."""
        try:
            yield
        except tf.errors.OpError:
            if self._failure is None:
                raise
            raise self._failure from None
