"""Decoys with huge values: the message trains as its plaintext reference does, and fails without the bounds."""

from functools import cache
from math import inf

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from stock_layers import algebra, rows_of

from fedpp.cipher.components import Algebra, Ciphertext
from fedpp.learning import losses
from fedpp.learning.decoys import DECOY_BOUND, initial_deviation, scaled, shares
from fedpp.learning.encrypted_optimizer import EncryptedOptimizer
from fedpp.learning.layers import Conv2D, Dense, Flatten, FromRows, ToRows
from fedpp.learning.losses import CategoricalCrossentropy
from fedpp.learning.optimizers import SGD, Adam

STEPS, EXAMPLES, SIDE = 60, 24, 6
OPTIMIZERS = {
    "sgd": lambda a, **k: SGD(a, 0.05, momentum=0.9, **k),
    "adam": lambda a, **k: Adam(a, 1e-2, **k),
}
FACTORS = {"labels": 1e8, "inputs": 1e4, "weights": 100.0}  # of the decoys'

Slots = np.ndarray  # [2, ...]


def drawn() -> tuple[Slots, Slots, list[Slots]]:
    """Return inputs, one-hot labels that depend on the inputs in the message's slot only, and initial weights."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(2, EXAMPLES, SIDE, SIDE, 1))
    classes = np.stack([inputs[0].mean(axis=(1, 2, 3)) > 0, generator.random(EXAMPLES) > 0.5]).astype(int)
    initial = keras.initializers.GlorotUniform
    kernels = [
        np.stack([np.asarray(initial(seed)(shape), np.float64) for seed in (i, 100 + i)])
        for i, shape in enumerate(SHAPES)
    ]
    return inputs, np.eye(2)[classes], [part for k in kernels for part in (k, np.zeros((2, k.shape[-1])))]


SHAPES = [(3, 3, 1, 4), (36, 8), (8, 2)]


@cache
def reference(optimizer: str, dtype: str) -> np.ndarray:
    """Return the probabilities `[examples, 2]` of the trained plaintext reference, which has no decoys."""
    inputs, labels, weights = drawn()
    model = plaintext(OPTIMIZERS[optimizer](Algebra.plaintext()), weights, dtype)
    train(model, inputs[0].astype(dtype), labels[0].astype(dtype))
    probabilities = np.asarray(keras.ops.softmax(model(inputs[0].astype(dtype))))
    assert np.abs(probabilities - labels[0]).max() < 0.5, "the reference must have learned the task"
    return probabilities


def train(model: keras.Model, inputs: np.ndarray, labels: np.ndarray) -> None:
    for step in range(STEPS):
        batch = slice(8 * (step % 3), 8 * (step % 3) + 8)
        model.train_on_batch(*map(tf.constant, (inputs[batch], labels[batch])))  # arrays would be cast to float32


def plaintext(optimizer: EncryptedOptimizer, weights: list[Slots], dtype: str) -> keras.Model:
    stock = [
        keras.layers.Conv2D(4, 3, padding="same", dtype=dtype),
        keras.layers.MaxPooling2D(2, dtype=dtype),
        keras.layers.ReLU(dtype=dtype),
        keras.layers.Flatten(dtype=dtype),
        keras.layers.Dense(8, activation="leaky_relu", dtype=dtype),
        keras.layers.Dense(2, dtype=dtype),
    ]
    model = keras.Sequential([keras.Input((SIDE, SIDE, 1), dtype=dtype), *stock])
    model.set_weights([w[0] for w in weights])
    model.compile(optimizer, CategoricalCrossentropy(optimizer.algebra, dtype), jit_compile=False)
    return model


@cache  # a step is traced once
def encrypted(optimizer: str, dtype: str, bound: float) -> keras.Model:
    of = algebra(2)
    rows = keras.Input((SIDE, SIDE, 1, of.n), dtype=dtype)
    x = Conv2D(of, 4, 3, padding="same", pool_size=2, activation="relu", dtype=dtype)(FromRows(of, dtype=dtype)(rows))
    x = Dense(of, 8, activation="leaky_relu", dtype=dtype)(Flatten(of, dtype=dtype)(x))
    model = keras.Model(rows, ToRows(of, dtype=dtype)(Dense(of, 2, dtype=dtype)(x)))
    rule = OPTIMIZERS[optimizer](of, decoy_bound=bound)
    model.compile(rule, CategoricalCrossentropy(of, dtype), jit_compile=False)
    return model


def bounded(of: Algebra, weight: Ciphertext, bound: float) -> Ciphertext:
    return scaled(of, weight, shares(of, np.stack(of.to_rows(weight), axis=-1), bound))


def difference(driven: str, optimizer: str, dtype: str = "float64", bound: float = DECOY_BOUND) -> float:
    """Return the distance of the message's probabilities from the plaintext reference's; infinite if not finite."""
    of = algebra(2)
    inputs, labels, weights = drawn()
    for what, values in (("inputs", [inputs]), ("labels", [labels]), ("weights", weights)):
        for value in values:
            value[1] *= FACTORS[what] if what == driven else 1.0
    ours = encrypted(optimizer, dtype, bound)
    ours.set_weights([part for w in weights for part in bounded(of, of.from_slots(tuple(w)), bound)])
    ours.optimizer.restart()
    given = rows_of(of, inputs).astype(dtype)
    train(ours, given, rows_of(of, labels).astype(dtype))
    slots = of.to_slots(of.from_rows(np.asarray(ours(given), np.float64)))[0]
    off = np.abs(np.asarray(keras.ops.softmax(slots)) - reference(optimizer, dtype))
    return float(off.max()) if np.isfinite(off).all() else inf


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("driven", FACTORS)
def test_huge_decoys_do_not_change_the_message(driven: str, optimizer: str):
    """With huge decoy labels, inputs or initial weights, the message equals the plaintext reference."""
    assert difference(driven, optimizer) < 1e-11


def test_huge_initial_decoys_cost_no_digits_in_float32():
    """With initial decoys scaled into their bound float32 keeps the message; without the bound it does not."""
    assert difference("weights", "adam", "float32") < 2e-6
    assert difference("weights", "adam", "float32", bound=inf) > 1e-4


def test_decoys_without_bounds_destroy_the_message(monkeypatch: pytest.MonkeyPatch):
    """The same trainings lose the message without the bound on weights and the clipping of labels."""
    monkeypatch.setattr(losses, "DECOY_LABEL", inf)  # before the only step without the bound is traced
    assert difference("inputs", "sgd", bound=inf) > 0.1
    assert difference("labels", "sgd", bound=inf) > 0.1


@given(st.integers(1, 3), arrays.array_shapes(max_dims=4, max_side=4), st.integers(0, 99))
def test_a_bounded_weight_keeps_its_message(n: int, shape: tuple[int, ...], seed: int):
    """Decoys are scaled into the bound, the message stays; a weight within the bound is unchanged bit for bit."""
    of = algebra(n)
    weight = of.from_slots(tuple(np.random.default_rng(seed).normal(size=(n, *shape))))
    message, *decoys = of.to_slots(bounded(of, weight, 0.01))
    np.testing.assert_allclose(message, of.to_slots(weight)[0], rtol=0, atol=1e-13)
    for decoy in decoys:
        assert np.sqrt(np.mean(np.square(decoy))) == pytest.approx(0.01 * initial_deviation(shape))
    for kept, part in zip(bounded(of, weight, 1e3), weight, strict=True):
        np.testing.assert_array_equal(kept, part)
