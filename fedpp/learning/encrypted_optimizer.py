"""What all optimizers on ciphertext have in common: gradients, clipping and moments by slot, and bounded decoys.

With the algebra of plain numbers each is its plaintext reference. Keras's own optimizers compute some scalars in
float32 whatever the variables are; the twins must share every scalar operation to agree to rounding.
"""

from collections.abc import Sequence
from math import inf
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from numpy.typing import NDArray

from fedpp.cipher.components import Algebra, Slots, Tensor
from fedpp.errors import ConfigError, ModelError
from fedpp.learning import key_scope
from fedpp.learning.decoys import DECOY_BOUND, excess, norm, shrunk

_CLIPPINGS = ("clipnorm", "clipvalue", "global_clipnorm")
_ANCHOR = "anchor"  # beside the moments, where FedProx pulls: the weights that training began with
STILL = 2.0**-26  # a weight that has gone less far than this is not pulled; see `EncryptedOptimizer`


class EncryptedOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """An optimizer over variables that come n at a time, each n of them one ciphertext weight.

    The n gradients of a weight are taken to its slots. There they are clipped, as Keras clips on plaintext: values,
    the norm of a weight, or the norm of all weights in one slot. There the moments are kept, too: as rows, the small
    second moments of the message would drown in the rounding of the decoys'. The step goes back to components, where
    weight decay, a scaling by a public number, needs no slots.

    A decoy's weight that a step would take out of its bound (`fedpp.learning.decoys`) is scaled back to it; the
    message's step is the same to the bit, whether or not one is.

    With `proximal` mu, each gradient gets `mu (w - w_0)` before it is clipped: FedProx (Li et al. 2020,
    arXiv:1812.06127, the objective h_k), where w_0 are the weights at `build`, or at the last `restart`. Up to `STILL`
    of w_0 there is no pull: on plaintext a dead unit's weights stay at w_0 exactly, in ciphertext rounding moves them,
    and Adam, whose step hardly depends on the gradient's size, would make of any pull steps of the learning rate
    (measured: 3e-3 after 12 steps at 1e-2).
    """

    moments: tuple[str, ...] = ()  # of each weight and slot, all zero at first

    def __init__(
        self,
        algebra: Algebra,
        learning_rate: Any,
        *,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        decoy_bound: float = DECOY_BOUND,
        proximal: float = 0.0,
        name: str | None = None,
    ) -> None:
        """Take Keras's settings, decoupled weight decay among them; raise `ConfigError` for one out of range."""
        clippings = dict(zip(_CLIPPINGS, (clipnorm, clipvalue, global_clipnorm), strict=True))
        if isinstance(learning_rate, int | float):
            check_setting("learning_rate", learning_rate, least=0.0)
        check_setting("weight_decay", weight_decay or 0.0, least=0.0)
        for setting, value in clippings.items():
            if value is not None:
                check_setting(setting, value, above=0.0)
        check_setting("decoy_bound", decoy_bound, above=0.0, finite=False)
        check_setting("proximal", proximal, least=0.0)
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, name=name, **clippings)
        self.algebra, self.decoy_bound, self.proximal = algebra, decoy_bound, proximal

    def step(self, gradient: Tensor, index: int, rate: Tensor) -> Tensor:
        """Return what to subtract from one slot of a weight; its moments stand at `index`."""
        raise NotImplementedError

    def steps(self, gradients: Slots, first: int, rate: Tensor) -> Slots:
        """Return the steps of all slots of a weight, whose moments stand from `first` on."""
        return tuple(self.step(gradient, first + k, rate) for k, gradient in enumerate(gradients))

    def rate(self, dtype: str) -> Tensor:
        """Return the learning rate of this step, as a number of the variables' dtype."""
        return ops.cast(self.learning_rate, dtype)

    def moment(self, name: str, index: int) -> keras.Variable:
        """Return one moment of one slot."""
        return self._moments[name][index]

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Add the moments, in slots; raise `ModelError` for variables that are not ciphertexts of one dtype."""
        if self.built:
            return
        dtypes = {variable.dtype for variable in variables}
        if len(variables) % self.algebra.n or len(dtypes) > 1:
            raise ModelError(
                f"an optimizer of ciphertexts takes weights of {self.algebra.n} variables each and of one dtype, "
                f"got {len(variables)} variables of {', '.join(sorted(dtypes))}"
            )
        super().build(variables)
        kept = (*self.moments, _ANCHOR) if self.proximal else self.moments
        self._moments = {name: self.add_optimizer_variables(variables, name) for name in kept}
        self._drop_anchor()

    def apply(self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
        """Take one step; `grads` are the derivatives of the loss's slots, summed, by the variables."""
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        if not self.built:
            self.build(variables)
        self._check_variables_are_known(variables)
        n, dtype = self.algebra.n, variables[0].dtype
        weights = [variables[i : i + n] for i in range(0, len(variables), n)]
        gradients = [
            self.algebra.to_slots(self.algebra.gradient(tuple(grads[i : i + n]))) for i in range(0, len(grads), n)
        ]
        if self.proximal:
            gradients = [self._pulled(weight, slots) for weight, slots in zip(weights, gradients, strict=True)]
        rate = self.rate(dtype)
        for weight, slots in zip(weights, self._clipped(gradients), strict=True):
            self._decay(weight)
            steps = self._bounded(weight, self.steps(slots, self._get_variable_index(weight[0]), rate))
            for variable, part in zip(weight, self.algebra.from_slots(steps), strict=True):
                variable.assign_sub(part)
        self.iterations.assign_add(1)

    def _pulled(self, weight: list[keras.Variable], gradients: Slots) -> Slots:
        """Return the gradients of a weight's slots with those of `mu / 2 ||w - w_0||^2`."""
        first = self._get_variable_index(weight[0])
        mu = ops.convert_to_tensor(self.proximal, weight[0].dtype)  # a cast would go by way of float32
        values = self.algebra.to_slots(tuple(weight))
        anchors = (self.moment(_ANCHOR, first + k) for k in range(self.algebra.n))
        ways = (value - anchor for value, anchor in zip(values, anchors, strict=True))
        pulls = (mu * ops.where(ops.abs(way) < STILL, ops.zeros_like(way), way) for way in ways)
        return tuple(gradient + pull for gradient, pull in zip(gradients, pulls, strict=True))

    def _drop_anchor(self) -> None:
        if not self.proximal:
            return
        n, variables = self.algebra.n, self._trainable_variables
        with tf.init_scope():  # once, also where a training step is being traced
            for i in range(0, len(variables), n):
                slots = self.algebra.to_slots(tuple(variables[i : i + n]))
                for anchor, value in zip(self._moments[_ANCHOR][i : i + n], slots, strict=True):
                    anchor.assign(value)

    def _clipped(self, gradients: list[Slots]) -> list[Slots]:
        """Clip gradients, slot by slot, as Keras would; where nothing is clipped they are the same to the bit."""
        if self.clipvalue is not None:
            value = self.clipvalue
            return [tuple(ops.clip(gradient, -value, value) for gradient in slots) for slots in gradients]
        if self.clipnorm is not None:
            limit = self.clipnorm
            return [tuple(shrunk(gradient, norm([gradient]), limit) for gradient in slots) for slots in gradients]
        if self.global_clipnorm is not None:
            limit, lengths = self.global_clipnorm, [norm(column) for column in zip(*gradients, strict=True)]
            return [tuple(shrunk(*pair, limit) for pair in zip(slots, lengths, strict=True)) for slots in gradients]
        return gradients

    def _decay(self, weight: list[keras.Variable]) -> None:
        if self.weight_decay is None or not self._use_weight_decay(weight[0]):
            return
        factor = ops.convert_to_tensor(self.weight_decay, weight[0].dtype)  # a cast would go by way of float32
        for variable in weight:
            variable.assign_sub(variable * factor * ops.cast(self.learning_rate, variable.dtype))

    def _bounded(self, weight: list[keras.Variable], steps: Slots) -> Slots:
        """Return the steps, those of decoys longer by what takes them back into their bound, by 0 within it."""
        if self.algebra.n == 1 or self.decoy_bound == inf:
            return steps
        decoys = zip(self.algebra.to_slots(tuple(weight))[1:], steps[1:], strict=True)
        return (steps[0], *(step + excess(value - step, self.decoy_bound) for value, step in decoys))

    def restart(self) -> None:
        """Forget all state but the learning rate, as if no step had been taken: training begins with these weights."""
        for variable in self.variables if self.built else ():
            if variable is not self._learning_rate:
                variable.assign(ops.zeros_like(variable))
        if self.built:
            self._drop_anchor()

    def get_config(self) -> dict[str, Any]:
        """Return the settings and which algebra they need; the key is not among them."""
        config = super().get_config()
        kept = ("name", "learning_rate", "weight_decay", *_CLIPPINGS)
        own = {"decoy_bound": self.decoy_bound, "proximal": self.proximal, **key_scope.describe(self.algebra)}
        return {**{name: config[name] for name in kept}, **own}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """Make the optimizer again, under the algebra of the scope (`fedpp.learning.key_scope`)."""
        settings = dict(config)
        algebra = key_scope.current(settings)
        if isinstance(settings["learning_rate"], dict):  # a schedule
            schedule = keras.saving.deserialize_keras_object(settings["learning_rate"], custom_objects)
            settings["learning_rate"] = schedule
        return cls(algebra, **settings)

    def save_own_variables(self, store: Any) -> None:
        """Write the moments as rows `[2, *shape, n]`: rows, and the rows of what rounding took from them.

        A row rounds at its largest slot, and a decoy's second moment can be 1e10 times the message's.
        """
        for name, variable in self._scalars().items():
            store[name] = np.asarray(variable)
        for name, slots in self._by_weight():
            values = [np.asarray(variable, np.float64) for variable in slots]
            rows = self._rows(values)
            lost = [value - kept for value, kept in zip(values, self._slots(rows), strict=True)]
            store[name] = np.stack([rows, self._rows(lost)])

    def load_own_variables(self, store: Any) -> None:
        """Set the state from a file; raise `ModelError` if it is not that of these weights."""
        expected = dict.fromkeys(self._scalars(), ())
        expected |= {name: (2, *slots[0].shape, self.algebra.n) for name, slots in self._by_weight()}
        found = {name: np.shape(store[name]) for name in store.keys()}  # noqa: SIM118  a store is no dictionary
        if found != expected:
            raise ModelError(f"optimizer {self.name} has a state of {expected}, the file of {found}")
        for name, variable in self._scalars().items():
            variable.assign(np.asarray(store[name]))
        for name, slots in self._by_weight():
            rows, lost = (self._slots(part) for part in np.asarray(store[name]))
            for variable, value, rest in zip(slots, rows, lost, strict=True):
                variable.assign((value + rest).astype(variable.dtype))

    def _scalars(self) -> dict[str, keras.Variable]:
        rate = self._learning_rate
        scalars = {"iteration": self._iterations}
        return scalars | ({"learning_rate": rate} if isinstance(rate, keras.Variable) else {})

    def _by_weight(self) -> list[tuple[str, list[keras.Variable]]]:
        n = self.algebra.n
        return [
            (f"{name}_{i // n}", list(variables[i : i + n]))
            for name, variables in (self._moments.items() if self.built else ())
            for i in range(0, len(variables), n)
        ]

    def _rows(self, slots: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.stack(self.algebra.to_rows(self.algebra.from_slots(tuple(slots))), axis=-1)

    def _slots(self, rows: NDArray[np.float64]) -> Slots:
        return self.algebra.to_slots(self.algebra.from_rows(rows))


def check_setting(
    name: str, value: float, *, least: float = -inf, above: float = -inf, below: float = inf, finite: bool = True
) -> None:
    """Raise `ConfigError` unless `least <= value` and `above < value < below`; the last may be left open."""
    if not (least <= value and above < value and (value < below or not finite)):
        wanted = f"at least {least:g}" if least > -inf else f"above {above:g}"
        raise ConfigError(f"{name} must be {wanted} and below {below:g}, got {value!r:.40}")
