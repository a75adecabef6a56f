"""Base classes of layers on ciphertext: encrypted weights, configurations without the key, saving as rows."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import keras
import numpy as np

from fedpp.cipher.components import Algebra, Ciphertext, Tensor
from fedpp.errors import ConfigError, ModelError
from fedpp.learning import key_scope

Shape = tuple[int | None, ...]


class EncryptedLayer(keras.Layer):  # type: ignore[misc]
    """Layer under one evaluation key.

    Each encrypted weight is n consecutive Keras variables, in components. Configurations name the key's domain only.
    Files contain the weights as rows, which reveal the key: a public 1, such as gamma, is the sum of the rows of R^-1,
    and Adam's moments in a compiled model's file reveal all of R. Protect a file like the key
    (docs/explanation/threats.md).
    """

    axes: ClassVar[str] = ""  # names of the input tensors' axes, if their number is fixed
    settings: ClassVar[tuple[str, ...]] = ()  # names of constructor arguments, which are attributes, too

    def __init__(
        self, algebra: Algebra, *, trainable: bool = True, dtype: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(trainable=trainable, dtype=dtype, name=name)
        self.algebra = algebra

    def build(self, shapes: Any) -> None:
        """Check that the input is a ciphertext with the axes of this layer."""
        self.plain_shape(shapes)

    def add_ciphertext(
        self, name: str, shape: tuple[int, ...], *, value: float = 0.0, trainable: bool = True
    ) -> Ciphertext:
        """Add one encrypted weight of this plaintext shape; all its values start at one public value."""
        return tuple(
            self.add_weight(
                name=f"{name}_{k}", shape=shape, initializer=keras.initializers.Constant(part), trainable=trainable
            )
            for k, part in enumerate(self.algebra.public(value))
        )

    def plain_shape(self, shapes: Any) -> Shape:
        """Return the plaintext's shape; raise `ModelError` unless there are n tensors of one shape with these axes."""
        parts = {tuple(shape) for shape in shapes if isinstance(shape, tuple | list)}
        expected = len(self.axes.split())
        if len(shapes) != self.algebra.n or len(parts) != 1 or expected not in {0, len(next(iter(parts)))}:
            axes = f" [{', '.join(self.axes.split())}]" if self.axes else ""
            raise ModelError(
                f"layer {self.name} takes a ciphertext, a tuple of {self.algebra.n} tensors{axes} of one shape, "
                f"got {shapes}"
            )
        return parts.pop()

    def fixed(self, shape: Shape, *axes: int) -> list[int]:
        """Return the sizes of these axes; raise `ModelError` if one is not known when the layer is built."""
        sizes = [size for size in (shape[axis] for axis in axes) if size is not None]
        if len(sizes) != len(axes):
            raise ModelError(f"layer {self.name} needs a fixed size of axes {axes}, got shape {shape}")
        return sizes

    def get_config(self) -> dict[str, Any]:
        """Return the settings and the names of the algebra, without the key."""
        own = {name: getattr(self, name) for name in self.settings}
        return {**super().get_config(), **key_scope.describe(self.algebra), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the layer from its settings, in the algebra of the scope (`fedpp.learning.key_scope`)."""
        settings = dict(config)
        return cls(key_scope.current(settings), **settings)

    def save_own_variables(self, store: Any) -> None:
        """Write each weight as rows `[*shape, n]`, so that files have one form of ciphertext only."""
        for i, weight in enumerate(self._own_ciphertexts()):
            parts = tuple(np.asarray(variable, np.float64) for variable in weight)
            store[str(i)] = np.stack(self.algebra.to_rows(parts), axis=-1).astype(weight[0].dtype)

    def load_own_variables(self, store: Any) -> None:
        """Set each weight from its rows; raise `ModelError` if they do not fit this layer."""
        weights = self._own_ciphertexts()
        rows = [np.asarray(store[key], np.float64) for key in sorted(store.keys(), key=int)]
        expected = [(*weight[0].shape, self.algebra.n) for weight in weights]
        if [row.shape for row in rows] != expected:
            raise ModelError(
                f"layer {self.name} has weights of shapes {expected}, the file {[row.shape for row in rows]}"
            )
        for weight, row in zip(weights, rows, strict=True):
            for variable, part in zip(weight, self.algebra.from_rows(row), strict=True):
                variable.assign(part)

    def _own_ciphertexts(self) -> list[Ciphertext]:
        own, n = [*self._trainable_variables, *self._non_trainable_variables], self.algebra.n
        return [tuple(own[i : i + n]) for i in range(0, len(own), n)]


class LinearMap(EncryptedLayer):
    """Linear map without weights, applied to each tensor of the ciphertext as on plaintext."""

    def part(self, part: Tensor) -> Tensor:
        """Return one mapped tensor."""
        raise NotImplementedError

    def call(self, x: Ciphertext) -> Ciphertext:
        """Return the mapped ciphertext."""
        return tuple(self.part(part) for part in x)


class SlotFunction(EncryptedLayer):
    """Nonlinear function, applied to each slot as on plaintext."""

    def slot(self, slot: Tensor) -> Tensor:
        """Return the function's value of one slot."""
        raise NotImplementedError

    def call(self, x: Ciphertext) -> Ciphertext:
        """Return `f(x)`."""
        return self.algebra.apply(self.slot, tuple(x))


def at_least_one(value: int, setting: str) -> int:
    """Return the value; raise `ConfigError` if it is not a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{setting} must be a whole number of at least 1, got {value!r}")
    return value


def refusal(message: str) -> ModelError:
    """Return an error for an invalid call, marked so that Keras does not add a list of all arguments to it."""
    error = ModelError(message)
    error._keras_call_info_injected = True  # type: ignore[attr-defined]  # noqa: SLF001
    return error


def check_padding_mask(name: str, shape: Sequence[int | None], leading: Sequence[int | None]) -> None:
    """Raise `ModelError` unless a padding mask has this shape, as far as the sizes are known."""
    sizes = tuple(shape)
    if len(sizes) != len(leading) or any(
        None not in {size, wanted} and size != wanted for size, wanted in zip(sizes, leading, strict=False)
    ):
        raise refusal(f"layer {name} takes a padding mask of shape {tuple(leading)}, got {sizes}")
