"""Merging layers: linear maps of several ciphertexts, applied to each tensor as on plaintext."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Ciphertext
from fedpp.errors import ModelError
from fedpp.learning.layers.encrypted_layer import EncryptedLayer, Shape


class _Merge(EncryptedLayer):
    """A layer of a list of ciphertexts, as Keras's merging layers are."""

    def build(self, shapes: Sequence[Sequence[Shape]]) -> None:
        """Check that the ciphertexts have matching shapes."""
        plain = [self.plain_shape(part) for part in shapes]
        if len({len(shape) for shape in plain}) != 1 or len({self.common(shape) for shape in plain}) != 1:
            raise ModelError(f"layer {self.name} cannot merge shapes {', '.join(map(str, plain))}")

    def common(self, shape: Shape) -> Shape:
        """Return the part of a shape that must be the same for all inputs."""
        return shape


@keras.saving.register_keras_serializable(package="fedpp")
class Add(_Merge):
    """`keras.layers.Add` on ciphertext: the sum of a list of ciphertexts of one shape."""

    def call(self, xs: Sequence[Ciphertext]) -> Ciphertext:
        """Return the sum."""
        total = tuple(xs[0])
        for x in xs[1:]:
            total = self.algebra.add(total, x)
        return total


@keras.saving.register_keras_serializable(package="fedpp")
class Concatenate(_Merge):
    """`keras.layers.Concatenate` on ciphertext: a list of ciphertexts along an axis."""

    settings = ("axis",)

    def __init__(self, algebra: Algebra, axis: int = -1, **keywords: Any) -> None:
        super().__init__(algebra, **keywords)
        self.axis = axis

    def common(self, shape: Shape) -> Shape:
        """Return the shape without the axis of concatenation."""
        if not -len(shape) <= self.axis < len(shape):
            raise ModelError(f"layer {self.name}: shape {shape} has no axis {self.axis}")
        axis = self.axis % len(shape)
        return (*shape[:axis], *shape[axis + 1 :])

    def call(self, xs: Sequence[Ciphertext]) -> Ciphertext:
        """Return the concatenation."""
        return tuple(ops.concatenate(parts, axis=self.axis) for parts in zip(*xs, strict=True))
