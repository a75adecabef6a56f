"""Recurrent layers on ciphertext, unrolled: n tensors `[batch, steps, features]` to states `[batch, units]`.

The gates are functions of the slots, so the state is kept in slots from step to step. At a padded step the state does
not change, bit for bit, as at a masked step in Keras: padding never changes the last state.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Ciphertext, Tensor
from fedpp.errors import ConfigError
from fedpp.learning import key_scope
from fedpp.learning.layers.encrypted_layer import EncryptedLayer, Shape, at_least_one, check_padding_mask

State = tuple[Tensor, ...]  # of one slot `[batch, units]`, the output first


class _Recurrent(EncryptedLayer):
    """Recurrent layer with `gates` gates; returns its last output or all outputs, in order of its steps."""

    axes = "batch steps features"
    settings = ("units", "return_sequences", "go_backwards")
    gates: ClassVar[int]
    biases: ClassVar[tuple[int, ...]] = ()  # leading axis of the bias, if there are several

    def __init__(
        self,
        algebra: Algebra,
        units: int,
        *,
        return_sequences: bool = False,
        go_backwards: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__(algebra, **keywords)
        self.units = at_least_one(units, f"layer {self.name}: units")
        self.return_sequences, self.go_backwards = return_sequences, go_backwards

    def build(self, x_shape: Sequence[Shape], valid_shape: Shape | None = None) -> None:
        """Add kernel, recurrent kernel and bias, gates in Keras's order."""
        shape = self.plain_shape(x_shape)
        _, features = self.fixed(shape, 1, 2)
        if valid_shape is not None:
            check_padding_mask(self.name, valid_shape, shape[:2])
        self.kernel = self.add_ciphertext("kernel", (features, self.gates * self.units))
        self.recurrent_kernel = self.add_ciphertext("recurrent_kernel", (self.units, self.gates * self.units))
        self.bias = self.add_ciphertext("bias", (*self.biases, self.gates * self.units))

    def compute_output_shape(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        """Return the output shape without tracing the unrolled steps."""
        leading = shapes[0][: 2 if self.return_sequences else 1]
        return ((*leading, self.units),) * self.algebra.n

    def call(self, x: Ciphertext, valid: Tensor | None = None) -> Ciphertext:
        """Return the last output `[batch, units]`, or all `[batch, steps, units]`.

        `valid [batch, steps]` is False for padded steps; the output there is that of the step before.
        """
        if valid is not None:
            check_padding_mask(self.name, valid.shape, x[0].shape[:2])
        biases = self.algebra.to_slots(self.bias)
        projected = self._project(x, biases)
        hidden = self._start(projected)
        outputs: list[Ciphertext] = []
        states: list[State] = []  # of each slot
        for step in reversed(range(x[0].shape[1])) if self.go_backwards else range(x[0].shape[1]):
            now = [slot[:, step] for slot in projected]
            recurrent: tuple[Tensor | None, ...] = (None,) * self.algebra.n
            if hidden:
                recurrent = self.algebra.product_slots(hidden, self.recurrent_kernel, ops.matmul)
            before: list[State | None] = [*states] or [None] * self.algebra.n
            states = list(map(self.step, now, recurrent, biases, before))
            if valid is not None:
                keep = valid[:, step, None]
                states = [_held(keep, state, last) for state, last in zip(states, before, strict=True)]
            hidden = self.algebra.from_slots(tuple(state[0] for state in states))
            outputs.append(hidden)
        if not self.return_sequences:
            return hidden
        return tuple(ops.stack(parts, axis=1) for parts in zip(*outputs, strict=True))

    def input_bias(self, bias: Tensor) -> Tensor:
        """Return the bias that is added to the input's part of the gates."""
        return bias

    def step(self, gates: Tensor, recurrent: Tensor | None, bias: Tensor, last: State | None) -> State:
        """Return one slot's next state.

        `gates` is the input's part `[batch, gates * units]` with bias, `recurrent` the last output's part; that and the
        last state are None at the first step.
        """
        raise NotImplementedError

    def _start(self, projected: list[Tensor]) -> Ciphertext:
        """Return the output before the first step: nothing, to save a product of zeros.

        With a single step it is zeros, so that the recurrent kernel has a zero gradient and not none.
        """
        if projected[0].shape[1] > 1:
            return ()
        return tuple(ops.zeros_like(slot[:, 0, : self.units]) for slot in projected)

    def _project(self, x: Ciphertext, biases: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the input's part of all gates at all steps, `[batch, steps, gates * units]` for each slot."""
        steps, features = x[0].shape[1:]
        flat = tuple(ops.reshape(part, (-1, features)) for part in x)
        slots = self.algebra.product_slots(flat, self.kernel, ops.matmul)
        return [
            ops.reshape(slot + self.input_bias(bias), (-1, steps, self.gates * self.units))
            for slot, bias in zip(slots, biases, strict=True)
        ]


@keras.saving.register_keras_serializable(package="fedpp")
class LSTM(_Recurrent):
    """`keras.layers.LSTM` on ciphertext."""

    gates = 4  # input, forget, cell, output

    def step(self, gates: Tensor, recurrent: Tensor | None, bias: Tensor, last: State | None) -> State:
        """Return output and cell."""
        i, f, g, o = ops.split(gates if recurrent is None else gates + recurrent, 4, axis=-1)
        cell = ops.sigmoid(i) * ops.tanh(g)
        if last is not None:
            cell = ops.sigmoid(f) * last[1] + cell
        return ops.sigmoid(o) * ops.tanh(cell), cell


@keras.saving.register_keras_serializable(package="fedpp")
class GRU(_Recurrent):
    """`keras.layers.GRU` on ciphertext, with the reset gate after the product (Keras's default).

    The bias is `[2, 3 units]`: input bias and recurrent bias.
    """

    gates = 3  # update, reset, candidate
    biases = (2,)

    def input_bias(self, bias: Tensor) -> Tensor:
        """Return the first bias."""
        return bias[0]

    def step(self, gates: Tensor, recurrent: Tensor | None, bias: Tensor, last: State | None) -> State:
        """Return the output."""
        update, reset, candidate = ops.split(gates, 3, axis=-1)
        biased = bias[1] if recurrent is None else recurrent + bias[1]
        of_update, of_reset, of_candidate = ops.split(biased, 3, axis=-1)
        z = ops.sigmoid(update + of_update)
        proposed = ops.tanh(candidate + ops.sigmoid(reset + of_reset) * of_candidate)
        output = (1.0 - z) * proposed
        return (output if last is None else z * last[0] + output,)


@keras.saving.register_keras_serializable(package="fedpp")
class Bidirectional(EncryptedLayer):
    """`keras.layers.Bidirectional` on ciphertext: the outputs of both directions, concatenated.

    Takes an LSTM or GRU, as Keras does, or the units of an LSTM. If all outputs are returned, those at padded steps are
    zero, as in Keras.
    """

    axes = "batch steps features"

    def __init__(self, algebra: Algebra, layer: LSTM | GRU | int, **keywords: Any) -> None:
        """Make a layer for each direction with the settings of the given one."""
        super().__init__(algebra, **keywords)
        if isinstance(layer, int):
            layer = LSTM(algebra, layer, dtype=self.dtype_policy, name="lstm")
        if not isinstance(layer, _Recurrent) or layer.go_backwards:
            raise ConfigError(f"layer {self.name} takes an LSTM or a GRU that goes forwards, got {layer!r}")
        name = layer.name.removeprefix("forward_")
        with key_scope.under(algebra):
            config = layer.get_config()
            self.forward = layer.from_config({**config, "name": f"forward_{name}"})
            self.backward = layer.from_config({**config, "name": f"backward_{name}", "go_backwards": True})
        self.return_sequences = layer.return_sequences

    def build(self, x_shape: Sequence[Shape], valid_shape: Shape | None = None) -> None:
        """Build both directions, forward first, as Keras does."""
        self.forward.build(x_shape, valid_shape)
        self.backward.build(x_shape, valid_shape)

    def compute_output_shape(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        """Return the output shape without tracing the unrolled steps."""
        each = self.forward.compute_output_shape(shapes)
        return tuple((*shape[:-1], 2 * self.forward.units) for shape in each)

    def call(self, x: Ciphertext, valid: Tensor | None = None) -> Ciphertext:
        """Return `[batch, 2 units]` or `[batch, steps, 2 units]`; `valid [batch, steps]` is False for padded steps."""
        forward, backward = self.forward(x, valid), self.backward(x, valid)
        if self.return_sequences:
            backward = tuple(ops.flip(part, axis=1) for part in backward)
        both = tuple(ops.concatenate(pair, axis=-1) for pair in zip(forward, backward, strict=True))
        if not self.return_sequences or valid is None:
            return both
        keep = ops.expand_dims(valid, -1)
        return tuple(ops.where(keep, part, ops.zeros_like(part)) for part in both)

    def get_config(self) -> dict[str, Any]:
        """Return the settings, with those of the forward layer."""
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.forward)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the layer from its settings, in the algebra of the scope."""
        return super().from_config({**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


def _held(valid: Tensor, state: State, last: State | None) -> State:
    """Return the state where `valid [batch, 1]` is True, else the last state."""
    pairs = zip(state, last or map(ops.zeros_like, state), strict=True)
    return tuple(ops.where(valid, now, then) for now, then in pairs)
