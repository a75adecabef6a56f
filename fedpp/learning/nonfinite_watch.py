"""Watch for non-finite values: a Keras callback that stops a diverged training and names layer, slot and batch.

It reads one number a batch (the loss). Only after the first loss that is not finite does it recompute that batch step
by step to find the first value that is not finite.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fedpp.cipher.components import Algebra, Ciphertext, Tensor
from fedpp.errors import ModelError
from fedpp.learning.layers import EncryptedLayer
from fedpp.texts import counted

Values = NDArray[Any]
# Reads the inputs and labels of a batch again; epochs are counted from 1, batches from 0.
Reader = Callable[[int, int], tuple[Sequence[Values], Values]]

LARGER = 64.0  # the slot that overflowed: its values are this many times as large as those of other slots
LOWER = "lower the learning rate"
DAMAGED = "the data are damaged: ingest them again"


class NonFiniteWatch(keras.callbacks.Callback):  # type: ignore[misc]
    """Callback that stops training at the first batch with a non-finite loss, and names the first such value.

    The model must skip such a step, as `fedpp.learning.gradient_accumulation` does, so that its weights are still those
    that the batch was computed with.
    """

    def __init__(self, algebra: Algebra, batch: Reader) -> None:
        """Watch a model in this algebra; `batch` reads a batch again."""
        super().__init__()
        self._algebra, self._batch, self._epoch = algebra, batch, 1

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch + 1

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Raise `ModelError` if the loss is not finite; the message names layer, slot, epoch and batch."""
        if not logs or isfinite(float(logs["loss"])):
            return
        inputs, labels = self._batch(self._epoch, batch)
        failure = first_failure(self.model, self._algebra, inputs, labels)
        raise ModelError(f"{failure.what}, in epoch {self._epoch}, batch {batch + 1}: {failure.advice}")


@dataclass(frozen=True)
class Failure:
    """First value that is not finite, and advice."""

    what: str
    advice: str


def first_failure(model: keras.Model, algebra: Algebra, inputs: Sequence[Values], labels: Values) -> Failure:
    """Return the first non-finite value in a training step on this batch, one micro-batch at a time.

    Checked in this order: data, weights and outputs of each layer, loss, gradients.
    """
    part = getattr(model, "micro_batch", None) or len(labels)
    for start in range(0, len(labels), part):
        given = [tf.convert_to_tensor(values[start : start + part]) for values in inputs]
        wanted = tf.convert_to_tensor(labels[start : start + part])
        failure = (
            _check_data(model, given, wanted)
            or _check_forward(model, algebra, given)
            or _check_backward(model, algebra, given, wanted)
        )
        if failure:
            return failure
    return Failure("the loss or the sum of a gradient is not finite, though every value by itself is", LOWER)


def _check_data(model: keras.Model, inputs: Sequence[Tensor], labels: Tensor) -> Failure | None:
    names = [f"input {tensor.name} holds" for tensor in model.inputs]
    for name, values in zip((*names, "the labels hold"), (*inputs, labels), strict=True):
        finite = np.isfinite(np.asarray(values)).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            damaged = np.count_nonzero(~finite)
            return Failure(
                f"{name} values that are not finite, in {damaged} of {counted(len(finite), 'sequence')}", DAMAGED
            )
    return None


def _check_forward(model: keras.Model, algebra: Algebra, inputs: Sequence[Tensor]) -> Failure | None:
    """Check the weights and outputs of each layer, in the order of computation."""
    operations = model.operations
    trace = keras.Model(model.inputs, [keras.tree.flatten(operation.output) for operation in operations])
    found: dict[int, Values] = {}  # by symbolic tensor
    for operation, outputs in zip(operations, trace(inputs, training=True), strict=True):
        encrypted = isinstance(operation, EncryptedLayer)
        n = algebra.n if encrypted else 1
        weights = _ciphertexts([np.asarray(weight) for weight in getattr(operation, "weights", ())], n)
        for number, weight in enumerate(weights):
            if not _finite(weight):
                name = _weight_name(operation.weights[number * n], encrypted=encrypted)
                return Failure(f"weight {name} is not finite{_slot(algebra, weight, [])}", LOWER)
        values = [np.asarray(value) for value in outputs]
        if not _finite(values):
            before = [found[id(tensor)] for tensor in keras.tree.flatten(operation.input)]
            seen = [*weights, *_ciphertexts([value for value in before if value.dtype.kind == "f"], n)]
            # An output of other than n tensors is rows, with the slots on the last axis.
            parts = tuple(values) if len(values) == n else algebra.from_rows(values[0])
            slot = _slot(algebra, parts, seen) if encrypted else ""
            return Failure(f"the output of layer {operation.name} is not finite{slot}", LOWER)
        found |= zip(map(id, keras.tree.flatten(operation.output)), values, strict=True)
    return None


def _check_backward(model: keras.Model, algebra: Algebra, inputs: Sequence[Tensor], labels: Tensor) -> Failure | None:
    """Check the loss, then the gradients from the last weight to the first, as backpropagation computes them."""
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        loss = model.loss(labels, model(inputs, training=True))
    if not isfinite(float(loss)):
        return Failure("the loss is not finite, though the network's outputs are", LOWER)
    gradients = [np.asarray(g, np.float64) for g in tape.gradient(loss, [variable.value for variable in variables])]
    n = algebra.n
    for i in reversed(range(0, len(gradients), n)):
        gradient = tuple(gradients[i : i + n])
        if not _finite(gradient):
            name = _weight_name(variables[i], encrypted=n > 1)
            passed = _ciphertexts([np.asarray(variable) for variable in variables[i:]], n)
            with np.errstate(all="ignore"):
                slot = _slot(algebra, algebra.gradient(gradient), passed)
            return Failure(f"the gradient of weight {name} is not finite{slot}", LOWER)
    return None


def _finite(values: Sequence[Values]) -> bool:
    return all(np.isfinite(value).all() for value in values)


def _ciphertexts(values: Sequence[Values], n: int) -> list[Ciphertext]:
    return [tuple(values[i : i + n]) for i in range(0, len(values) - n + 1, n)]


def _weight_name(variable: keras.Variable, *, encrypted: bool) -> str:
    path = str(variable.path)
    return path.rpartition("_")[0] if encrypted else path


def _slot(algebra: Algebra, x: Ciphertext, before: Sequence[Ciphertext]) -> str:
    """Return the slot in which non-finite values first appeared, as text.

    They spread to all slots: an infinity in one slot is NaN in the others. If that does not identify the slot, the
    magnitudes of earlier values do.
    """
    if algebra.n == 1:
        return ""
    with np.errstate(all="ignore"):
        slots = algebra.to_slots(tuple(part.astype(np.float64) for part in x))
        unknown = sum(np.isnan(slot).astype(int) for slot in slots)
        infinite = [k for k, slot in enumerate(slots) if (np.isinf(slot) & (unknown == algebra.n - 1)).any()]
        magnitudes = np.array([[np.abs(slot).max(initial=0) for slot in _slots64(algebra, y)] for y in before])
    if len(infinite) == 1:
        return _named(infinite[0])
    if len(magnitudes):
        by_slot = magnitudes.max(axis=0)
        largest = int(by_slot.argmax())
        if by_slot[largest] > LARGER * np.delete(by_slot, largest).max():
            return _named(largest)
    return " in every slot"


def _slots64(algebra: Algebra, x: Ciphertext) -> tuple[Values, ...]:
    return algebra.to_slots(tuple(part.astype(np.float64) for part in x))


def _named(slot: int) -> str:
    return f" in decoy slot {slot}" if slot else " in the message's slot"
