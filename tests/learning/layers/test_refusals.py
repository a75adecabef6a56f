"""Rejected settings and inputs of layers: one line with the layer, the value received and what is allowed."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from stock_layers import DTYPE, algebra

from fedpp.cipher.components import Algebra
from fedpp.errors import ConfigError, FedppError, ModelError
from fedpp.learning import layers

SETTINGS: dict[str, tuple[Callable[[Algebra], object], str]] = {
    "unknown activation": (lambda a: layers.Dense(a, 2, "swish"), r"layer dense.*activation.*relu.*got 'swish'"),
    "unknown activation layer": (lambda a: layers.Activation(a, "exp"), r"activation must be one of .* got 'exp'"),
    "a function as activation": (lambda a: layers.Conv2D(a, 2, 3, activation=np.tanh), "activation must be one of"),
    "unknown padding": (lambda a: layers.Conv2D(a, 2, 3, padding="causal"), '"valid" or "same", got \'causal\''),
    "unknown padding of a pooling": (lambda a: layers.MaxPooling2D(a, padding="full"), "padding must be"),
    "kernel of three sizes": (lambda a: layers.Conv2D(a, 2, (3, 3, 3)), r"kernel_size must be one or two.*\(3, 3, 3\)"),
    "no window": (lambda a: layers.AveragePooling2D(a, 0), "pool_size must be .* at least 1, got 0"),
    "strides and dilation": (
        lambda a: layers.Conv2D(a, 2, 3, 2, dilation_rate=2),
        r"strides \(2, 2\) and dilation_rate \(2, 2\) exclude each other",
    ),
    "unequal depthwise strides": (
        lambda a: layers.DepthwiseConv2D(a, 3, (1, 2)),
        r"strides must be the same.*\(1, 2\)",
    ),
    "no filters": (lambda a: layers.Conv2D(a, 0, 3), "filters must be a whole number of at least 1, got 0"),
    "no depth": (lambda a: layers.DepthwiseConv2D(a, 3, depth_multiplier=0), "depth_multiplier must be .* got 0"),
    "no units": (lambda a: layers.Dense(a, 0), "units must be .* at least 1, got 0"),
    "no recurrent units": (lambda a: layers.GRU(a, 0), "units must be .* at least 1, got 0"),
    "a layer of another kind": (lambda a: layers.Bidirectional(a, layers.Dense(a, 2)), "takes an LSTM or a GRU"),
    "backwards in both directions": (
        lambda a: layers.Bidirectional(a, layers.LSTM(a, 2, go_backwards=True)),
        "that goes forwards",
    ),
    "all dropped": (lambda a: layers.Dropout(a, 1.0), "rate must be at least 0 and below 1, got 1.0"),
    "negative slope": (lambda a: layers.ReLU(a, negative_slope=-1.0), "must not be negative.*-1.0"),
    "no epsilon": (lambda a: layers.LayerNormalization(a, epsilon=0.0), "epsilon must be above 0, got 0.0"),
    "momentum": (lambda a: layers.BatchNormalization(a, momentum=1.5), "momentum must be between 0 and 1, got 1.5"),
    "two free sizes": (lambda a: layers.Reshape(a, (-1, -1)), r"at most one -1, got \(-1, -1\)"),
    "no frames": (lambda a: layers.UnfoldFrames(a, 0), "frames must be .* at least 1, got 0"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_out_of_range_is_rejected(case: str):
    """A layer cannot be made with an invalid setting."""
    make, message = SETTINGS[case]
    with pytest.raises(ConfigError, match=message) as refusal:
        make(algebra(2))
    assert "\n" not in str(refusal.value)


def ciphertext(*shape: int | None, parts: int = 2) -> tuple[keras.KerasTensor, ...]:
    return tuple(keras.KerasTensor(shape, dtype=DTYPE) for _ in range(parts))


FRAME, SEQUENCE = ciphertext(None, 4, 4, 2), ciphertext(None, 3, 2)
CALLS: dict[str, tuple[Callable[[Algebra], object], str]] = {
    "rows instead of a ciphertext": (
        lambda a: layers.Dense(a, 2, name="head")(SEQUENCE[0]),
        "layer head takes a cipher",
    ),
    "a ciphertext of another n": (lambda a: layers.ReLU(a)(ciphertext(None, 3, parts=3)), "a tuple of 2 tensors"),
    "tensors of two shapes": (
        lambda a: layers.Flatten(a)((FRAME[0], SEQUENCE[0])),
        r"one shape, got .*\(None, 4, 4, 2\), \(None, 3, 2\)",
    ),
    "rows of another n": (lambda a: layers.FromRows(a)(keras.KerasTensor((None, 3))), r"takes rows \[\.\.\., 2\], got"),
    "tensors for rows": (lambda a: layers.ToRows(a)(FRAME[0]), "layer to_rows.* takes a ciphertext"),
    "tensors for dropout": (lambda a: layers.Dropout(a, 0.5)(FRAME[0]), "takes a ciphertext"),
    "sequences for frames": (
        lambda a: layers.Conv2D(a, 2, 3)(SEQUENCE),
        r"tensors \[batch, height, width, channels\] .* got .*\(None, 3, 2\)",
    ),
    "sequences to be pooled": (lambda a: layers.GlobalMaxPooling2D(a)(SEQUENCE), "height, width, channels"),
    "frames for sequences": (lambda a: layers.LSTM(a, 2)(FRAME), r"tensors \[batch, steps, features\]"),
    "any number of steps": (lambda a: layers.GRU(a, 2)(ciphertext(None, None, 2)), "needs a fixed size of axes"),
    "any number of features": (lambda a: layers.Flatten(a)(ciphertext(None, None, 2)), "needs a fixed size of axes"),
    "small frames": (lambda a: layers.Conv2D(a, 2, 5, padding="valid")(FRAME), r"\(5, 5\) does not fit .*\(4, 4\)"),
    "small frames by dilation": (
        lambda a: layers.DepthwiseConv2D(a, 3, padding="valid", dilation_rate=2)(FRAME),
        r"a window of \(5, 5\) does not fit into frames of \(4, 4\)",
    ),
    "small frames before a pooling": (lambda a: layers.Conv2D(a, 2, 3, 2, pool_size=3)(FRAME), r"\(3, 3\).* \(2, 2\)"),
    "small frames for a pooling": (lambda a: layers.MaxPooling2D(a, 5)(FRAME), r"\(5, 5\) does not fit"),
    "another number": (lambda a: layers.Reshape(a, (5, -1))(FRAME), r"cannot reshape \(4, 4, 2\) to \(5, -1\)"),
    "no such axis": (lambda a: layers.LayerNormalization(a, 4)(FRAME), r"has no axis \(4,\)"),
    "no such axis for a batch": (lambda a: layers.BatchNormalization(a, -5)(FRAME), r"has no axis \(-5,\)"),
    "no such axis to join": (lambda a: layers.Concatenate(a, 3)([SEQUENCE, SEQUENCE]), "has no axis 3"),
    "other sizes to join": (
        lambda a: layers.Concatenate(a, 1)([SEQUENCE, ciphertext(None, 3, 3)]),
        "cannot merge shapes",
    ),
    "sum of two shapes": (
        lambda a: layers.Add(a)([FRAME, SEQUENCE]),
        r"cannot merge shapes \(None, 4, 4, 2\), \(None, 3",
    ),
    "small frames for an average": (
        lambda a: layers.AveragePooling2D(a, (2, 5))(FRAME),
        r"average_pooling2d.* \(2, 5\) does not fit .*\(4, 4\)",
    ),
    "sequences to be averaged": (lambda a: layers.GlobalAveragePooling2D(a)(SEQUENCE), "height, width, channels"),
    "frames to be averaged over steps": (
        lambda a: layers.GlobalAveragePooling1D(a)(FRAME),
        r"tensors \[batch, steps, features\] .* got .*\(None, 4, 4, 2\)",
    ),
    "frames of any size to fold": (
        lambda a: layers.FoldFrames(a)(ciphertext(None, 3, None, 4, 1)),
        r"fold_frames.* needs a fixed size of axes .*, got shape \(None, 3, None, 4, 1\)",
    ),
    "a padding mask of features for a mean": (
        lambda a: layers.GlobalAveragePooling1D(a)(SEQUENCE, keras.KerasTensor((None, 1), dtype="bool")),
        r"takes a padding mask of shape \(None, 3\), got \(None, 1\)",
    ),
    "a padding mask of other steps": (
        lambda a: layers.LSTM(a, 2, name="memory")(SEQUENCE, keras.KerasTensor((None, 4), dtype="bool")),
        r"layer memory takes a padding mask of shape \(None, 3\), got \(None, 4\)",
    ),
    "a padding mask of features": (
        lambda a: layers.GRU(a, 2)(SEQUENCE, keras.KerasTensor((None, 3, 1), dtype="bool")),
        r"takes a padding mask of shape \(None, 3\), got \(None, 3, 1\)",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_an_input_that_does_not_fit_is_rejected(case: str):
    """A layer rejects inputs of another form; one line says what it takes and what it got."""
    call, message = CALLS[case]
    with pytest.raises(ModelError, match=message) as refusal:
        call(algebra(2))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 3, 2), (6,)])
def test_a_padding_mask_that_does_not_fit_data_is_rejected(shape: tuple[int, ...]):
    """A padding mask of another shape is also rejected on data, after a valid call."""
    x, a = tuple(np.zeros((2, 2, 3, 2))), algebra(2)
    normalization, memory = layers.BatchNormalization(a, dtype=DTYPE), layers.LSTM(a, 2, dtype=DTYPE)
    both = layers.Bidirectional(a, layers.GRU(a, 2, return_sequences=True, dtype=DTYPE), dtype=DTYPE)
    mean = layers.GlobalAveragePooling1D(a, dtype=DTYPE)
    for layer, training in ((normalization, {"training": True}), (memory, {}), (both, {}), (mean, {})):
        layer(x, tf.ones((2, 3), bool), **training)
        with pytest.raises(FedppError, match="mask of shape") as refusal:
            layer(x, tf.ones(shape, bool), **training)
        assert "\n" not in str(refusal.value)


def test_directions_of_another_key_are_rejected():
    """Both directions compute under one key."""
    with pytest.raises(FedppError, match="belongs to domain"):
        layers.Bidirectional(algebra(2), layers.LSTM(algebra(2, epoch=2), 2))
