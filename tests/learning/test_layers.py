"""Each encrypted layer against the stock Keras layer: outputs and gradients, slot by slot."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from fedpp.cipher.components import Algebra
from fedpp.keys.domain import KeyDomain
from fedpp.learning import layers
from fedpp.learning.losses import EncryptedCrossEntropy

DTYPE = "float64"
SIZES = pytest.mark.parametrize("n", [2, 3])


def algebra(n: int) -> Algebra:
    return KeyDomain(bytes([5] * 32), n=n, epoch=1).evaluation_key().algebra()


Case = tuple[Callable[[Algebra], keras.Layer], Callable[[], keras.Layer], tuple[int, ...]]
CASES: dict[str, Case] = {
    "conv": (
        lambda a: layers.Conv2D(a, 3, 3, dtype=DTYPE),
        lambda: keras.layers.Conv2D(3, 3, padding="same", dtype=DTYPE),
        (2, 6, 6, 2),
    ),
    "conv valid strides": (
        lambda a: layers.Conv2D(a, 3, 2, strides=2, padding="valid", dtype=DTYPE),
        lambda: keras.layers.Conv2D(3, 2, strides=2, dtype=DTYPE),
        (2, 6, 6, 2),
    ),
    "conv pool relu": (
        lambda a: layers.Conv2D(a, 3, 3, pool_size=2, activation="relu", dtype=DTYPE),
        lambda: keras.Sequential(
            [
                keras.layers.Conv2D(3, 3, padding="same", dtype=DTYPE),
                keras.layers.ReLU(dtype=DTYPE),
                keras.layers.MaxPooling2D(2, dtype=DTYPE),
            ]
        ),
        (2, 6, 6, 2),
    ),
    "max pooling": (
        lambda a: layers.MaxPooling2D(a, 2, dtype=DTYPE),
        lambda: keras.layers.MaxPooling2D(2, dtype=DTYPE),
        (2, 6, 6, 2),
    ),
    "relu": (lambda a: layers.ReLU(a, dtype=DTYPE), lambda: keras.layers.ReLU(dtype=DTYPE), (3, 7)),
    "slotwise": (
        lambda a: layers.Slotwise(a, keras.ops.tanh, keras.ops.exp, dtype=DTYPE),
        lambda: keras.Sequential(
            [keras.layers.Activation("tanh", dtype=DTYPE), keras.layers.Activation("exponential", dtype=DTYPE)]
        ),
        (3, 7),
    ),
    "dense": (
        lambda a: layers.Dense(a, 4, dtype=DTYPE),
        lambda: keras.layers.Dense(4, dtype=DTYPE),
        (3, 7),
    ),
    "dense sigmoid": (
        lambda a: layers.Dense(a, 4, activation="sigmoid", dtype=DTYPE),
        lambda: keras.layers.Dense(4, activation="sigmoid", dtype=DTYPE),
        (3, 7),
    ),
    "lstm": (
        lambda a: layers.LSTM(a, 3, dtype=DTYPE),
        lambda: keras.layers.LSTM(3, unroll=True, dtype=DTYPE),
        (2, 4, 5),
    ),
    "lstm backwards": (
        lambda a: layers.LSTM(a, 3, go_backwards=True, dtype=DTYPE),
        lambda: keras.layers.LSTM(3, unroll=True, go_backwards=True, dtype=DTYPE),
        (2, 4, 5),
    ),
    "bidirectional": (
        lambda a: layers.Bidirectional(a, 3, dtype=DTYPE),
        lambda: keras.layers.Bidirectional(keras.layers.LSTM(3, unroll=True, dtype=DTYPE), dtype=DTYPE),
        (2, 4, 5),
    ),
    "flatten": (
        lambda a: layers.Flatten(a, dtype=DTYPE),
        lambda: keras.layers.Flatten(dtype=DTYPE),
        (2, 3, 4, 5),
    ),
    "reshape": (
        lambda a: layers.Componentwise(a, lambda x: keras.ops.reshape(x, (-1, 2, 10)), dtype=DTYPE),
        lambda: keras.layers.Reshape((2, 10), dtype=DTYPE),
        (2, 4, 5),
    ),
}


def check(case: str, n: int, valid: np.ndarray | None = None) -> None:
    """Compare a layer with the stock one, slot by slot; `valid` says which steps of an LSTM count."""
    make, stock, shape = CASES[case]
    a, generator = algebra(n), np.random.default_rng(3)
    inputs = [generator.normal(size=shape) for _ in range(n)]
    oracle, ours = stock(), make(a)
    which, mask = ((), {}) if valid is None else ((tf.constant(valid),), {"mask": tf.constant(valid)})
    oracle.build(shape)
    ciphertext = [tf.Variable(x) for x in a.from_slots(tuple(inputs))]
    ours(tuple(ciphertext), *which)
    weights = [[generator.normal(size=w.shape) for _ in range(n)] for w in oracle.weights]
    ours.set_weights([part for slots in weights for part in a.from_slots(tuple(slots))])

    with tf.GradientTape() as tape:
        outputs = a.to_slots(tuple(ours(tuple(ciphertext), *which)))
        loss = sum(tf.reduce_sum(tf.sin(3 * y)) for y in outputs)
    variables = [v.value for v in ours.trainable_variables]
    raw = tape.gradient(loss, [*ciphertext, *variables])
    gradients = [a.to_slots(a.gradient(tuple(raw[i : i + n]))) for i in range(0, len(raw), n)]

    for k in range(n):
        oracle.set_weights([slots[k] for slots in weights])
        x = tf.Variable(inputs[k])
        with tf.GradientTape() as tape:
            y = oracle(x, **mask)
            loss = tf.reduce_sum(tf.sin(3 * y))
        np.testing.assert_allclose(outputs[k], y, atol=1e-10)
        expected = tape.gradient(loss, [x, *(v.value for v in oracle.trainable_variables)])
        assert len(expected) == len(gradients)
        for ours_k, theirs in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(ours_k[k], theirs, atol=1e-9)


@SIZES
@pytest.mark.parametrize("case", CASES)
def test_layer_is_the_stock_layer_on_every_slot(case: str, n: int):
    """Outputs, and gradients by inputs and weights, decrypt to the stock layer's, for message and decoys."""
    check(case, n)


RECURRENT = pytest.mark.parametrize("case", ["lstm", "lstm backwards", "bidirectional"])
MASKS = [[True, True, True, True], [True, True, False, False], [False, False, True, True], [False, True, False, True]]


@SIZES
@RECURRENT
@pytest.mark.parametrize("first", MASKS)
@pytest.mark.parametrize("second", [*MASKS, [False] * 4])
def test_a_masked_step_is_keras_s_on_every_slot(case: str, n: int, first: list[bool], second: list[bool]):
    """Outputs and all gradients are the stock layer's under its mask, one a sequence, wherever the gaps in it are."""
    check(case, n, np.array([first, second]))


@RECURRENT
def test_a_full_mask_changes_nothing(case: str):
    """Where all steps are valid, the output is to the bit that without a mask."""
    make, _, shape = CASES[case]
    a, generator = algebra(2), np.random.default_rng(0)
    layer, x = make(a), tuple(tf.constant(generator.normal(size=shape)) for _ in range(2))
    layer(x)
    layer.set_weights([generator.normal(size=w.shape) for w in layer.weights])
    for masked, bare in zip(layer(x, tf.ones(shape[:2], bool)), layer(x), strict=True):
        np.testing.assert_array_equal(masked, bare)


def test_a_step_that_is_not_valid_is_not_even_seen():
    """The output does not depend, by a single bit, on what stands at masked steps, before, between or after."""
    a, generator = algebra(2), np.random.default_rng(0)
    layer = CASES["bidirectional"][0](a)
    valid = np.array([[True, True, False, False], [False, True, False, True]])
    x, other = generator.normal(size=(2, 2, 2, 4, 5))
    other = np.where(valid[:, :, None], x, 1e3 * other)
    layer(tuple(x))
    layer.set_weights([generator.normal(size=w.shape) for w in layer.weights])
    for one, two in zip(layer(tuple(x), valid), layer(tuple(other), valid), strict=True):
        np.testing.assert_array_equal(one, two)


def test_append_adds_the_last_feature():
    """Each component gets the other's as its last feature."""
    generator = np.random.default_rng(0)
    x, feature = generator.normal(size=(2, 2, 3, 4)), generator.normal(size=(2, 2, 3))
    appended = layers.Append(algebra(2), dtype=DTYPE)(tuple(x), tuple(feature))
    np.testing.assert_array_equal(np.stack(appended), np.concatenate([x, feature[..., None]], axis=-1))


@SIZES
def test_rows_go_in_and_out_unchanged(n: int):
    """ToRows(FromRows(c)) == c."""
    a, rows = algebra(n), np.random.default_rng(0).normal(size=(2, 3, n))
    through = layers.ToRows(a, dtype=DTYPE)(layers.FromRows(a, dtype=DTYPE)(tf.constant(rows)))
    np.testing.assert_allclose(through, rows, atol=1e-12)


@SIZES
def test_loss_is_a_weighted_sum_of_the_slots_losses(n: int):
    """The loss is Keras's cross entropy of the message and a sixteenth of each decoy's, averaged over the batch."""
    a, generator = algebra(n), np.random.default_rng(0)
    logits = generator.normal(size=(n, 5, 3))
    labels = np.eye(3)[generator.integers(3, size=(n, 5))]

    def rows(slots: np.ndarray) -> np.ndarray:
        return np.stack(a.to_rows(a.from_slots(tuple(slots))), axis=-1)

    stock = keras.losses.CategoricalCrossentropy(from_logits=True, dtype=DTYPE)
    message, *decoys = (float(stock(y, z)) for y, z in zip(labels, logits, strict=True))
    ours = EncryptedCrossEntropy(a, DTYPE)(rows(labels), rows(logits))
    np.testing.assert_allclose(float(ours), message + sum(decoys) / 16, rtol=1e-12)


def test_an_encrypted_layer_is_not_saved_with_its_key():
    """Serialising a layer is refused, since the algebra holds the key."""
    with pytest.raises(TypeError, match="NetworkSpec"):
        layers.Dense(algebra(2), 3).get_config()
