"""Base of optimizers on ciphertext: gradients, clipping and moments by slot, FedProx, and bounded decoys.

With plaintext algebra each optimizer is its own plaintext reference. Keras's optimizers compute some scalars in float32
whatever the dtype of the variables; ciphertext and reference must share every scalar operation to agree to rounding.
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
_ANCHOR = "anchor"  # optimizer variables of FedProx: the weights at the start of training
STILL = 2.0**-26  # FedProx ignores smaller changes of a weight; see `EncryptedOptimizer`


class EncryptedOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Optimizer of ciphertext weights, each of which is n consecutive variables.

    The n gradients of a weight are converted to its slots. Clipping is by slot, as in Keras on plaintext: values, the
    norm of a weight, or the norm of all weights in one slot. Moments are kept by slot, too: in rows, the message's
    small second moments would be lost in the rounding of the decoys'. The step is converted back to components. Weight
    decay, a scaling by a public number, needs no slots.

    If a step takes a decoy out of its bound (`fedpp.learning.decoys`), the decoy is scaled back; the message's step is
    the same bit for bit.

    With `proximal` mu, `mu (w - w_0)` is added to each gradient before clipping: FedProx (Li et al. 2020,
    arXiv:1812.06127, the objective h_k), where w_0 are the weights at `build` or at the last `restart`. Changes of less
    than `STILL` add nothing: on plaintext the weights of a dead unit stay at w_0 exactly, in ciphertext rounding moves
    them, and Adam, whose step hardly depends on the size of the gradient, would turn any proximal term into steps of
    the learning rate (measured: 3e-3 after 12 steps at 1e-2).
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
        """Take Keras's settings, with decoupled weight decay; raise `ConfigError` for a value out of range."""
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
        """Return what to subtract from one slot of a weight; `index` is that of its moments."""
        raise NotImplementedError

    def steps(self, gradients: Slots, first: int, rate: Tensor) -> Slots:
        """Return the steps of all slots of a weight, whose moments begin at index `first`."""
        return tuple(self.step(gradient, first + k, rate) for k, gradient in enumerate(gradients))

    def rate(self, dtype: str) -> Tensor:
        """Return the learning rate of this step, as a number of the variables' dtype."""
        return ops.cast(self.learning_rate, dtype)

    def moment(self, name: str, index: int) -> keras.Variable:
        """Return one moment of one slot."""
        return self._moments[name][index]

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Add the moments by slot; raise `ModelError` for variables that are not ciphertexts of one dtype."""
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
        self._set_anchor()

    def apply(self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
        """Take one step; `grads` are the derivatives of the sum of the loss's slots by the variables."""
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
            gradients = [
                self._with_proximal_term(weight, slots) for weight, slots in zip(weights, gradients, strict=True)
            ]
        rate = self.rate(dtype)
        for weight, slots in zip(weights, self._clipped(gradients), strict=True):
            self._decay(weight)
            steps = self._bounded(weight, self.steps(slots, self._get_variable_index(weight[0]), rate))
            for variable, part in zip(weight, self.algebra.from_slots(steps), strict=True):
                variable.assign_sub(part)
        self.iterations.assign_add(1)

    def _with_proximal_term(self, weight: list[keras.Variable], gradients: Slots) -> Slots:
        """Return the gradients of a weight's slots plus those of `mu / 2 ||w - w_0||^2`."""
        first = self._get_variable_index(weight[0])
        mu = ops.convert_to_tensor(self.proximal, weight[0].dtype)  # a cast would pass through float32
        values = self.algebra.to_slots(tuple(weight))
        anchors = (self.moment(_ANCHOR, first + k) for k in range(self.algebra.n))
        changes = (value - anchor for value, anchor in zip(values, anchors, strict=True))
        terms = (mu * ops.where(ops.abs(change) < STILL, ops.zeros_like(change), change) for change in changes)
        return tuple(gradient + term for gradient, term in zip(gradients, terms, strict=True))

    def _set_anchor(self) -> None:
        if not self.proximal:
            return
        n, variables = self.algebra.n, self._trainable_variables
        with tf.init_scope():  # once, also while a training step is traced
            for i in range(0, len(variables), n):
                slots = self.algebra.to_slots(tuple(variables[i : i + n]))
                for anchor, value in zip(self._moments[_ANCHOR][i : i + n], slots, strict=True):
                    anchor.assign(value)

    def _clipped(self, gradients: list[Slots]) -> list[Slots]:
        """Clip gradients by slot, as Keras does; gradients within the limit are unchanged bit for bit."""
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
        factor = ops.convert_to_tensor(self.weight_decay, weight[0].dtype)  # a cast would pass through float32
        for variable in weight:
            variable.assign_sub(variable * factor * ops.cast(self.learning_rate, variable.dtype))

    def _bounded(self, weight: list[keras.Variable], steps: Slots) -> Slots:
        """Return the steps, with those of decoys extended so that each decoy stays within its bound."""
        if self.algebra.n == 1 or self.decoy_bound == inf:
            return steps
        decoys = zip(self.algebra.to_slots(tuple(weight))[1:], steps[1:], strict=True)
        return (steps[0], *(step + excess(value - step, self.decoy_bound) for value, step in decoys))

    def restart(self) -> None:
        """Reset all state but the learning rate: training starts from the current weights."""
        for variable in self.variables if self.built else ():
            if variable is not self._learning_rate:
                variable.assign(ops.zeros_like(variable))
        if self.built:
            self._set_anchor()

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
