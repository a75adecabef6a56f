"""Pooling layers: averages are linear and act on the ciphertext, maxima are functions of the slots."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Ciphertext, Tensor
from fedpp.learning.layers.encrypted_layer import EncryptedLayer, LinearMap, Shape, SlotFunction, check_padding_mask
from fedpp.learning.layers.windows import known_padding, pair, positions


class _Pooling(EncryptedLayer):
    """Pooling of windows: `[batch, height, width, channels]` to `[batch, height', width', channels]`."""

    axes = "batch height width channels"
    settings = ("pool_size", "strides", "padding")

    def __init__(
        self,
        algebra: Algebra,
        pool_size: int | Sequence[int] = 2,
        strides: int | Sequence[int] | None = None,
        padding: str = "valid",
        **keywords: Any,
    ) -> None:
        """Take the settings of the stock layer; without strides, windows do not overlap."""
        super().__init__(algebra, **keywords)
        self.pool_size = pair(pool_size, f"layer {self.name}: pool_size")
        self.strides = self.pool_size if strides is None else pair(strides, f"layer {self.name}: strides")
        self.padding = known_padding(padding, self.name)

    def build(self, shapes: Sequence[Shape]) -> None:
        """Check that a window fits into a frame."""
        frame = self.plain_shape(shapes)[1:3]
        positions(frame, self.pool_size, self.strides, self.padding, self.name)


class _GlobalPooling(EncryptedLayer):
    """Pooling of whole frames: `[batch, height, width, channels]` to `[batch, channels]`."""

    axes = "batch height width channels"
    settings = ("keepdims",)

    def __init__(self, algebra: Algebra, *, keepdims: bool = False, **keywords: Any) -> None:
        super().__init__(algebra, **keywords)
        self.keepdims = keepdims


@keras.saving.register_keras_serializable(package="fedpp")
class AveragePooling2D(_Pooling, LinearMap):
    """`keras.layers.AveragePooling2D` on ciphertext."""

    def part(self, part: Tensor) -> Tensor:
        """Return the averages of one tensor."""
        return ops.average_pool(part, self.pool_size, self.strides, self.padding)


@keras.saving.register_keras_serializable(package="fedpp")
class MaxPooling2D(_Pooling, SlotFunction):
    """`keras.layers.MaxPooling2D` on ciphertext. In `Conv2D` (`pool_size`) the same pooling costs less."""

    def slot(self, slot: Tensor) -> Tensor:
        """Return the maxima of one slot."""
        return ops.max_pool(slot, self.pool_size, self.strides, self.padding)


@keras.saving.register_keras_serializable(package="fedpp")
class GlobalAveragePooling2D(_GlobalPooling, LinearMap):
    """`keras.layers.GlobalAveragePooling2D` on ciphertext."""

    def part(self, part: Tensor) -> Tensor:
        """Return the averages of one tensor."""
        return ops.mean(part, axis=(1, 2), keepdims=self.keepdims)


@keras.saving.register_keras_serializable(package="fedpp")
class GlobalMaxPooling2D(_GlobalPooling, SlotFunction):
    """`keras.layers.GlobalMaxPooling2D` on ciphertext."""

    def slot(self, slot: Tensor) -> Tensor:
        """Return the maxima of one slot."""
        return ops.max(slot, axis=(1, 2), keepdims=self.keepdims)


@keras.saving.register_keras_serializable(package="fedpp")
class GlobalAveragePooling1D(EncryptedLayer):
    """`keras.layers.GlobalAveragePooling1D` on ciphertext: `[batch, steps, features]` to `[batch, features]`."""

    axes = "batch steps features"

    def build(self, x_shape: Sequence[Shape], valid_shape: Shape | None = None) -> None:
        """Check the shape of the padding mask, if there is one."""
        shape = self.plain_shape(x_shape)
        if valid_shape is not None:
            check_padding_mask(self.name, valid_shape, shape[:2])

    def call(self, x: Ciphertext, valid: Tensor | None = None) -> Ciphertext:
        """Return the mean of all steps, or of those where `valid [batch, steps]` is True."""
        if valid is None:
            return tuple(ops.mean(part, axis=1) for part in x)
        check_padding_mask(self.name, valid.shape, x[0].shape[:2])
        padding_mask = ops.cast(valid, x[0].dtype)[..., None]
        count = ops.sum(padding_mask, axis=1)
        return tuple(ops.sum(part * padding_mask, axis=1) / count for part in x)
