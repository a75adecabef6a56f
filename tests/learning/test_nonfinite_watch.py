"""Errors of trainings with non-finite values: what the message names, through Keras's own `fit`."""

from collections.abc import Callable
from math import inf, nan
from typing import Any

import keras
import numpy as np
import pytest
from conftest import TINY
from stock_layers import algebra, rows_of, slots_of

from fedpp.cipher.components import Algebra
from fedpp.config.model_spec import Architecture
from fedpp.errors import ModelError
from fedpp.learning import models
from fedpp.learning.batches import Batches
from fedpp.learning.gradient_accumulation import AccumulatingModel
from fedpp.learning.layers import Activation, Conv2D, Dense, Flatten, FromRows, ToRows
from fedpp.learning.losses import CategoricalCrossentropy
from fedpp.learning.nonfinite_watch import NonFiniteWatch, first_failure
from fedpp.learning.optimizers import SGD

EXAMPLES, BATCH, SIDE = 12, 3, 4
SIZES = pytest.mark.parametrize("n", [2, 3])


def network(of: Algebra, activation: str = "tanh", *, traced: bool = False) -> AccumulatingModel:
    """Return a small network with drawn weights, on ciphertext, or of stock layers for plaintext."""
    dtype = "float32"
    if of.n == 1:
        images = keras.Input((SIDE, SIDE, 1), dtype=dtype, name="frames")
        x = keras.layers.Conv2D(2, 3, name="conv", dtype=dtype)(images)
        x = keras.layers.Dense(3, name="hidden", dtype=dtype)(keras.layers.Flatten(dtype=dtype)(x))
        x = keras.layers.Activation(activation, name="curve", dtype=dtype)(x)
        logits = keras.layers.Dense(2, name="logits", dtype=dtype)(x)
    else:
        images = keras.Input((SIDE, SIDE, 1, of.n), dtype=dtype, name="frames")
        x = Conv2D(of, 2, 3, padding="valid", name="conv", dtype=dtype)(FromRows(of, dtype=dtype)(images))
        x = Dense(of, 3, name="hidden", dtype=dtype)(Flatten(of, dtype=dtype)(x))
        x = Activation(of, activation, name="curve", dtype=dtype)(x)
        logits = ToRows(of, dtype=dtype)(Dense(of, 2, name="logits", dtype=dtype)(x))
    model = AccumulatingModel([images], logits)
    generator = np.random.default_rng(1)
    for weight in ciphertexts(model, of.n):
        set_slots(of, weight, generator.normal(size=(of.n, *weight[0].shape)) / 2)
    loss = CategoricalCrossentropy(of, dtype)
    model.compile(SGD(of, 0.01), loss, jit_compile=False, run_eagerly=not traced)  # tracing takes longer
    return model


def ciphertexts(model: keras.Model, n: int) -> list[list[keras.Variable]]:
    variables = model.trainable_variables
    return [variables[i : i + n] for i in range(0, len(variables), n)]


def set_slots(of: Algebra, weight: list[keras.Variable], slots: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        for variable, part in zip(weight, of.from_slots(tuple(slots)), strict=True):
            variable.assign(part)


class Change(keras.callbacks.Callback):
    """Changes the model before one batch of one epoch, counted as in messages."""

    def __init__(self, epoch: int, batch: int, change: Callable[[keras.Model], None]) -> None:
        super().__init__()
        self.at, self.change, self.epoch = (epoch, batch), change, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch + 1

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch + 1) == self.at:
            self.change(self.model)


def data(of: Algebra) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    slots = generator.normal(size=(of.n, EXAMPLES, SIDE, SIDE, 1)).astype("float32")
    labels = np.eye(2, dtype="float32")[generator.integers(2, size=(of.n, EXAMPLES))]
    return rows_of(of, slots), rows_of(of, labels)


def message(model: AccumulatingModel, of: Algebra, given: tuple[np.ndarray, np.ndarray], *changes: Change) -> str:
    """Train for three epochs, and return the error's message."""
    frames, labels = given
    batches = Batches([lambda i: frames[i]], lambda i: labels[i], np.arange(EXAMPLES), BATCH, (1,))
    with pytest.raises(ModelError) as raised:
        batches.fit(model, 3, [*changes, NonFiniteWatch(of, batches.batch)])
    return str(raised.value)


def inject(of: Algebra, weight: int, slot: int, value: float, *, all_of_it: bool = False) -> Callable[..., None]:
    def change(model: keras.Model) -> None:
        chosen = ciphertexts(model, of.n)[weight]
        slots = slots_of(of, chosen)
        if all_of_it:
            slots[slot] = value
        else:
            slots[slot].flat[0] = value
        set_slots(of, chosen, slots)

    return change


@pytest.mark.parametrize("slot", [0, 1])
def test_a_weight_that_is_infinite_is_named_with_its_slot(slot: int):
    """A weight that becomes infinite is named, with message or decoy, epoch and batch, in traced and eager steps."""
    of = algebra(2)
    said = message(network(of, traced=slot == 0), of, data(of), Change(2, 3, inject(of, 2, slot, inf)))
    place = "decoy slot 1" if slot else "the message's slot"
    assert said == (f"weight hidden/kernel is not finite in {place}, in epoch 2, batch 3: lower the learning rate")


def test_a_damaged_input_is_named():
    """A damaged frame is distinguished from a training that diverges."""
    of = algebra(2)
    frames, labels = data(of)
    frames[5, 1, 2, 0, 0] = nan
    said = message(network(of), of, (frames, labels))
    assert said.startswith("input frames holds values that are not finite, in 1 of 3 sequences, in epoch 1, batch ")
    assert said.endswith("the data are damaged: ingest them again")


def test_a_damaged_label_is_named():
    """A damaged label is distinguished from a damaged frame."""
    of = algebra(2)
    frames, labels = data(of)
    labels[:, 0, 0] = inf
    said = message(network(of), of, (frames, labels))
    assert said.startswith("the labels hold values that are not finite, in 3 of 3 sequences, in epoch 1, batch 1")


@SIZES
@pytest.mark.parametrize("slot", [0, 1])
def test_an_output_that_overflows_is_named_with_its_slot(n: int, slot: int):
    """If finite weights give an output beyond float32, the layer and the slot that overflowed are named."""
    of = algebra(n)

    def large(model: keras.Model) -> None:
        set_slots(of, ciphertexts(model, n)[1], np.full((n, 2), 1e3))  # the bias before, alike in all slots
        inject(of, 2, slot, 5e37, all_of_it=True)(model)

    said = message(network(of), of, data(of), Change(1, 4, large))
    place = "decoy slot 1" if slot else "the message's slot"
    assert said == (
        f"the output of layer hidden is not finite in {place}, in epoch 1, batch 4: lower the learning rate"
    )


def test_an_overflow_of_every_slot_names_no_single_slot():
    """If message and decoy overflow alike, the message says "every slot"."""
    of = algebra(2)

    def change(model: keras.Model) -> None:
        set_slots(of, ciphertexts(model, 2)[2], np.full((2, 8, 3), 2e38))

    said = message(network(of), of, data(of), Change(1, 1, change))
    assert said.startswith("the output of layer hidden is not finite in every slot, in epoch 1, batch 1")


@pytest.mark.parametrize(
    ("n", "slot", "said_of"), [(1, 0, ""), (2, 0, " in the message's slot"), (2, 1, " in decoy slot 1")]
)
def test_a_gradient_that_overflows_is_named(n: int, slot: int, said_of: str):
    """If all forward values are finite, the named weight is the one nearest to the loss with a non-finite gradient."""
    of = algebra(n)
    frames, labels = data(of)
    signs = np.random.default_rng(3).choice([-1.0, 1.0], size=(8, 3, 2))

    def change(model: keras.Model) -> None:
        first, _, kernel, _, last, _ = ciphertexts(model, n)
        set_slots(of, first, np.full((n, 3, 3, 1, 2), 1e-5))
        set_slots(of, kernel, np.stack([1e-6 * signs[..., 0]] * n))
        slots = slots_of(of, last)
        slots[slot] = 3e37 * signs[0]  # the gradients of both kernels overflow, and no logit comes near 3e38
        set_slots(of, last, slots)

    said = message(network(of, "linear"), of, (1e8 * frames, labels), Change(1, 1, change))
    assert said == (
        f"the gradient of weight hidden/kernel is not finite{said_of}, in epoch 1, batch 1: lower the learning rate"
    )


def test_plaintext_has_no_slot():
    """For a network of stock layers the message names the layer and no slot."""
    of = algebra(1)
    said = message(network(of), of, data(of), Change(1, 2, inject(of, 4, 0, nan)))
    assert said == "weight logits/kernel is not finite, in epoch 1, batch 2: lower the learning rate"


def test_micro_batches_are_checked_one_by_one():
    """With micro-batches, the one with the damaged frame is found."""
    of = algebra(2)
    model = network(of)
    model.micro_batch = 1
    frames, labels = data(of)
    frames[5, 1, 2, 0, 0] = inf
    said = message(model, of, (frames, labels))
    assert said.startswith("input frames holds values that are not finite, in 1 of 1 sequence, in epoch 1")


def test_a_finite_training_reads_no_batch_again():
    """While every loss is finite, no batch is read again."""
    of = algebra(2)
    frames, labels = data(of)
    batches = Batches([lambda i: frames[i]], lambda i: labels[i], np.arange(EXAMPLES), BATCH, (1,))
    read: list[int] = []

    def batch(epoch: int, number: int) -> Any:
        read.append(number)
        return batches.batch(epoch, number)

    assert len(batches.fit(network(of), 3, [NonFiniteWatch(of, batch)])) == 3
    assert not read


@pytest.mark.parametrize("voting", [False, True])
@pytest.mark.parametrize("architecture", ["cnn", "cnn-lstm", "cnn-bi-lstm"])
@pytest.mark.parametrize("n", [1, 2])
def test_every_network_can_be_checked(architecture: Architecture, voting: bool, n: int):
    """In each network, of stock layers or on ciphertext, a non-finite last weight is named, and nothing before it."""
    of, spec = algebra(n), TINY.changed(architecture=architecture, voting=voting, gaps=True)
    model = models.plaintext(spec, "float32") if n == 1 else models.encrypted(spec, of, "float32")
    model.compile(SGD(of, 0.01), CategoricalCrossentropy(of, "float32"), jit_compile=False)
    frames, gaps = (np.ones((n, 4, *shape), np.float32) for shape in ((2, 8, 8, 1), (2,)))
    labels = rows_of(of, np.tile(np.eye(2, dtype=np.float32)[[0, 1, 0, 1]], (n, 1, 1)))
    given = [rows_of(of, frames), np.ones((4, 2), bool), rows_of(of, gaps)]
    assert first_failure(model, of, given, labels).what.endswith("though every value by itself is")
    last = ciphertexts(model, n)[-1]
    set_slots(of, last, np.full((n, *last[0].shape), nan))
    assert first_failure(model, of, given, labels).what.startswith("weight ")
