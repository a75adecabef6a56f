"""Weighted unit and sequence voting layer, on plaintext and on ciphertext.

The paper names such a layer without a definition; this definition is ours. Each frame t, a *unit*, is scored by its
features f_t and by the LSTM's state h_t::

    u_t = a (f_t S + s) + (1 - a) (h_t T + t),   a = sigmoid(mix)
    v   = softmax over the valid frames of [f_t h_t] q
    z   = sum_t v_t u_t

so the mix of the two scores and the weights of the votes are learned. A network without an LSTM scores by features
only. A padded frame has no vote and no effect.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Ciphertext, Tensor
from fedpp.errors import ModelError
from fedpp.learning.layers.encrypted_layer import EncryptedLayer, Shape, at_least_one, check_padding_mask

NO_VOTE = -1e9  # exponent of a padded frame: its weight is exactly zero


@keras.saving.register_keras_serializable(package="fedpp")
class Vote(keras.Layer):  # type: ignore[misc]
    """Voting layer on plaintext: features `[batch, frames, f]`, states `[batch, frames, h]` to `[batch, classes]`."""

    def __init__(self, classes: int, **keywords: Any) -> None:
        """Score this many classes; keywords are those of `keras.layers.Layer`."""
        super().__init__(**keywords)
        self.classes = classes

    def build(self, features_shape: tuple[int, ...], states_shape: tuple[int, ...] | None = None) -> None:
        """Add the weights in the order of `ModelSpec.weights`."""
        for name, shape in _weights(self.classes, features_shape[-1], states_shape[-1] if states_shape else 0):
            setattr(self, name, self.add_weight(name=name, shape=shape, initializer="zeros"))

    def call(self, features: Tensor, states: Tensor | None = None, *, valid: Tensor) -> Tensor:
        """Return the logits; `valid [batch, frames]` is False for padded frames."""
        scores = ops.matmul(features, self.spatial_kernel) + self.spatial_bias
        if states is not None:
            temporal = ops.matmul(states, self.temporal_kernel) + self.temporal_bias
            share = ops.sigmoid(self.mix)
            scores = share * scores + (1.0 - share) * temporal
            features = ops.concatenate([features, states], axis=-1)
        return _vote(scores, ops.matmul(features, self.attention), valid)

    def compute_output_shape(
        self, features_shape: tuple[int, ...], states_shape: tuple[int, ...] | None = None
    ) -> tuple[int | None, ...]:
        """Return `[batch, classes]`."""
        return (features_shape[0], self.classes)

    def get_config(self) -> dict[str, object]:
        """Return the settings."""
        return {**super().get_config(), "classes": self.classes}


@keras.saving.register_keras_serializable(package="fedpp")
class EncryptedVote(EncryptedLayer):
    """Voting layer on ciphertext: products in the algebra; sigmoid, softmax and vote on the slots."""

    axes = "batch frames features"
    settings = ("classes",)

    def __init__(self, algebra: Algebra, classes: int, **keywords: Any) -> None:
        super().__init__(algebra, **keywords)
        self.classes = at_least_one(classes, f"layer {self.name}: classes")

    def build(self, features_shape: Sequence[Shape], states_shape: Sequence[Shape] | None = None) -> None:
        """Add the weights in the order of `ModelSpec.weights`."""
        given = [self.plain_shape(shape) for shape in (features_shape, states_shape) if shape is not None]
        for shape in given[1:]:
            if shape[1] != given[0][1]:
                raise ModelError(f"layer {self.name} needs a state for each frame, got shapes {given[0]} and {shape}")
        sizes = [self.fixed(shape, 2)[0] for shape in given]
        for name, shape in _weights(self.classes, *sizes):
            setattr(self, name, self.add_ciphertext(name, shape))

    def call(self, features: Ciphertext, states: Ciphertext | None = None, *, valid: Tensor) -> Ciphertext:
        """Return the logits, n tensors `[batch, classes]`; `valid [batch, frames]` is False for padded frames."""
        check_padding_mask(self.name, valid.shape, features[0].shape[:2])
        scores = self._scores(tuple(features), self.spatial_kernel, self.spatial_bias)
        if states is not None:
            temporal = self._scores(tuple(states), self.temporal_kernel, self.temporal_bias)
            shares = [ops.sigmoid(slot) for slot in self.algebra.to_slots(self.mix)]
            triples = zip(shares, scores, temporal, strict=True)
            scores = [share * score + (1.0 - share) * other for share, score, other in triples]
            pairs = zip(features, states, strict=True)
            features = tuple(ops.concatenate(pair, axis=-1) for pair in pairs)
        calls = self.algebra.product_slots(tuple(features), self.attention, ops.matmul)
        votes = zip(scores, calls, strict=True)
        return self.algebra.from_slots(tuple(_vote(score, call, valid) for score, call in votes))

    def _scores(self, x: Ciphertext, kernel: Ciphertext, bias: Ciphertext) -> list[Tensor]:
        products = self.algebra.product_slots(x, kernel, ops.matmul)
        return [slot + more for slot, more in zip(products, self.algebra.to_slots(bias), strict=True)]

    def compute_output_shape(
        self, features_shape: tuple[tuple[int, ...], ...], states_shape: tuple[tuple[int, ...], ...] | None = None
    ) -> tuple[tuple[int, ...], ...]:
        """Return n times `[batch, classes]`."""
        return tuple((shape[0], self.classes) for shape in features_shape)


def _weights(classes: int, features: int, states: int = 0) -> list[tuple[str, tuple[int, ...]]]:
    weights: list[tuple[str, tuple[int, ...]]] = [("spatial_kernel", (features, classes)), ("spatial_bias", (classes,))]
    if states:
        weights += [("temporal_kernel", (states, classes)), ("temporal_bias", (classes,)), ("mix", (1,))]
    return [*weights, ("attention", (features + states, 1))]


def _vote(scores: Tensor, calls: Tensor, valid: Tensor) -> Tensor:
    """Return `sum_t softmax(calls)_t scores_t` of one slot; scores `[batch, frames, classes]`, calls of one class."""
    exponents = ops.where(valid[..., None], calls, NO_VOTE)
    return ops.sum(ops.softmax(exponents, axis=1) * scores, axis=1)
