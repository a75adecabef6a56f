"""Encrypted losses, compared with stock Keras on each slot: values and gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from stock_layers import algebra, rows_of

from fedpp.cipher.components import Algebra
from fedpp.errors import ConfigError, DomainMismatchError, KeyFileError
from fedpp.learning import key_scope
from fedpp.learning.decoys import DECOY_WEIGHT
from fedpp.learning.losses import BinaryCrossentropy, CategoricalCrossentropy, EncryptedLoss

SIZES = st.integers(1, 3)
SMOOTHING = st.sampled_from([0.0, 0.1, 0.5])
LOGITS = st.sampled_from([1.0, 30.0, 1000.0])  # large ones too: neither overflow nor underflow


def by_slot(loss: EncryptedLoss, labels: np.ndarray, logits: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the loss, and its derivatives by the slots of the logits, `[n, batch, outputs]`."""
    of = loss.algebra
    parts = [tf.constant(part) for part in of.from_slots(tuple(logits))]
    with tf.GradientTape() as tape:
        tape.watch(parts)
        predicted = parts[0] if of.n == 1 else tf.stack(of.to_rows(tuple(parts)), axis=-1)
        value = loss(tf.constant(rows_of(of, labels)), predicted)
    gradient = of.gradient(tuple(np.asarray(g) for g in tape.gradient(value, parts)))
    return float(value), np.stack(of.to_slots(gradient))


def of_each_slot(
    stock: Callable[[np.ndarray, tf.Tensor], tf.Tensor], labels: np.ndarray, logits: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return what `by_slot` must be: stock Keras's loss on each slot, decoys at their share."""
    total, gradients = 0.0, []
    for k, (y, z) in enumerate(zip(labels, logits, strict=True)):
        z = tf.constant(z)  # noqa: PLW2901
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = (DECOY_WEIGHT if k else 1.0) * stock(y, z)
        total += float(value)
        gradients.append(np.asarray(tape.gradient(value, z)))
    return total, np.stack(gradients)


def check(loss: EncryptedLoss, stock: Callable[..., tf.Tensor], labels: np.ndarray, logits: np.ndarray) -> None:
    (value, gradient), (expected, derivative) = by_slot(loss, labels, logits), of_each_slot(stock, labels, logits)
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(gradient, derivative, rtol=0, atol=1e-11)


@given(SIZES, st.integers(1, 5), st.integers(2, 4), SMOOTHING, LOGITS, st.booleans(), st.integers(0, 99))
def test_categorical_crossentropy_is_keras_s(
    n: int, batch: int, classes: int, smoothing: float, size: float, weighted: bool, seed: int
):
    """Value and gradient of every slot are stock Keras's, with class weights as the sample weights of each class."""
    generator = np.random.default_rng(seed)
    weights = generator.uniform(0.1, 9, classes) if weighted else None
    numbers = generator.integers(classes, size=(n, batch))
    logits = size * generator.normal(size=(n, batch, classes))
    keras_loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, dtype="float64")

    def stock(labels: np.ndarray, predicted: tf.Tensor) -> tf.Tensor:
        of_samples = np.ones(batch) if weights is None else weights[labels.argmax(-1)]
        return keras_loss(labels, predicted, sample_weight=of_samples)

    settings = {} if weights is None else {"class_weights": weights.tolist()}
    ours = CategoricalCrossentropy(algebra(n), "float64", label_smoothing=smoothing, **settings)
    check(ours, stock, np.eye(classes)[numbers], logits)


@given(SIZES, st.integers(1, 5), st.integers(1, 4), SMOOTHING, LOGITS, st.booleans(), st.integers(0, 99))
def test_binary_crossentropy_is_keras_s(
    n: int, batch: int, findings: int, smoothing: float, size: float, weighted: bool, seed: int
):
    """Value and gradient of every slot are stock Keras's, with a sample weight of 0 for an unknown finding."""
    generator = np.random.default_rng(seed)
    weights = generator.uniform(0.1, 9, findings) if weighted else None
    states = generator.integers(3, size=(n, batch, findings))  # absent, present, unknown
    labels = np.concatenate([np.eye(2), np.zeros((1, 2))])[states]
    logits = size * generator.normal(size=(n, batch, findings))
    keras_loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing, dtype="float64")

    def stock(pairs: np.ndarray, predicted: tf.Tensor) -> tf.Tensor:
        present = pairs[..., 1]
        of_samples = pairs.sum(-1) * (1.0 if weights is None else np.where(present > 0, weights, 1.0))
        return keras_loss(present[..., None], predicted[..., None], sample_weight=of_samples)

    settings = {} if weights is None else {"positive_weights": weights.tolist()}
    ours = BinaryCrossentropy(algebra(n), "float64", label_smoothing=smoothing, **settings)
    check(ours, stock, labels, logits)


@pytest.mark.parametrize("weights", [None, (5.0,)])
def test_an_unknown_finding_adds_no_loss(weights: tuple[float, ...] | None):
    """A finding with labels (0, 0) has no loss and no gradient, whatever its logit, smoothed or not."""
    loss = BinaryCrossentropy(algebra(1), "float64", label_smoothing=0.2, positive_weights=weights)
    value, gradient = by_slot(loss, np.zeros((1, 2, 1, 2)), np.array([[[7.0], [-3.0]]]))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros((1, 2, 1)))


@pytest.mark.parametrize("make", [CategoricalCrossentropy, BinaryCrossentropy])
def test_a_huge_decoy_label_does_not_change_the_message_s_gradient(make: Callable[..., EncryptedLoss]):
    """With decoy labels of 1e9 the message's gradient is the one with ordinary decoys, and the decoys' is bounded."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2, 6, 3))
    labels = np.eye(3)[generator.integers(3, size=(2, 6))]
    if make is BinaryCrossentropy:
        labels = np.stack([1 - labels, labels], axis=-1)
    huge = labels * np.array([1.0, 1e9]).reshape(2, *(1,) * (labels.ndim - 1))
    (_, expected), (_, driven) = (by_slot(make(algebra(2), "float64"), y, logits) for y in (labels, huge))
    # rows of labels round at the decoy's size: 1e9 times 1e-16
    np.testing.assert_allclose(driven[0], expected[0], rtol=0, atol=1e-6)
    assert np.abs(driven[1]).max() < 1.0


def losses() -> Sequence[tuple[Callable[..., EncryptedLoss], dict[str, Any]]]:
    return (
        (CategoricalCrossentropy, {"class_weights": [1.0, 2.5], "label_smoothing": 0.1}),
        (BinaryCrossentropy, {"positive_weights": [3.0]}),
    )


@pytest.mark.parametrize(("make", "given"), losses())
def test_a_configuration_names_the_domain_and_contains_no_key(
    make: Callable[..., EncryptedLoss], given: dict[str, Any]
):
    """A loss is made from its configuration under the key of its domain only."""
    of = algebra(2)
    config = keras.losses.serialize(make(of, "float64", **given))
    with key_scope.under(of):
        again = keras.losses.deserialize(config)
    assert keras.losses.serialize(again) == config
    assert config["config"]["domain"] == of.domain
    assert not any(isinstance(value, Algebra | np.ndarray) for value in config["config"].values())
    with pytest.raises(KeyFileError, match="needs the evaluation key"):
        make.from_config(config["config"])
    with key_scope.under(algebra(2, epoch=2)), pytest.raises(DomainMismatchError, match="belongs to domain"):
        make.from_config(config["config"])


def test_invalid_settings_are_rejected():
    """Smoothing or weights out of range, and a wrong number of weights, raise ConfigError."""
    of = algebra(2)
    with pytest.raises(ConfigError, match="label_smoothing must be at least 0 and below 1, got 1.0"):
        CategoricalCrossentropy(of, "float64", label_smoothing=1.0)
    with pytest.raises(ConfigError, match="class_weights must be positive"):
        CategoricalCrossentropy(of, "float64", class_weights=(1.0, 0.0))
    with pytest.raises(ConfigError, match="positive_weights must be positive"):
        BinaryCrossentropy(of, "float64", positive_weights=(float("nan"),))
    loss = CategoricalCrossentropy(of, "float64", class_weights=(1.0, 2.0, 3.0))
    with pytest.raises(ConfigError, match="3 weights for labels of 2"):
        loss(*[tf.constant(rows_of(of, np.ones((2, 4, 2))))] * 2)
