"""Voting layer: formulas in NumPy, on plaintext and on ciphertext."""

from itertools import chain
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from stock_layers import algebra

from fedpp.errors import ConfigError, ModelError
from fedpp.learning import layers
from fedpp.learning.layers.voting import EncryptedVote, Vote

Values = NDArray[np.floating]
GENERATOR = np.random.default_rng(5)
BATCH, FRAMES, FEATURES, STATES, CLASSES = 3, 4, 5, 6, 2
X, H = GENERATOR.normal(size=(3, BATCH, FRAMES, FEATURES)), GENERATOR.normal(size=(3, BATCH, FRAMES, STATES))
VALID = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
N = pytest.mark.parametrize("n", [2, 3])
WITH_STATES = pytest.mark.parametrize("with_states", [False, True])


def weights(*, with_states: bool, seed: int = 0) -> list[Values]:
    generator = np.random.default_rng(seed)
    shapes = [(FEATURES, CLASSES), (CLASSES,)]
    shapes += [(STATES, CLASSES), (CLASSES,), (1,)] if with_states else []
    return [generator.normal(size=shape) for shape in [*shapes, (FEATURES + STATES * with_states, 1)]]


def by_hand(x: Values, h: Values | None, w: list[Values]) -> Values:
    """Return the logits of the module's three formulas, sequence by sequence and frame by frame."""
    logits = np.zeros((len(x), CLASSES))
    for i, valid in enumerate(VALID):
        scores, exponents = [], []
        for t in np.flatnonzero(valid):
            score, given = x[i, t] @ w[0] + w[1], x[i, t]
            if h is not None:
                share = 1 / (1 + np.exp(-w[4]))
                score = share * score + (1 - share) * (h[i, t] @ w[2] + w[3])
                given = np.concatenate([given, h[i, t]])
            scores.append(score)
            exponents.append(np.exp(given @ w[-1]))
        logits[i] = sum(e * s for e, s in zip(exponents, scores, strict=True)) / sum(exponents)
    return logits


@WITH_STATES
def test_the_plaintext_vote_equals_the_formulas(with_states: bool):
    """Scores, their mix and the votes of valid frames are those of the module's formulas."""
    layer = Vote(CLASSES, dtype="float64")
    given = (X[0], H[0]) if with_states else (X[0],)
    layer(*given, valid=VALID)
    layer.set_weights(weights(with_states=with_states))
    expected = by_hand(X[0], H[0] if with_states else None, weights(with_states=with_states))
    np.testing.assert_allclose(layer(*given, valid=VALID), expected, atol=1e-13)


@N
@WITH_STATES
def test_the_encrypted_vote_equals_the_plaintext_vote_on_every_slot(n: int, with_states: bool):
    """Logits, and gradients by inputs and weights, decrypt to the plaintext layer's, for message and decoys."""
    a = algebra(n)
    inputs = [X[:n], H[:n]][: 1 + with_states]
    drawn = [weights(with_states=with_states, seed=k) for k in range(n)]
    ours, theirs = EncryptedVote(a, CLASSES, dtype="float64"), Vote(CLASSES, dtype="float64")
    encrypted = [[tf.Variable(part) for part in a.from_slots(tuple(slots))] for slots in inputs]
    ours(*map(tuple, encrypted), valid=VALID)
    ours.set_weights([part for slots in zip(*drawn, strict=True) for part in a.from_slots(slots)])
    variables = [v.value for v in ours.trainable_variables]
    with tf.GradientTape() as tape:
        logits = a.to_slots(ours(*map(tuple, encrypted), valid=VALID))
        loss = sum(tf.reduce_sum(tf.sin(3 * z)) for z in logits)
    raw = tape.gradient(loss, [*chain(*encrypted), *variables])
    gradients = [a.to_slots(a.gradient(tuple(raw[i : i + n]))) for i in range(0, len(raw), n)]
    for k in range(n):
        plain = [tf.Variable(slots[k]) for slots in inputs]
        theirs(*plain, valid=VALID)
        theirs.set_weights(drawn[k])
        with tf.GradientTape() as tape:
            z = theirs(*plain, valid=VALID)
            loss = tf.reduce_sum(tf.sin(3 * z))
        np.testing.assert_allclose(logits[k], z, atol=1e-12)
        expected = tape.gradient(loss, [*plain, *(v.value for v in theirs.trainable_variables)])
        for mine, stock in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(mine[k], stock, atol=1e-11)


def test_a_padded_frame_has_no_vote():
    """Huge values at a padded frame change no bit of a logit; those at a valid frame do."""
    layer = Vote(CLASSES, dtype="float64")
    layer(X[0], H[0], valid=VALID)
    layer.set_weights(weights(with_states=True))
    logits = layer(X[0], H[0], valid=VALID)
    padded = [np.where(VALID[..., None], values, 1e6) for values in (X[0], H[0])]
    np.testing.assert_array_equal(layer(*padded, valid=VALID), logits)
    moved = X[0] + VALID[..., None]
    assert np.abs(layer(moved, H[0], valid=VALID) - logits).min() > 1e-3


@WITH_STATES
def test_a_saved_vote_is_loaded_under_the_key(with_states: bool, tmp_path: Path):
    """Both votes give the same logits after a `.keras` file; the encrypted one needs the key."""
    a = algebra(2)
    sizes = [FEATURES, STATES][: 1 + with_states]
    valid = keras.Input((FRAMES,), dtype="bool")
    plain = [keras.Input((FRAMES, size), dtype="float64") for size in sizes]
    rows = [keras.Input((FRAMES, size, 2), dtype="float64") for size in sizes]
    ciphertexts = [layers.FromRows(a, dtype="float64")(values) for values in rows]
    z = layers.ToRows(a, dtype="float64")(EncryptedVote(a, CLASSES, dtype="float64")(*ciphertexts, valid=valid))
    models = {
        "plain": keras.Model([*plain, valid], Vote(CLASSES, dtype="float64")(*plain, valid=valid)),
        "encrypted": keras.Model([*rows, valid], z),
    }
    for name, model in models.items():
        model.set_weights([GENERATOR.normal(size=w.shape) for w in model.weights])
        model.save(tmp_path / f"{name}.keras")
        with layers.under(a):
            loaded = keras.models.load_model(tmp_path / f"{name}.keras")
        given = [GENERATOR.normal(size=(BATCH, *x.shape[1:])) for x in model.inputs[:-1]]
        np.testing.assert_allclose(loaded([*given, VALID]), model([*given, VALID]), atol=1e-12)


@pytest.mark.parametrize(
    ("shapes", "padding_mask", "message"),
    [
        ([(BATCH, FRAMES, FEATURES)] * 3, (BATCH, FRAMES), "a tuple of 2 tensors"),
        ([(BATCH, FEATURES)] * 2, (BATCH, FRAMES), r"\[batch, frames, features\]"),
        ([(BATCH, FRAMES, FEATURES)] * 2, (BATCH, 1), r"a padding mask of shape \(3, 4\), got \(3, 1\)"),
    ],
)
def test_invalid_inputs_of_the_vote_are_rejected(
    shapes: list[tuple[int, ...]], padding_mask: tuple[int, ...], message: str
):
    """Ciphertexts of another n or rank, and a padding mask of other frames, are rejected in one line."""
    vote = EncryptedVote(algebra(2), CLASSES, dtype="float64")
    with pytest.raises(ModelError, match=message):
        vote(tuple(map(np.zeros, shapes)), valid=np.ones(padding_mask, bool))


def test_a_vote_needs_classes_and_a_state_for_each_frame():
    """No classes, and states of other frames than the features', are rejected; so is a later mask of other frames."""
    with pytest.raises(ConfigError, match="classes must be .* at least 1, got 0"):
        EncryptedVote(algebra(2), 0)
    vote, x = EncryptedVote(algebra(2), CLASSES, dtype="float64"), tuple(X[:2])
    with pytest.raises(ModelError, match="a state for each frame"):
        vote(x, tuple(H[:2, :, :1]), valid=VALID)
    vote = EncryptedVote(algebra(2), CLASSES, dtype="float64")
    vote(x, valid=VALID)
    with pytest.raises(ModelError, match="mask of shape"):
        vote(x, valid=VALID[:, :1])
