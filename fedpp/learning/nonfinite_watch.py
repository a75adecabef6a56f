"""What tells where a training went wrong: after the first loss that is not finite, its batch is looked into.

While all is finite it costs the look at one number a batch.
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

Values = NDArray[Any]
# Reads the inputs and labels of a batch again: epochs count from 1, batches from 0.
Reader = Callable[[int, int], tuple[Sequence[Values], Values]]

LARGER = 64.0  # a slot whose values are so many times as large as the others' is the one that overflowed
LOWER = "lower the learning rate"
DAMAGED = "the data are damaged: ingest them again"


class Watch(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends a training at its first batch whose loss is not finite, with an error that says what is not finite first.

    The model must not take such a step (`fedpp.learning.gradient_accumulation`): its weights are those that the
    batch saw.
    """

    def __init__(self, algebra: Algebra, batch: Reader) -> None:
        """Take the algebra of the model, or that of plain numbers, and what reads a batch again."""
        super().__init__()
        self._algebra, self._batch, self._epoch = algebra, batch, 1

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch + 1

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Raise `ModelError`, one line that names layer, slot, epoch and batch, if the loss is not finite."""
        if not logs or isfinite(float(logs["loss"])):
            return
        inputs, labels = self._batch(self._epoch, batch)
        failure = first_failure(self.model, self._algebra, inputs, labels)
        raise ModelError(f"{failure.what}, in epoch {self._epoch}, batch {batch + 1}: {failure.advice}")


@dataclass(frozen=True)
class Failure:
    """What is not finite, and what to do about it."""

    what: str
    advice: str


def first_failure(model: keras.Model, algebra: Algebra, inputs: Sequence[Values], labels: Values) -> Failure:
    """Return the first thing that is not finite in a training step on this batch, a micro-batch at a time.

    That is the data, a weight, a layer's output, the loss, or else a gradient.
    """
    part = getattr(model, "micro_batch", None) or len(labels)
    for start in range(0, len(labels), part):
        given = [tf.convert_to_tensor(values[start : start + part]) for values in inputs]
        wanted = tf.convert_to_tensor(labels[start : start + part])
        failure = (
            _of_data(model, given, wanted)
            or _forward(model, algebra, given)
            or _backward(model, algebra, given, wanted)
        )
        if failure:
            return failure
    return Failure("the loss or the sum of a gradient is not finite, though every value by itself is", LOWER)


def _of_data(model: keras.Model, inputs: Sequence[Tensor], labels: Tensor) -> Failure | None:
    names = [f"input {tensor.name} holds" for tensor in model.inputs]
    for name, values in zip((*names, "the labels hold"), (*inputs, labels), strict=True):
        finite = np.isfinite(np.asarray(values)).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            damaged = np.count_nonzero(~finite)
            return Failure(f"{name} values that are not finite, in {damaged} of {len(finite)} sequences", DAMAGED)
    return None


def _forward(model: keras.Model, algebra: Algebra, inputs: Sequence[Tensor]) -> Failure | None:
    """Look at each layer's weights and outputs, in the order in which they are computed."""
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
            # What is no n tensors is rows, the slots on their last axis.
            parts = tuple(values) if len(values) == n else algebra.from_rows(values[0])
            slot = _slot(algebra, parts, seen) if encrypted else ""
            return Failure(f"the output of layer {operation.name} is not finite{slot}", LOWER)
        found |= zip(map(id, keras.tree.flatten(operation.output)), values, strict=True)
    return None


def _backward(model: keras.Model, algebra: Algebra, inputs: Sequence[Tensor], labels: Tensor) -> Failure | None:
    """Look at the loss, then at the gradients from the last weight to the first, as they are computed."""
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
    """Return in which slot the values that are not finite arose.

    They spread to all slots: what is infinite in one is not a number in the others. Where that does not tell, the
    sizes of what was there before do.
    """
    if algebra.n == 1:
        return ""
    with np.errstate(all="ignore"):
        slots = algebra.to_slots(tuple(part.astype(np.float64) for part in x))
        unknown = sum(np.isnan(slot).astype(int) for slot in slots)
        infinite = [k for k, slot in enumerate(slots) if (np.isinf(slot) & (unknown == algebra.n - 1)).any()]
        sizes = np.array([[np.abs(slot).max(initial=0) for slot in _slots64(algebra, y)] for y in before])
    if len(infinite) == 1:
        return _named(infinite[0])
    if len(sizes):
        of_slots = sizes.max(axis=0)
        largest = int(of_slots.argmax())
        if of_slots[largest] > LARGER * np.delete(of_slots, largest).max():
            return _named(largest)
    return " in every slot"


def _slots64(algebra: Algebra, x: Ciphertext) -> tuple[Values, ...]:
    return algebra.to_slots(tuple(part.astype(np.float64) for part in x))


def _named(slot: int) -> str:
    return f" in decoy slot {slot}" if slot else " in the message's slot"
