"""Keras layers that compute on ciphertext.

Between `FromRows` and `ToRows` a tensor is a tuple of n ordinary tensors of the plaintext's shape
(`fedpp.cipher.components`). A linear layer with an encrypted kernel is a few ordinary kernels; a function is
a stock Keras layer on the slots. Each encrypted weight is n Keras variables in a row, so that the variables of
a model, n at a time, are its ciphertext weights. They start at zero: set them from a vault's rows.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Ciphertext, Tensor


class EncryptedLayer(keras.Layer):  # type: ignore[misc]
    """A layer under one key; it is rebuilt from its network's specification and never saved with the key."""

    def __init__(self, algebra: Algebra, *, dtype: str | None = None, name: str | None = None) -> None:
        """Compute in this algebra."""
        super().__init__(dtype=dtype, name=name)
        self.algebra = algebra

    def add_ciphertext(self, name: str, shape: tuple[int, ...]) -> Ciphertext:
        """Add one encrypted weight of this plaintext shape."""
        return tuple(
            self.add_weight(name=f"{name}_{k}", shape=shape, initializer="zeros") for k in range(self.algebra.n)
        )

    def get_config(self) -> NoReturn:
        """Refuse: a configuration would have to hold the key."""
        raise TypeError("an encrypted layer is not serialised: build it again from its NetworkSpec and key")


class FromRows(EncryptedLayer):
    """Take rows `[..., n]` to n tensors `[...]`."""

    def call(self, rows: Tensor) -> Ciphertext:
        """Return the ciphertext of the rows."""
        return self.algebra.from_rows(rows)


class ToRows(EncryptedLayer):
    """Take n tensors `[...]` to rows `[..., n]`."""

    def call(self, x: Ciphertext) -> Tensor:
        """Return the row form."""
        return ops.stack(self.algebra.to_rows(tuple(x)), axis=-1)


class Componentwise(EncryptedLayer):
    """Apply a linear map without weights (reshape, flatten, concatenation) to each tensor of the ciphertext."""

    def __init__(self, algebra: Algebra, function: Callable[[Tensor], Tensor], **keywords: Any) -> None:
        """Hold the map; it must be linear."""
        super().__init__(algebra, **keywords)
        self.function = function

    def call(self, x: Ciphertext) -> Ciphertext:
        """Return the mapped ciphertext."""
        return tuple(self.function(part) for part in x)


class Flatten(Componentwise):
    """`keras.layers.Flatten` on ciphertext."""

    def __init__(self, algebra: Algebra, **keywords: Any) -> None:
        """Take no settings of its own."""
        super().__init__(algebra, lambda x: ops.reshape(x, (ops.shape(x)[0], -1)), **keywords)

    def compute_output_shape(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        """Keep the number of features static, which a dense layer needs."""
        flat = keras.layers.Flatten()
        return tuple(flat.compute_output_shape(shape) for shape in shapes)


class Slotwise(EncryptedLayer):
    """Apply stock Keras layers without weights, one after the other, to every slot.

    Several layers in one `Slotwise` share the two maps between components and slots.
    """

    def __init__(self, algebra: Algebra, *layers: Callable[[Tensor], Tensor], **keywords: Any) -> None:
        """Hold the layers, in the order in which they are applied."""
        super().__init__(algebra, **keywords)
        self.functions = layers

    def call(self, x: Ciphertext) -> Ciphertext:
        """Return `f(x)`."""
        return self.algebra.apply(self._chain, tuple(x))

    def _chain(self, slot: Tensor) -> Tensor:
        for function in self.functions:
            slot = function(slot)
        return slot


class Append(EncryptedLayer):
    """Append one more feature: n tensors `[..., features]` and n tensors `[...]` to n of `[..., features + 1]`."""

    def call(self, x: Ciphertext, feature: Ciphertext) -> Ciphertext:
        """Return x with the feature as its last."""
        pairs = zip(x, feature, strict=True)
        return tuple(ops.concatenate([part, ops.expand_dims(more, -1)], axis=-1) for part, more in pairs)


class ReLU(Slotwise):
    """`keras.layers.ReLU` on ciphertext."""

    def __init__(self, algebra: Algebra, **keywords: Any) -> None:
        """Take no settings of its own."""
        super().__init__(algebra, ops.relu, **keywords)


class MaxPooling2D(Slotwise):
    """`keras.layers.MaxPooling2D` on ciphertext: the maximum of the slots."""

    def __init__(self, algebra: Algebra, pool_size: int = 2, **keywords: Any) -> None:
        """Pool squares of this size without overlap."""
        super().__init__(algebra, lambda x: ops.max_pool(x, pool_size), **keywords)


class _Linear(EncryptedLayer):
    """A linear map with encrypted kernel and bias, and the functions of the slots that follow it.

    What follows is part of the layer because between product and function the tensors can stay in slots. A
    pooling comes before the bias: `max(x) + b == max(x + b)` to the last bit, since rounding is monotonic.
    """

    def __init__(
        self,
        algebra: Algebra,
        *,
        pool_size: int = 1,
        activation: str | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(algebra, **keywords)
        self.pool_size = pool_size
        self.activation = keras.activations.get(activation) if activation else None

    def linear(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Return the bilinear product of one tensor with one kernel."""
        raise NotImplementedError

    def build_weights(self, kernel: tuple[int, ...]) -> None:
        """Add kernel and bias."""
        self.kernel = self.add_ciphertext("kernel", kernel)
        self.bias = self.add_ciphertext("bias", kernel[-1:])

    def call(self, x: Ciphertext) -> Ciphertext:
        """Return `activation(pool(x * kernel) + bias)`."""
        if self.activation is None and self.pool_size == 1:
            return self.algebra.add(self.algebra.product(tuple(x), self.kernel, self.linear), self.bias)
        products = self.algebra.product_slots(tuple(x), self.kernel, self.linear)
        biases = self.algebra.to_slots(self.bias)
        return self.algebra.from_slots(tuple(map(self._follow, products, biases)))

    def _follow(self, slot: Tensor, bias: Tensor) -> Tensor:
        pooled = ops.max_pool(slot, self.pool_size) if self.pool_size > 1 else slot
        return self.activation(pooled + bias) if self.activation else pooled + bias


class Conv2D(_Linear):
    """`keras.layers.Conv2D` on ciphertext, with encrypted kernel and bias; max pooling may follow within it.

    `n` tensors `[batch, height, width, channels]` to `n` tensors `[batch, height', width', filters]`.
    """

    def __init__(
        self,
        algebra: Algebra,
        filters: int,
        kernel_size: int,
        *,
        strides: int = 1,
        padding: str = "same",
        pool_size: int = 1,
        activation: str | None = None,
        **keywords: Any,
    ) -> None:
        """Take the settings of the stock layer, and the size of the max pooling before the activation."""
        super().__init__(algebra, pool_size=pool_size, activation=activation, **keywords)
        self.filters, self.kernel_size, self.strides, self.padding = filters, kernel_size, strides, padding

    def build(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Add kernel `[size, size, channels, filters]` and bias."""
        self.build_weights((self.kernel_size, self.kernel_size, shapes[0][-1], self.filters))

    def linear(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Return the convolution."""
        return ops.conv(x, kernel, strides=self.strides, padding=self.padding)


class Dense(_Linear):
    """`keras.layers.Dense` on ciphertext: n tensors `[batch, features]` to n tensors `[batch, units]`."""

    def __init__(self, algebra: Algebra, units: int, *, activation: str | None = None, **keywords: Any) -> None:
        """Take the settings of the stock layer."""
        super().__init__(algebra, activation=activation, **keywords)
        self.units = units

    def build(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Add kernel `[features, units]` and bias."""
        self.build_weights((shapes[0][-1], self.units))

    def linear(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Return the matrix product."""
        return ops.matmul(x, kernel)


class LSTM(EncryptedLayer):
    """`keras.layers.LSTM` (unrolled) on ciphertext: n tensors `[batch, steps, features]` to the last state.

    The gates are functions of the slots, and so the cell's state stays in slots from step to step. At a step that is
    not valid the state stays as it is, to the bit, as Keras has it of a masked one.
    """

    def __init__(self, algebra: Algebra, units: int, *, go_backwards: bool = False, **keywords: Any) -> None:
        """Take the number of units and the direction."""
        super().__init__(algebra, **keywords)
        self.units, self.go_backwards = units, go_backwards

    def build(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Add kernel, recurrent kernel and bias, gates in Keras's order (input, forget, cell, output)."""
        self.kernel = self.add_ciphertext("kernel", (shapes[0][-1], 4 * self.units))
        self.recurrent_kernel = self.add_ciphertext("recurrent_kernel", (self.units, 4 * self.units))
        self.bias = self.add_ciphertext("bias", (4 * self.units,))

    def call(self, x: Ciphertext, valid: Tensor | None = None) -> Ciphertext:
        """Return the last hidden state, n tensors `[batch, units]`; `valid [batch, steps]` says which steps count."""
        steps, features = x[0].shape[1:]
        flat = tuple(ops.reshape(part, (-1, features)) for part in x)
        slots = self.algebra.product_slots(flat, self.kernel, ops.matmul)
        biases = self.algebra.to_slots(self.bias)
        gates = [
            ops.reshape(slot + bias, (-1, steps, 4 * self.units)) for slot, bias in zip(slots, biases, strict=True)
        ]
        hidden: Ciphertext = ()
        states: list[_State] = []  # of each slot
        for step in reversed(range(steps)) if self.go_backwards else range(steps):
            now = [slot[:, step] for slot in gates]
            if hidden:
                recurrent = self.algebra.product_slots(hidden, self.recurrent_kernel, ops.matmul)
                now = [slot + more for slot, more in zip(now, recurrent, strict=True)]
            before: list[_State | None] = [*states] or [None] * self.algebra.n
            states = [_cell(slot, state) for slot, state in zip(now, before, strict=True)]
            if valid is not None:
                keep = valid[:, step, None]
                states = [_held(keep, state, last) for state, last in zip(states, before, strict=True)]
            hidden = self.algebra.from_slots(tuple(output for output, _ in states))
        return hidden


class Bidirectional(EncryptedLayer):
    """`keras.layers.Bidirectional` of an LSTM on ciphertext: the two last states, concatenated."""

    def __init__(self, algebra: Algebra, units: int, **keywords: Any) -> None:
        """Make one LSTM a direction."""
        super().__init__(algebra, **keywords)
        dtype = keywords.get("dtype")
        self.forward = LSTM(algebra, units, dtype=dtype, name="forward")
        self.backward = LSTM(algebra, units, go_backwards=True, dtype=dtype, name="backward")

    def build(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Build both directions, forward first, as Keras does."""
        self.forward.build(shapes)
        self.backward.build(shapes)

    def call(self, x: Ciphertext, valid: Tensor | None = None) -> Ciphertext:
        """Return n tensors `[batch, 2 units]`; `valid [batch, steps]` says which steps count."""
        pairs = zip(self.forward(x, valid), self.backward(x, valid), strict=True)
        return tuple(ops.concatenate(pair, axis=-1) for pair in pairs)


_State = tuple[Tensor, Tensor]  # output and cell `[batch, units]` of one slot


def _cell(gates: Tensor, last: _State | None) -> _State:
    """Return the state after one slot's step; None is the zero state."""
    i, f, g, o = ops.split(gates, 4, axis=-1)
    cell = ops.sigmoid(i) * ops.tanh(g)
    if last is not None:
        cell = ops.sigmoid(f) * last[1] + cell
    return ops.sigmoid(o) * ops.tanh(cell), cell


def _held(valid: Tensor, state: _State, last: _State | None) -> _State:
    """Return the state where `valid [batch, 1]`, and elsewhere the last one."""
    pairs = zip(state, last or map(ops.zeros_like, state), strict=True)
    output, cell = (ops.where(valid, now, then) for now, then in pairs)
    return output, cell
