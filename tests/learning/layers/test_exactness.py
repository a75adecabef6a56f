"""Layers on ciphertext equal stock Keras layers on every slot: outputs, gradients, moving statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from stock_layers import CASES, DTYPE, algebra, check_layer

from fedpp.cipher.components import Algebra
from fedpp.learning import layers

SIZES = pytest.mark.parametrize("n", [2, 3])


@SIZES
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=settings().max_examples // 8)
@given(data=st.data())
def test_a_layer_equals_the_stock_layer_on_every_slot(name: str, n: int, data: st.DataObject):
    """Outputs, gradients by inputs and weights, and moving statistics decrypt to the stock layer's in every slot."""
    check_layer(data.draw(CASES[name]), n)


def test_every_layer_has_a_case():
    """Every exported layer is compared with stock Keras; `FromRows` and `ToRows` are tested below."""
    exported = {name for name in layers.__all__ if isinstance(getattr(layers, name), type)}
    assert exported - {"EncryptedLayer", "FromRows", "ToRows"} == set(CASES)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "sigmoid", "tanh", "softmax", "gelu"])
def test_an_activation_in_a_dense_layer_equals_the_activation_layer(activation: str):
    """`Dense(activation=f)` is `Activation(f)` after `Dense`, on every slot."""
    a, generator = algebra(2), np.random.default_rng(0)
    x = tuple(generator.normal(size=(2, 4, 3)))
    within, before = layers.Dense(a, 5, activation, dtype=DTYPE), layers.Dense(a, 5, dtype=DTYPE)
    after = layers.Activation(a, activation, dtype=DTYPE)
    for layer in (within, before):
        layer(x)
    before.set_weights([generator.normal(size=w.shape) for w in before.weights])
    within.set_weights(before.get_weights())
    np.testing.assert_allclose(np.stack(within(x)), np.stack(after(before(x))), atol=1e-12)


@SIZES
def test_rows_survive_conversion(n: int):
    """ToRows(FromRows(c)) == c."""
    a, rows = algebra(n), np.random.default_rng(0).normal(size=(2, 3, n))
    through = layers.ToRows(a, dtype=DTYPE)(layers.FromRows(a, dtype=DTYPE)(tf.constant(rows)))
    np.testing.assert_allclose(through, rows, atol=1e-12)


@SIZES
def test_dropout_drops_the_same_values_of_every_slot(n: int):
    """A share `rate` is zero, the same in all slots and new in each step; the rest is scaled by 1 / (1 - rate)."""
    a = algebra(n)
    slots = tuple(np.random.default_rng(0).uniform(1, 2, size=(n, 100, 100)))
    layer = layers.Dropout(a, 0.3, seed=1, dtype=DTYPE)
    dropped = np.stack(a.to_slots(tuple(layer(a.from_slots(slots), training=True))))
    zero = dropped == 0
    assert (zero == zero[0]).all()
    assert abs(zero[0].mean() - 0.3) < 0.02
    np.testing.assert_allclose(dropped[~zero], np.stack(slots)[~zero] / 0.7, rtol=1e-12)
    again = np.stack(a.to_slots(tuple(layer(a.from_slots(slots), training=True))))
    assert ((again == 0) != zero).any()


@SIZES
def test_a_vanished_moving_variance_gives_no_nan(n: int):
    """If one slot's variance is zero and another's large, rounding does not make the square root NaN."""
    a = algebra(n)
    layer = layers.BatchNormalization(a, epsilon=1e-12, dtype="float32")
    x = tuple(np.ones((n, 2, 64), np.float32))
    layer(x)
    variances = np.zeros((n, 64))
    variances[0] = np.geomspace(1.0, 1e9, 64)
    layer.set_weights([*layer.get_weights()[: 3 * n], *a.from_slots(tuple(variances))])
    assert all(np.isfinite(part).all() for part in layer(x))


def test_layers_run_on_plaintext():
    """With plaintext algebra, n = 1, a layer equals the stock layer."""
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 2))
    plain = layers.Conv2D(Algebra.plaintext(), 3, 2, activation="elu", dtype=DTYPE)
    stock = keras.layers.Conv2D(3, 2, padding="same", activation="elu", dtype=DTYPE)
    stock(x)
    plain((x,))
    plain.set_weights(stock.get_weights())
    np.testing.assert_array_equal(plain((x,))[0], stock(x))
