"""Comparison of any layer on ciphertext with the stock Keras layer, and strategies of layers with settings."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from keras import ops

from fedpp.cipher.components import Algebra, Ciphertext
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import layers

DTYPE = "float64"


def algebra(n: int, epoch: int = 1) -> Algebra:
    """Return the algebra of a fixed domain; another key epoch is another domain, and n = 1 is plaintext."""
    if n == 1:
        return Algebra.plaintext()
    return KeyDomain.of_secret(bytes([5] * 32), n=n, key_epoch=epoch).evaluation_key().algebra()


def rows_of(a: Algebra, slots: np.ndarray) -> np.ndarray:
    """Return rows `[..., n]` of slots `[n, ...]`; plaintext has no axis of slots."""
    return slots[0] if a.n == 1 else np.stack(a.to_rows(a.from_slots(tuple(slots))), axis=-1).astype(slots.dtype)


def slots_of(a: Algebra, weight: Sequence[keras.Variable]) -> np.ndarray:
    """Return the slots `[n, ...]` of the n variables of a weight."""
    return np.stack(a.to_slots(tuple(np.asarray(v, np.float64) for v in weight)))


@dataclass(frozen=True)
class Case:
    """Layer on ciphertext, the stock layer that it must equal on every slot, and the shapes of their inputs."""

    ours: Callable[[Algebra], keras.Layer]
    stock: Callable[[], keras.Layer]
    shapes: tuple[tuple[int, ...], ...]
    takes: str = "one"  # input, or a "list" of them
    training: bool = False

    def call(
        self, layer: keras.Layer, xs: Sequence[Ciphertext], valid: tf.Tensor | None, *, training: bool = False
    ) -> Ciphertext:
        """Call the layer on ciphertext."""
        more = ({} if valid is None else {"valid": valid}) | ({"training": True} if training else {})
        return layer(list(xs) if self.takes == "list" else xs[0], **more)

    def call_stock(
        self, layer: keras.Layer, xs: Sequence[tf.Tensor], valid: tf.Tensor | None, *, training: bool = False
    ) -> tf.Tensor:
        """Call the stock layer."""
        more = ({} if valid is None else {"mask": valid}) | ({"training": True} if training else {})
        return layer(list(xs) if self.takes == "list" else xs[0], **more)


def random_weights(layer: keras.Layer, generator: np.random.Generator) -> list[np.ndarray]:
    """Draw one slot of a stock layer's weights; variances are positive."""
    draws = [generator.normal(size=weight.shape) for weight in layer.weights]
    return [abs(w) if "variance" in v.name else w for v, w in zip(layer.weights, draws, strict=True)]


def set_slots(layer: keras.Layer, a: Algebra, weights: Sequence[Sequence[np.ndarray]]) -> None:
    """Set a layer's ciphertext weights from the slots of each."""
    layer.set_weights([part for slots in weights for part in a.from_slots(tuple(slots))])


def check_layer(case: Case, n: int, valid: np.ndarray | None = None, seed: int = 3) -> None:
    """Compare outputs, gradients by inputs and trained weights, and weights after the call, slot by slot."""
    a, generator = algebra(n), np.random.default_rng(seed)
    padding_mask = None if valid is None else tf.constant(valid)
    inputs = [[generator.normal(size=shape) for shape in case.shapes] for _ in range(n)]
    oracle, ours = case.stock(), case.ours(a)
    xs = [tuple(map(tf.Variable, a.from_slots(slots))) for slots in zip(*inputs, strict=True)]
    case.call_stock(oracle, [tf.constant(x) for x in inputs[0]], padding_mask)
    case.call(ours, xs, padding_mask)
    weights = list(zip(*(random_weights(oracle, generator) for _ in range(n)), strict=True))
    set_slots(ours, a, weights)
    seeds = [(v, v.numpy()) for v in oracle.variables if "seed" in v.name]

    with tf.GradientTape() as tape:
        outputs = a.to_slots(tuple(case.call(ours, xs, padding_mask, training=case.training)))
        loss = sum(tf.reduce_sum(tf.sin(3 * y)) for y in outputs)
    variables = [v.value for v in ours.trainable_variables]
    raw = tape.gradient(loss, [*(part for x in xs for part in x), *variables])
    gradients = [a.to_slots(a.gradient(tuple(raw[i : i + n]))) for i in range(0, len(raw), n)]
    after = [a.to_slots(tuple(ours.get_weights()[i : i + n])) for i in range(0, len(ours.weights), n)]

    for k in range(n):
        oracle.set_weights([slots[k] for slots in weights])
        for state, first in seeds:
            state.assign(first)
        plain = [tf.Variable(x) for x in inputs[k]]
        with tf.GradientTape() as tape:
            y = case.call_stock(oracle, plain, padding_mask, training=case.training)
            loss = tf.reduce_sum(tf.sin(3 * y))
        np.testing.assert_allclose(outputs[k], y, atol=1e-10)
        expected = tape.gradient(loss, [*plain, *(v.value for v in oracle.trainable_variables)])
        for ours_k, theirs in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(ours_k[k], theirs, atol=1e-9)
        for moved, theirs in zip(after, oracle.get_weights(), strict=True):
            np.testing.assert_allclose(moved[k], theirs, atol=1e-12)


SIZES, FEW, RATES = st.integers(4, 6), st.integers(1, 3), st.integers(1, 2)
SEVERAL = st.integers(2, 3)  # Keras warns of a softmax of one feature, which is always 1
FRAMES = st.tuples(FEW, SIZES, SIZES, FEW)
SEQUENCES = st.tuples(FEW, st.integers(1, 4), FEW)
ACTIVATIONS = st.sampled_from([None, "relu", "leaky_relu", "elu", "sigmoid", "tanh", "softmax", "gelu"])
PAIRS = st.one_of(FEW, st.tuples(FEW, FEW))
EITHER, PADDINGS = st.booleans(), st.sampled_from(["valid", "same"])


def chain(*stock: keras.Layer) -> keras.Layer:
    """Return stock layers, one after the other."""
    return stock[0] if len(stock) == 1 else keras.Sequential(list(stock))


def followed(layer: keras.Layer, pool: int, activation: str | None) -> keras.Layer:
    """Return a stock convolution with its max pooling and activation."""
    pools = [keras.layers.MaxPooling2D(pool, dtype=DTYPE)] if pool > 1 else []
    return chain(layer, *pools, *([keras.layers.Activation(activation, dtype=DTYPE)] if activation else []))


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    strides, dilation = draw(st.sampled_from([((1, 1), 1), (2, 1), ((1, 2), 1), (1, 2), (1, (2, 1))]))
    settings = {
        "filters": draw(SEVERAL),
        "kernel_size": draw(st.one_of(RATES, st.tuples(RATES, RATES))),
        "strides": strides,
        "padding": draw(PADDINGS),
        "dilation_rate": dilation,
        "use_bias": draw(EITHER),
    }
    pool, activation = draw(st.sampled_from([1, 1, 2] if strides in {1, (1, 1)} else [1])), draw(ACTIVATIONS)
    return Case(
        lambda a: layers.Conv2D(a, **settings, pool_size=pool, activation=activation, dtype=DTYPE),
        lambda: followed(keras.layers.Conv2D(**settings, dtype=DTYPE), pool, activation),
        (draw(FRAMES),),
    )


@st.composite
def depthwise_convolutions(draw: st.DrawFn) -> Case:
    strides, dilation = draw(st.sampled_from([(1, 1), (2, 1), ((2, 2), 1), (1, 2), (1, (2, 2))]))
    settings = {
        "kernel_size": draw(st.one_of(RATES, st.tuples(RATES, RATES))),
        "strides": strides,
        "padding": draw(PADDINGS),
        "depth_multiplier": draw(RATES),
        "dilation_rate": dilation,
        "use_bias": draw(EITHER),
    }
    pool, activation = draw(st.sampled_from([1, 2] if strides == 1 else [1])), draw(st.sampled_from([None, "elu"]))
    return Case(
        lambda a: layers.DepthwiseConv2D(a, **settings, pool_size=pool, activation=activation, dtype=DTYPE),
        lambda: followed(keras.layers.DepthwiseConv2D(**settings, dtype=DTYPE), pool, activation),
        (draw(FRAMES),),
    )


@st.composite
def dense(draw: st.DrawFn) -> Case:
    units, bias, activation = draw(SEVERAL), draw(EITHER), draw(ACTIVATIONS)
    return Case(
        lambda a: layers.Dense(a, units, activation, use_bias=bias, dtype=DTYPE),
        lambda: keras.layers.Dense(units, activation, use_bias=bias, dtype=DTYPE),
        (tuple(draw(st.lists(FEW, min_size=2, max_size=4))),),
    )


@st.composite
def poolings(draw: st.DrawFn, name: str) -> Case:
    settings = {
        "pool_size": draw(PAIRS),
        "strides": draw(st.one_of(st.none(), PAIRS)),
        "padding": draw(PADDINGS),
    }
    return stock_case(name, settings, draw(FRAMES))


@st.composite
def global_poolings(draw: st.DrawFn, name: str) -> Case:
    return stock_case(name, {"keepdims": draw(EITHER)}, draw(FRAMES))


@st.composite
def recurrent(draw: st.DrawFn, name: str) -> Case:
    units, settings = draw(FEW), {"return_sequences": draw(EITHER), "go_backwards": draw(EITHER)}
    return Case(
        lambda a: getattr(layers, name)(a, units, **settings, dtype=DTYPE),
        lambda: getattr(keras.layers, name)(units, **settings, unroll=True, dtype=DTYPE),
        (draw(SEQUENCES),),
    )


@st.composite
def bidirectional(draw: st.DrawFn) -> Case:
    name, units, sequences = draw(st.sampled_from(["LSTM", "GRU"])), draw(FEW), draw(EITHER)
    settings = {"return_sequences": sequences, "dtype": DTYPE}

    def stock() -> keras.Layer:
        inner = getattr(keras.layers, name)(units, **settings, unroll=True)
        return keras.layers.Bidirectional(inner, dtype=DTYPE)

    return Case(
        lambda a: layers.Bidirectional(a, getattr(layers, name)(a, units, **settings), dtype=DTYPE),
        stock,
        (draw(SEQUENCES),),
    )


@st.composite
def batch_normalizations(draw: st.DrawFn) -> Case:
    settings = {
        "axis": draw(st.sampled_from([-1, 1])),
        "momentum": draw(st.floats(0, 1)),
        "epsilon": draw(st.floats(1e-4, 1.0)),
        "center": draw(EITHER),
        "scale": draw(EITHER),
    }
    training = draw(EITHER)
    return stock_case("BatchNormalization", settings, draw(st.one_of(FRAMES, st.tuples(SIZES, FEW))), training=training)


@st.composite
def layer_normalizations(draw: st.DrawFn) -> Case:
    settings = {
        "axis": draw(st.sampled_from([-1, (1, 2), (2, 3)])),
        "epsilon": draw(st.floats(1e-3, 1.0)),
        "center": draw(EITHER),
        "scale": draw(EITHER),
    }
    return stock_case("LayerNormalization", settings, draw(FRAMES))


@st.composite
def dropouts(draw: st.DrawFn) -> Case:
    settings = {
        "rate": draw(st.floats(0, 0.9)),
        "noise_shape": draw(st.sampled_from([None, (None, 1, 1, None)])),
        "seed": draw(st.integers(0, 9)),
    }
    return stock_case("Dropout", settings, draw(FRAMES), training=draw(EITHER))


@st.composite
def activations(draw: st.DrawFn) -> Case:
    name = draw(ACTIVATIONS.filter(bool))
    return stock_case("Activation", {"activation": name}, (*draw(SEQUENCES), draw(SEVERAL)))


@st.composite
def relus(draw: st.DrawFn) -> Case:
    settings = {
        "max_value": draw(st.sampled_from([None, 1.5])),
        "negative_slope": draw(st.sampled_from([0.0, 0.3])),
        "threshold": draw(st.sampled_from([0.0, 0.5])),
    }
    return stock_case("ReLU", settings, draw(FRAMES))


@st.composite
def reshapes(draw: st.DrawFn) -> Case:
    _, *sizes, last = shape = draw(FRAMES)
    target = draw(st.sampled_from([(math.prod(sizes), last), (last, -1), (-1,), (*sizes, 1, last)]))
    return stock_case("Reshape", {"target_shape": target}, shape)


@st.composite
def concatenations(draw: st.DrawFn) -> Case:
    shape, axis = draw(FRAMES), draw(st.sampled_from([1, 3, -1, -2]))
    others = [list(shape) for _ in range(draw(RATES))]
    for other in others:
        other[axis] = draw(FEW)
    return Case(
        lambda a: layers.Concatenate(a, axis=axis, dtype=DTYPE),
        lambda: keras.layers.Concatenate(axis=axis, dtype=DTYPE),
        (shape, *map(tuple, others)),
        takes="list",
    )


@st.composite
def additions(draw: st.DrawFn) -> Case:
    shapes = (draw(FRAMES),) * draw(st.integers(2, 3))
    return Case(lambda a: layers.Add(a, dtype=DTYPE), lambda: keras.layers.Add(dtype=DTYPE), shapes, takes="list")


@st.composite
def foldings(draw: st.DrawFn) -> Case:
    frames, rest = draw(FEW), draw(FRAMES)
    return Case(
        lambda a: layers.FoldFrames(a, dtype=DTYPE),
        lambda: keras.layers.Lambda(lambda x: ops.reshape(x, (-1, *rest[1:])), dtype=DTYPE),
        ((rest[0], frames, *rest[1:]),),
    )


@st.composite
def unfoldings(draw: st.DrawFn) -> Case:
    frames, (batch, *rest) = draw(FEW), draw(FRAMES)
    return Case(
        lambda a: layers.UnfoldFrames(a, frames, dtype=DTYPE),
        lambda: keras.layers.Lambda(lambda x: ops.reshape(x, (-1, frames, *rest)), dtype=DTYPE),
        ((batch * frames, *rest),),
    )


def stock_case(name: str, settings: dict, shape: tuple[int, ...], *, training: bool = False) -> Case:
    """Return the case of a layer with the stock layer's name and settings."""
    return Case(
        lambda a: getattr(layers, name)(a, **settings, dtype=DTYPE),
        lambda: getattr(keras.layers, name)(**settings, dtype=DTYPE),
        (shape,),
        training=training,
    )


CASES: dict[str, st.SearchStrategy[Case]] = {
    "Conv2D": convolutions(),
    "DepthwiseConv2D": depthwise_convolutions(),
    "Dense": dense(),
    "AveragePooling2D": poolings("AveragePooling2D"),
    "MaxPooling2D": poolings("MaxPooling2D"),
    "GlobalAveragePooling1D": SEQUENCES.map(lambda shape: stock_case("GlobalAveragePooling1D", {}, shape)),
    "GlobalAveragePooling2D": global_poolings("GlobalAveragePooling2D"),
    "GlobalMaxPooling2D": global_poolings("GlobalMaxPooling2D"),
    "LSTM": recurrent("LSTM"),
    "GRU": recurrent("GRU"),
    "Bidirectional": bidirectional(),
    "BatchNormalization": batch_normalizations(),
    "LayerNormalization": layer_normalizations(),
    "Dropout": dropouts(),
    "Activation": activations(),
    "ReLU": relus(),
    "Flatten": FRAMES.map(lambda shape: stock_case("Flatten", {}, shape)),
    "Reshape": reshapes(),
    "Concatenate": concatenations(),
    "Add": additions(),
    "FoldFrames": foldings(),
    "UnfoldFrames": unfoldings(),
}
