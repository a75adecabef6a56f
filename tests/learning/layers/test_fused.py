"""Fused block, compared with stock Keras and with the general path of the layer, slot by slot."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from stock_layers import algebra

from fedpp.cipher.components import Algebra, Ciphertext
from fedpp.learning.layers import Conv2D, fused

ALGEBRA = algebra(2)
EXACT = {"float32": 2e-5, "float64": 1e-12}  # of numbers about as large as 1

Block = Callable[[Ciphertext, Ciphertext, Ciphertext], Ciphertext]


def convolution(strides: int, padding: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    return lambda x, kernel: tf.nn.conv2d(x, kernel, strides, padding.upper())


def ours(strides: int, padding: str, *, relu: bool) -> Block:
    convolve = convolution(strides, padding)
    return lambda x, kernel, bias: fused.block(ALGEBRA, x, kernel, bias, convolve, relu=relu)


def general(strides: int, padding: str, *, relu: bool) -> Block:
    """Return the result of the general path: one map after the other."""
    convolve = convolution(strides, padding)

    def block(x: Ciphertext, kernel: Ciphertext, bias: Ciphertext) -> Ciphertext:
        slots = zip(ALGEBRA.product_slots(x, kernel, convolve), ALGEBRA.to_slots(bias), strict=True)
        shifted = [tf.nn.max_pool2d(slot, 2, 2, "VALID") + b for slot, b in slots]
        return ALGEBRA.from_slots(tuple(tf.nn.relu(slot) if relu else slot for slot in shifted))

    return block


def results(block: Block, values: list[np.ndarray], *, graph: bool) -> list[np.ndarray]:
    """Return the slots of the block's output, and of its gradients by x, kernel and bias; values are in slots."""

    def run(*parts: tf.Tensor) -> list[tf.Tensor]:
        ciphertexts = [parts[i : i + 2] for i in range(0, 6, 2)]
        with tf.GradientTape() as tape:
            tape.watch(parts)
            slots = ALGEBRA.to_slots(block(*ciphertexts))
            loss = sum(tf.reduce_sum(tf.sin(3 * slot)) for slot in slots)
        raw = tape.gradient(loss, parts)
        return [*slots, *(slot for i in range(0, 6, 2) for slot in ALGEBRA.to_slots(ALGEBRA.gradient(raw[i : i + 2])))]

    parts = [tf.constant(part) for value in values for part in ALGEBRA.from_slots((value[0], value[1]))]
    function = tf.function(run, autograph=False) if graph else run
    return [output.numpy() for output in function(*parts)]


def stock(strides: int, padding: str, values: list[np.ndarray], *, relu: bool) -> list[np.ndarray]:
    """Return the same of stock Keras layers, one network a slot."""
    found = []
    for x, kernel, bias in zip(*values, strict=True):
        dtype = str(x.dtype)
        layers = [
            keras.layers.Conv2D(kernel.shape[-1], kernel.shape[0], strides=strides, padding=padding, dtype=dtype),
            keras.layers.MaxPooling2D(2, dtype=dtype),
            *([keras.layers.ReLU(dtype=dtype)] if relu else []),
        ]
        layers[0].build(x.shape)
        layers[0].set_weights([kernel, bias])
        source = tf.Variable(x)
        with tf.GradientTape() as tape:
            y = source
            for layer in layers:
                y = layer(y)
            loss = tf.reduce_sum(tf.sin(3 * y))
        by = [source, *(weight.value for weight in layers[0].trainable_variables)]
        found.append([y.numpy(), *(gradient.numpy() for gradient in tape.gradient(loss, by))])
    return [slot for pair in zip(*found, strict=True) for slot in pair]


def draw(seed: int, shape: tuple[int, ...], filters: int, size: int, dtype: str) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = shape, (size, size, shape[-1], filters), (filters,)
    scales = 1.0, 1 / np.sqrt(size * size * shape[-1]), 0.3
    return [(scale * generator.normal(size=(2, *s))).astype(dtype) for s, scale in zip(shapes, scales, strict=True)]


def check(actual: list[np.ndarray], expected: list[np.ndarray], within: float) -> None:
    assert len(actual) == len(expected) == 8
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=within * max(1.0, np.abs(other).max()))


@given(
    seed=st.integers(0, 99),
    shape=st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9), st.integers(1, 3)),
    filters=st.integers(1, 4),
    size=st.integers(1, 3),
    strides=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid"]),
    dtype=st.sampled_from(["float32", "float64"]),
    relu=st.booleans(),
)
def test_the_block_equals_stock_keras_on_every_slot(
    seed: int,
    shape: tuple[int, ...],
    filters: int,
    size: int,
    strides: int,
    padding: str,
    dtype: str,
    *,
    relu: bool,
):
    """Outputs and all gradients decrypt to those of Conv2D, MaxPooling2D and ReLU, also for odd sizes; eagerly."""
    if any((side - (size if padding == "valid" else 1)) // strides + 1 < 2 for side in shape[1:3]):
        return
    values = draw(seed, shape, filters, size, dtype)
    check(
        results(ours(strides, padding, relu=relu), values, graph=False),
        stock(strides, padding, values, relu=relu),
        EXACT[dtype],
    )


@pytest.mark.parametrize(
    ("channels", "dtype", "relu"), [(1, "float64", True), (3, "float32", True), (3, "float64", False)]
)
def test_the_block_equals_the_general_path(channels: int, dtype: str, relu: bool):
    """In a graph, compiled by XLA, and in eager mode, the result is that of single maps."""
    values = draw(0, (2, 7, 6, channels), 3, 3, dtype)
    expected = results(general(1, "same", relu=relu), values, graph=False)
    for graph in (True, False):
        check(results(ours(1, "same", relu=relu), values, graph=graph), expected, EXACT[dtype])


def test_of_equal_maxima_the_first_has_the_gradient():
    """On uniform frames all places tie, and the gradient by the frame is TensorFlow's."""
    x, kernel, bias = draw(1, (1, 4, 4, 1), 2, 1, "float64")
    values = [np.broadcast_to(x[:, :, :1, :1], x.shape), kernel, np.abs(bias) + 9]
    check(results(ours(1, "same", relu=True), values, graph=True), stock(1, "same", values, relu=True), 1e-12)


def test_relu_has_no_gradient_at_zero():
    """If the maximum plus bias is exactly 0, every gradient is 0, as in TensorFlow."""
    values = [np.zeros((2, 1, 4, 4, 2)), np.ones((2, 1, 1, 2, 3)), np.zeros((2, 3))]
    for result in results(ours(1, "same", relu=True), values, graph=True):
        np.testing.assert_array_equal(result, np.zeros_like(result))


def test_nan_propagates():
    """A NaN in any corner of a window makes its output NaN; TensorFlow's pooling on a CPU does not."""
    values = draw(2, (1, 4, 8, 1), 2, 1, "float32")
    for corner in range(4):
        values[0][0, 0, corner // 2, 2 * corner + corner % 2] = np.nan
    message = results(ours(1, "same", relu=True), values, graph=True)[0]
    assert np.isnan(message[0, 0]).all()
    assert np.isfinite(message[0, 1]).all()


def test_no_value_of_a_key_is_cached():
    """Two keys, one after the other in one process, give their own results."""
    values = draw(3, (1, 4, 4, 2), 2, 3, "float64")
    other = algebra(2, epoch=2)
    assert other.d != ALGEBRA.d

    def run(under: Algebra) -> list[np.ndarray]:
        parts = [tuple(map(tf.constant, under.from_slots((v[0], v[1])))) for v in values]
        y = tf.function(lambda: fused.block(under, *parts, convolution(1, "same"), relu=True), autograph=False)()
        return [slot.numpy() for slot in under.to_slots(y)]

    for one, two in zip(run(ALGEBRA), run(other), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-12)


def test_other_arguments_use_the_general_path():
    """The block is for n = 2, pooling by 2 x 2, ReLU or no function, and frames of known, not small size."""
    three = algebra(3)
    x = (tf.zeros((1, 16, 16, 1)),) * 2
    assert fused.fits(ALGEBRA, x, (2, 2), "relu")
    assert fused.fits(ALGEBRA, x, (2, 2), None)
    assert not fused.fits(three, (*x, x[0]), (2, 2), "relu")
    assert not fused.fits(ALGEBRA, x, (3, 3), "relu")
    assert not fused.fits(ALGEBRA, x, (1, 1), "relu")
    assert not fused.fits(ALGEBRA, x, (2, 2), "tanh")
    assert not fused.fits(ALGEBRA, (tf.zeros((1, 15, 17, 1)),) * 2, (2, 2), "relu")
    unknown = keras.KerasTensor((None, None, 64, 1))
    assert not fused.fits(ALGEBRA, (unknown, unknown), (2, 2), "relu")


@pytest.mark.parametrize("side", [14, 16])
def test_the_layer_gives_the_same_result_on_both_paths(side: int):
    """A convolution of frames of 16 x 16 is fused, one of 14 x 14 is not; both equal stock Keras on every slot."""
    layer = Conv2D(ALGEBRA, 3, 3, pool_size=2, activation="relu", dtype="float64")
    x = np.random.default_rng(0).normal(size=(2, 2, side, side, 2))
    parts = tuple(map(tf.constant, ALGEBRA.from_slots((x[0], x[1]))))
    layer(parts)
    weights = [np.random.default_rng(k).normal(size=(2, *w.shape)) for k, w in enumerate(layer.weights[::2])]
    layer.set_weights([part for pair in weights for part in ALGEBRA.from_slots((pair[0], pair[1]))])
    assert fused.fits(ALGEBRA, parts, layer.pool_size, "relu") == (side == 16)
    slots = ALGEBRA.to_slots(tf.function(layer, autograph=False)(parts))
    for k, slot in enumerate(slots):
        stock = [keras.layers.Conv2D(3, 3, padding="same", dtype="float64"), keras.layers.MaxPooling2D(dtype="float64")]
        oracle = keras.Sequential([*stock, keras.layers.ReLU(dtype="float64")])
        oracle.build((2, side, side, 2))
        oracle.set_weights([pair[k] for pair in weights])
        np.testing.assert_allclose(slot, oracle(x[k]), atol=1e-12)
