"""Padding masks: padded steps have no effect, and padding a sequence never changes its prediction."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from stock_layers import DTYPE, Case, algebra, check_layer, stock_case

from fedpp.cipher.components import Algebra
from fedpp.learning import layers

SIZES = pytest.mark.parametrize("n", [2, 3])
MASKS = np.array(
    [
        [True, True, True, True],
        [True, True, False, False],
        [False, False, True, True],
        [False, True, False, True],
        [True, False, False, False],
        [False, False, False, False],
    ]
)
SHAPE = (*MASKS.shape, 5)


def recurrent(name: str, *, sequences: bool, backwards: bool) -> Case:
    settings = {"return_sequences": sequences, "go_backwards": backwards, "dtype": DTYPE}
    return Case(
        lambda a: getattr(layers, name)(a, 3, **settings),
        lambda: getattr(keras.layers, name)(3, unroll=True, **settings),
        (SHAPE,),
    )


def bidirectional(name: str, *, sequences: bool) -> Case:
    settings = {"return_sequences": sequences, "dtype": DTYPE}
    return Case(
        lambda a: layers.Bidirectional(a, getattr(layers, name)(a, 3, **settings), dtype=DTYPE),
        # unrolled, Keras 3.15 zeroes a reversed sequence's outputs by the mask that is not reversed
        lambda: keras.layers.Bidirectional(getattr(keras.layers, name)(3, **settings), dtype=DTYPE),
        (SHAPE,),
    )


CASES = {
    "lstm": recurrent("LSTM", sequences=False, backwards=False),
    "lstm sequences": recurrent("LSTM", sequences=True, backwards=False),
    "lstm backwards": recurrent("LSTM", sequences=False, backwards=True),
    "gru": recurrent("GRU", sequences=False, backwards=False),
    "gru sequences backwards": recurrent("GRU", sequences=True, backwards=True),
    "bidirectional lstm": bidirectional("LSTM", sequences=False),
    "bidirectional lstm sequences": bidirectional("LSTM", sequences=True),
    "bidirectional gru sequences": bidirectional("GRU", sequences=True),
}
RECURRENT = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@SIZES
@RECURRENT
def test_a_padding_mask_has_keras_s_effect_on_every_slot(case: Case, n: int):
    """Outputs and all gradients equal the stock layer's with the same mask, for any padded steps of each sequence."""
    check_layer(case, n, MASKS)


@SIZES
def test_a_mean_with_a_padding_mask_is_keras_s_on_every_slot(n: int):
    """For sequences with a valid step; without one the mean is NaN in both."""
    valid = MASKS[MASKS.any(axis=1)]
    check_layer(stock_case("GlobalAveragePooling1D", {}, (*valid.shape, 5)), n, valid)


def drawn(case: Case, a: Algebra, generator: np.random.Generator) -> keras.Layer:
    """Return the layer with random weights."""
    layer = case.ours(a)
    layer(tuple(np.zeros((a.n, *SHAPE))))
    layer.set_weights([generator.normal(size=w.shape) for w in layer.weights])
    return layer


@RECURRENT
def test_a_full_mask_changes_nothing(case: Case):
    """If all steps are valid, the output equals that without a mask, bit for bit."""
    generator = np.random.default_rng(0)
    layer, x = drawn(case, algebra(2), generator), tuple(generator.normal(size=(2, *SHAPE)))
    for masked, bare in zip(layer(x, tf.ones(SHAPE[:2], bool)), layer(x), strict=True):
        np.testing.assert_array_equal(masked, bare)


@RECURRENT
def test_padded_steps_change_no_bit(case: Case):
    """No output depends on the values at padded steps, before, between or after valid ones, by a single bit."""
    generator = np.random.default_rng(0)
    layer = drawn(case, algebra(2), generator)
    x, other = generator.normal(size=(2, 2, *SHAPE))
    other = np.where(MASKS[:, :, None], x, 1e3 * other)
    for one, two in zip(layer(tuple(x), MASKS), layer(tuple(other), MASKS), strict=True):
        np.testing.assert_array_equal(one, two)


@SIZES
@pytest.mark.parametrize("axis", [-1, 2])
def test_batch_normalization_with_a_padding_mask_is_keras_s(n: int, axis: int):
    """With a mask of all axes but the features, outputs, gradients and moving statistics are the stock layer's."""
    case = Case(
        lambda a: layers.BatchNormalization(a, axis, 0.7, dtype=DTYPE),
        lambda: keras.layers.BatchNormalization(axis, 0.7, dtype=DTYPE),
        ((3, 4, 5),),
        training=True,
    )
    check_layer(case, n, np.random.default_rng(0).random((3, 4)) < 0.6)


def test_padding_does_not_count_in_the_statistics_of_a_batch():
    """Valid frames are normalized as without padding, for any values there."""
    a, generator = algebra(2), np.random.default_rng(0)
    frames, valid = generator.normal(size=(2, 6, 3, 3, 2)), np.array([True, False, True, True, False, True])
    padded = np.where(valid[:, None, None, None], frames, 1e3)
    without, within = (layers.BatchNormalization(a, dtype=DTYPE) for _ in range(2))
    expected = without(tuple(frames[:, valid]), training=True)
    actual = within(tuple(padded), tf.constant(valid), training=True)
    np.testing.assert_allclose(np.stack(actual)[:, valid], np.stack(expected), atol=1e-6)
    for one, two in zip(within.get_weights(), without.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


Head = Callable[[Algebra, object, object], object]


def last_state(a: Algebra, x: object, valid: object) -> object:
    return layers.Dense(a, 2, dtype=DTYPE)(layers.LSTM(a, 3, dtype=DTYPE)(x, valid))


def votes(a: Algebra, x: object, _valid: object) -> object:
    return layers.Dense(a, 2, dtype=DTYPE)(x)


def network(name: str, head: Head, frames: int, a: Algebra) -> keras.Model:
    """Return convolutions, a bidirectional recurrent layer with all outputs, and a head."""
    rows, valid = keras.Input((frames, 6, 6, 1, a.n), dtype=DTYPE), keras.Input((frames,), dtype="bool")
    x = layers.FoldFrames(a, dtype=DTYPE)(layers.FromRows(a, dtype=DTYPE)(rows))
    x = layers.Conv2D(a, 3, 3, pool_size=2, activation="relu", dtype=DTYPE)(x)
    x = layers.Flatten(a, dtype=DTYPE)(layers.BatchNormalization(a, dtype=DTYPE)(x))
    x = layers.UnfoldFrames(a, frames, dtype=DTYPE)(layers.Dense(a, 4, "tanh", dtype=DTYPE)(x))
    inner = getattr(layers, name)(a, 3, return_sequences=True, dtype=DTYPE)
    x = layers.Bidirectional(a, inner, dtype=DTYPE)(x, valid)
    return keras.Model([rows, valid], layers.ToRows(a, dtype=DTYPE)(head(a, x, valid)))


@pytest.mark.parametrize(
    ("n", "name", "head"), [(2, "LSTM", last_state), (2, "GRU", votes), (3, "LSTM", votes), (3, "GRU", last_state)]
)
def test_padding_never_changes_a_prediction(n: int, name: str, head: Head):
    """Three frames have the same prediction with padding before, between and after; its values change no bit."""
    a, generator = algebra(n), np.random.default_rng(0)
    bare, padded = network(name, head, 3, a), network(name, head, 5, a)
    weights = [generator.normal(size=w.shape) for w in bare.weights]
    for i, w in enumerate(bare.weights):
        if "variance" in w.name:
            weights[i] = bare.get_weights()[i]
    bare.set_weights(weights)
    padded.set_weights(weights)
    frames = generator.normal(size=(1, 3, 6, 6, 1, n))

    def predict(model: keras.Model, rows: np.ndarray, valid: np.ndarray) -> np.ndarray:
        logits = np.asarray(model([tf.constant(rows), tf.constant(valid)]))
        return logits[valid].mean(axis=0) if head is votes else logits[0]

    expected = predict(bare, frames, np.ones((1, 3), bool))
    for places in ([0, 1, 2], [2, 3, 4], [0, 2, 4]):
        valid = np.isin(np.arange(5), places)[None]
        predictions = []
        for filling in (0.0, 7.0):
            rows = np.full((1, 5, 6, 6, 1, n), filling)
            rows[:, places] = frames
            predictions.append(predict(padded, rows, valid))
        np.testing.assert_allclose(predictions[0], expected, atol=1e-12)
        np.testing.assert_array_equal(*predictions)
