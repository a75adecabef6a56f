"""Adam in the algebra, and, with the algebra of plain numbers, its plaintext twin.

Keras's own Adam computes its bias corrections in float32 whatever the variables are; the twins must share
every scalar operation to agree to rounding, so both use this class. Kingma & Ba 2015 (arXiv:1412.6980),
Algorithm 1 in the order of its section 2's last paragraph, as Keras does.
"""

from collections.abc import Sequence

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Tensor


class Adam(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Adam over variables that come n at a time, each n of them one ciphertext.

    Both moments are kept by slot: kept as rows, the small second moments of the message drown in the
    rounding of the decoy's.
    """

    def __init__(
        self,
        algebra: Algebra,
        learning_rate: float = 1e-3,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
    ) -> None:
        """Take Keras's settings and defaults."""
        super().__init__(learning_rate=learning_rate, name="encrypted_adam")
        self.algebra = algebra
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def build(self, variables: Sequence[Tensor]) -> None:
        """Add two moments for each variable, in slots."""
        if self.built:
            return
        super().build(variables)
        names = ["momentum", "velocity"]
        self._momentums, self._velocities = self.add_optimizer_variables(variables, names)

    def apply(self, grads: Sequence[Tensor], trainable_variables: Sequence[Tensor] | None = None) -> None:
        """Take one step; `grads` are the derivatives of the loss's slots, summed, by the variables."""
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        if not self.built:
            self.build(variables)
        dtype = variables[0].dtype
        step = ops.cast(self.iterations + 1, dtype)
        one, beta_1, beta_2 = (ops.convert_to_tensor(x, dtype) for x in (1.0, self.beta_1, self.beta_2))
        correction = ops.sqrt(one - ops.power(beta_2, step)) / (one - ops.power(beta_1, step))
        rate = ops.cast(self.learning_rate, dtype) * correction
        n = self.algebra.n
        for i in range(0, len(variables), n):
            slots = self.algebra.to_slots(self.algebra.gradient(tuple(grads[i : i + n])))
            updates = []
            for k, g in enumerate(slots):
                m, v = self._momentums[i + k], self._velocities[i + k]
                m.assign(beta_1 * m + (one - beta_1) * g)
                v.assign(beta_2 * v + (one - beta_2) * (g * g))
                updates.append(rate * m / (ops.sqrt(v) + self.epsilon))
            for k, update in enumerate(self.algebra.from_slots(tuple(updates))):
                variables[i + k].assign_sub(update)
        self.iterations.assign_add(1)

    def restart(self) -> None:
        """Forget all state but the learning rate, as if no step had been taken."""
        for variable in self.variables if self.built else ():
            if variable is not self._learning_rate:
                variable.assign(ops.zeros_like(variable))
