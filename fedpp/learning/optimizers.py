"""Keras's optimizers SGD, Adam and AdamW on ciphertext; with plaintext algebra, their plaintext references."""

from typing import Any

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Tensor
from fedpp.errors import ConfigError
from fedpp.learning.encrypted_optimizer import EncryptedOptimizer, check_setting


@keras.saving.register_keras_serializable(package="fedpp")
class SGD(EncryptedOptimizer):
    """`keras.optimizers.SGD` on ciphertext, with momentum (Polyak 1964) or Nesterov's (Sutskever et al. 2013)."""

    def __init__(
        self,
        algebra: Algebra,
        learning_rate: Any = 1e-2,
        momentum: float = 0.0,
        *,
        nesterov: bool = False,
        **common: Any,
    ) -> None:
        """Take Keras's settings and defaults; `common` settings are those of `EncryptedOptimizer`."""
        check_setting("momentum", momentum, least=0.0, below=1.0)
        super().__init__(algebra, learning_rate, **common)
        self.momentum, self.nesterov = momentum, nesterov
        self.moments = ("momentum",) if momentum else ()

    def step(self, gradient: Tensor, index: int, rate: Tensor) -> Tensor:
        """Return the step of plain gradient descent or of momentum, as Keras computes it."""
        step = gradient * rate
        if not self.momentum:
            return step
        velocity = self.moment("momentum", index)
        momentum = ops.convert_to_tensor(self.momentum, velocity.dtype)  # a cast would pass through float32
        velocity.assign(velocity * momentum - step)
        return step - velocity * momentum if self.nesterov else -velocity

    def get_config(self) -> dict[str, Any]:
        """Return the settings and the names of the algebra."""
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}


@keras.saving.register_keras_serializable(package="fedpp")
class Adam(EncryptedOptimizer):
    """`keras.optimizers.Adam` on ciphertext.

    Kingma & Ba 2015 (arXiv:1412.6980), Algorithm 1 in the order of operations at the end of section 2, as in Keras.
    """

    moments = ("momentum", "velocity")

    def __init__(
        self,
        algebra: Algebra,
        learning_rate: Any = 1e-3,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **common: Any,
    ) -> None:
        """Take Keras's settings and defaults; `common` settings are those of `EncryptedOptimizer`."""
        for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            check_setting(name, beta, least=0.0, below=1.0)
        check_setting("epsilon", epsilon, least=0.0)
        super().__init__(algebra, learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def rate(self, dtype: str) -> Tensor:
        """Return the learning rate with the bias correction of the moments."""
        step = ops.cast(self.iterations + 1, dtype)
        one, beta_1, beta_2 = (ops.convert_to_tensor(x, dtype) for x in (1.0, self.beta_1, self.beta_2))
        correction = ops.sqrt(one - ops.power(beta_2, step)) / (one - ops.power(beta_1, step))
        return super().rate(dtype) * correction

    def step(self, gradient: Tensor, index: int, rate: Tensor) -> Tensor:
        """Return the first moment over the root of the second."""
        m, v = self.moment("momentum", index), self.moment("velocity", index)
        one, beta_1, beta_2 = (ops.convert_to_tensor(x, m.dtype) for x in (1.0, self.beta_1, self.beta_2))
        m.assign(beta_1 * m + (one - beta_1) * gradient)
        v.assign(beta_2 * v + (one - beta_2) * (gradient * gradient))
        return rate * m / (ops.sqrt(v) + self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """Return the settings and the names of the algebra."""
        own = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="fedpp")
class AdamW(Adam):
    """`keras.optimizers.AdamW` on ciphertext: Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    def __init__(
        self, algebra: Algebra, learning_rate: Any = 1e-3, *, weight_decay: float | None = 4e-3, **settings: Any
    ) -> None:
        if weight_decay is None:
            raise ConfigError("AdamW needs a weight_decay, got None: give a number, or use Adam")
        super().__init__(algebra, learning_rate, weight_decay=weight_decay, **settings)
