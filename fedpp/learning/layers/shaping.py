"""Shaping layers: rows to component tensors and back, folding of frames, flattening, reshaping."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Ciphertext, Tensor
from fedpp.errors import ConfigError, ModelError
from fedpp.learning.layers.encrypted_layer import EncryptedLayer, LinearMap, Shape, at_least_one


@keras.saving.register_keras_serializable(package="fedpp")
class FromRows(EncryptedLayer):
    """Convert rows `[..., n]` to n tensors `[...]`."""

    def build(self, shape: Shape) -> None:
        """Check that the last axis is that of the slots."""
        if shape[-1] != self.algebra.n:
            raise ModelError(f"layer {self.name} takes rows [..., {self.algebra.n}], got shape {shape}")

    def call(self, rows: Tensor) -> Ciphertext:
        """Return the ciphertext of the rows."""
        return self.algebra.from_rows(rows)


@keras.saving.register_keras_serializable(package="fedpp")
class ToRows(EncryptedLayer):
    """Convert n tensors `[...]` to rows `[..., n]`."""

    def call(self, x: Ciphertext) -> Tensor:
        """Return the row form."""
        return ops.stack(self.algebra.to_rows(tuple(x)), axis=-1)


@keras.saving.register_keras_serializable(package="fedpp")
class FoldFrames(LinearMap):
    """Fold the frames into the batch: `[batch, frames, ...]` to `[batch * frames, ...]`.

    The following layers process single frames, in a third of the time of `keras.layers.TimeDistributed`.
    """

    def build(self, shapes: Sequence[Shape]) -> None:
        """Check that a frame's size is known."""
        shape = self.plain_shape(shapes)
        self.fixed(shape, *range(2, len(shape)))

    def part(self, part: Tensor) -> Tensor:
        """Return the frames of one tensor, one after the other."""
        return ops.reshape(part, (-1, *part.shape[2:]))


@keras.saving.register_keras_serializable(package="fedpp")
class UnfoldFrames(LinearMap):
    """Undo `FoldFrames`: `[batch * frames, ...]` to `[batch, frames, ...]`."""

    settings = ("frames",)

    def __init__(self, algebra: Algebra, frames: int, **keywords: Any) -> None:
        super().__init__(algebra, **keywords)
        self.frames = at_least_one(frames, f"layer {self.name}: frames")

    def build(self, shapes: Sequence[Shape]) -> None:
        """Check that a frame's size is known."""
        shape = self.plain_shape(shapes)
        self.fixed(shape, *range(1, len(shape)))

    def part(self, part: Tensor) -> Tensor:
        """Return the sequences of one tensor."""
        return ops.reshape(part, (-1, self.frames, *part.shape[1:]))


@keras.saving.register_keras_serializable(package="fedpp")
class Flatten(LinearMap):
    """`keras.layers.Flatten` on ciphertext: `[batch, ...]` to `[batch, features]`."""

    def build(self, shapes: Sequence[Shape]) -> None:
        """Check that the number of features is known, which a dense layer needs."""
        shape = self.plain_shape(shapes)
        self.fixed(shape, *range(1, len(shape)))

    def part(self, part: Tensor) -> Tensor:
        """Return one flattened tensor."""
        return ops.reshape(part, (-1, math.prod(part.shape[1:])))


@keras.saving.register_keras_serializable(package="fedpp")
class Reshape(LinearMap):
    """`keras.layers.Reshape` on ciphertext: the batch axis stays, and one size may be -1."""

    settings = ("target_shape",)

    def __init__(self, algebra: Algebra, target_shape: Sequence[int], **keywords: Any) -> None:
        """Take the shape without the batch."""
        super().__init__(algebra, **keywords)
        self.target_shape = tuple(target_shape)
        if self.target_shape.count(-1) > 1 or any(size < 1 and size != -1 for size in self.target_shape):
            raise ConfigError(
                f"layer {self.name}: target_shape must be sizes of at least 1 and at most one -1, got {target_shape}"
            )

    def build(self, shapes: Sequence[Shape]) -> None:
        """Check that input and output have the same number of values."""
        shape = self.plain_shape(shapes)
        size, wanted = math.prod(self.fixed(shape, *range(1, len(shape)))), math.prod(self._resolved(shape))
        if size != wanted:
            raise ModelError(f"layer {self.name} cannot reshape {shape[1:]} to {self.target_shape}")

    def part(self, part: Tensor) -> Tensor:
        """Return one tensor in the new shape."""
        return ops.reshape(part, (-1, *self._resolved(part.shape)))

    def _resolved(self, shape: Shape) -> list[int]:
        sizes = [size for size in self.target_shape if size != -1]
        left = math.prod(shape[1:]) // math.prod(sizes)  # type: ignore[arg-type]
        return [left if size == -1 else size for size in self.target_shape]
