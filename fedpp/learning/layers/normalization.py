"""Normalization layers: mean and variance of each slot, as on plaintext."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Ciphertext, Slots, Tensor
from fedpp.errors import ConfigError, ModelError
from fedpp.learning.layers.encrypted_layer import EncryptedLayer, Shape, check_padding_mask


class _Normalization(EncryptedLayer):
    """Scale and shift after a normalization; both are encrypted weights."""

    def __init__(
        self, algebra: Algebra, *, epsilon: float = 1e-3, center: bool = True, scale: bool = True, **keywords: Any
    ) -> None:
        super().__init__(algebra, **keywords)
        if not epsilon > 0:
            raise ConfigError(f"layer {self.name}: epsilon must be above 0, got {epsilon}")
        self.epsilon, self.center, self.scale = epsilon, center, scale

    def sizes(self, shapes: Sequence[Shape], axes: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes of these axes of the plaintext."""
        shape = self.plain_shape(shapes)
        if any(not -len(shape) <= axis < len(shape) for axis in axes):
            raise ModelError(f"layer {self.name}: shape {shape} has no axis {tuple(axes)}")
        return tuple(self.fixed(shape, *axes))

    def build_weights(self, shape: tuple[int, ...]) -> None:
        """Add gamma, which starts at one, and beta."""
        self.gamma = self.add_ciphertext("gamma", shape, value=1.0) if self.scale else None
        self.beta = self.add_ciphertext("beta", shape) if self.center else None

    def slots_of(self, weight: Ciphertext | None) -> Slots:
        """Return the slots of a weight, or Nones without one."""
        return (None,) * self.algebra.n if weight is None else self.algebra.to_slots(weight)


@keras.saving.register_keras_serializable(package="fedpp")
class BatchNormalization(_Normalization):
    """`keras.layers.BatchNormalization` on ciphertext; the moving statistics are encrypted weights too.

    A padding mask as second argument, bool `[batch]` or with more of the leading axes, excludes padding from the
    statistics of a batch.
    """

    settings = ("axis", "momentum", "epsilon", "center", "scale")

    def __init__(self, algebra: Algebra, axis: int = -1, momentum: float = 0.99, **keywords: Any) -> None:
        super().__init__(algebra, **keywords)
        if not 0 <= momentum <= 1:
            raise ConfigError(f"layer {self.name}: momentum must be between 0 and 1, got {momentum}")
        self.axis, self.momentum = axis, momentum

    def build(self, x_shape: Sequence[Shape], valid_shape: Shape | None = None) -> None:
        """Add gamma and beta, and the moving mean and variance, which are not trained."""
        sizes = self.sizes(x_shape, [self.axis])
        if valid_shape is not None:
            self._check_padding_mask(valid_shape, x_shape[0])
        self.build_weights(sizes)
        self.moving_mean = self.add_ciphertext("moving_mean", sizes, trainable=False)
        self.moving_variance = self.add_ciphertext("moving_variance", sizes, value=1.0, trainable=False)

    def call(self, x: Ciphertext, valid: Tensor | None = None, *, training: bool = False) -> Ciphertext:
        """Normalize by the batch's statistics in training, and by the moving ones otherwise."""
        slots = self.algebra.to_slots(tuple(x))
        if training and self.trainable:
            means, variances = zip(*(self._moments(slot, valid) for slot in slots), strict=True)
            self._move(self.moving_mean, means)
            self._move(self.moving_variance, variances)
        else:
            means = self.algebra.to_slots(self.moving_mean)
            # a slot's rounding error is that of the largest slot: a variance of zero must not become negative
            variances = tuple(ops.maximum(v, 0.0) for v in self.algebra.to_slots(self.moving_variance))
        weights = self.slots_of(self.gamma), self.slots_of(self.beta)
        return self.algebra.from_slots(tuple(map(self._normalized, slots, means, variances, *weights)))

    def _normalized(
        self, slot: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None
    ) -> Tensor:
        return ops.batch_normalization(slot, mean, variance, self.axis, beta, gamma, self.epsilon)

    def _move(self, moving: Ciphertext, slots: Slots) -> None:
        for variable, value in zip(moving, self.algebra.from_slots(slots), strict=True):
            variable.assign(variable * self.momentum + value * (1.0 - self.momentum))

    def _check_padding_mask(self, valid: Shape, shape: Shape) -> None:
        check_padding_mask(self.name, valid, shape[: max(1, min(len(valid), len(shape) - 1))])

    def _moments(self, slot: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and variance `[features]` of one slot without padding, in Keras's own arithmetic."""
        rank = len(slot.shape)
        axes = [axis for axis in range(rank) if axis != self.axis % rank]
        if valid is None:
            mean, variance = ops.moments(slot, axes)
            return mean, variance
        self._check_padding_mask(valid.shape, slot.shape)
        padding_mask = ops.cast(ops.reshape(valid, (*ops.shape(valid), *[1] * (rank - len(valid.shape)))), slot.dtype)
        weights = ops.broadcast_to(padding_mask, ops.shape(slot))
        count = ops.sum(weights, axes, keepdims=True) + keras.config.epsilon()
        mean = ops.sum(ops.where(weights > 0, slot, 0.0), axes, keepdims=True) / count
        variance = ops.sum(ops.where(weights > 0, ops.square(slot - mean), 0.0), axes, keepdims=True) / count
        return ops.squeeze(mean, axes), ops.squeeze(variance, axes)


@keras.saving.register_keras_serializable(package="fedpp")
class LayerNormalization(_Normalization):
    """`keras.layers.LayerNormalization` on ciphertext."""

    settings = ("axis", "epsilon", "center", "scale")

    def __init__(self, algebra: Algebra, axis: int | Sequence[int] = -1, **keywords: Any) -> None:
        super().__init__(algebra, **keywords)
        self.axis = axis if isinstance(axis, int) else tuple(axis)

    def build(self, shapes: Sequence[Shape]) -> None:
        """Add gamma and beta of the normalized axes."""
        self.build_weights(self.sizes(shapes, self._axes()))

    def call(self, x: Ciphertext) -> Ciphertext:
        """Normalize each example by its own statistics."""
        weights = self.slots_of(self.gamma), self.slots_of(self.beta)
        return self.algebra.from_slots(tuple(map(self._normalized, self.algebra.to_slots(tuple(x)), *weights)))

    def _normalized(self, slot: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        return ops.layer_normalization(slot, gamma, beta, self._axes(), self.epsilon)

    def _axes(self) -> list[int]:
        return [self.axis] if isinstance(self.axis, int) else sorted(self.axis)
