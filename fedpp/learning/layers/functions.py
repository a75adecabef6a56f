"""Activation layers: functions applied to each slot."""

from collections.abc import Callable
from typing import Any

import keras

from fedpp.cipher.components import Algebra, Tensor
from fedpp.errors import ConfigError
from fedpp.learning.layers.encrypted_layer import SlotFunction

FUNCTIONS = ("relu", "leaky_relu", "elu", "sigmoid", "tanh", "softmax", "gelu")


def function(activation: str | None, layer: str) -> Callable[[Tensor], Tensor] | None:
    """Return Keras's function of that name; None for None and "linear". Raises `ConfigError` for an unknown one."""
    if activation is None or activation == "linear":
        return None
    if activation not in FUNCTIONS:
        raise ConfigError(f"layer {layer}: activation must be one of {', '.join(FUNCTIONS)}, got {activation!r}")
    found: Callable[[Tensor], Tensor] = keras.activations.get(activation)
    return found


@keras.saving.register_keras_serializable(package="fedpp")
class Activation(SlotFunction):
    """`keras.layers.Activation` on ciphertext. In `Dense` or `Conv2D` the same function costs less."""

    settings = ("activation",)

    def __init__(self, algebra: Algebra, activation: str, **keywords: Any) -> None:
        """Take the function's name, one of `FUNCTIONS`."""
        super().__init__(algebra, **keywords)
        self.activation, self.function = activation, function(activation, self.name)

    def slot(self, slot: Tensor) -> Tensor:
        """Return the function's value."""
        return self.function(slot) if self.function else slot


@keras.saving.register_keras_serializable(package="fedpp")
class ReLU(SlotFunction):
    """`keras.layers.ReLU` on ciphertext."""

    settings = ("max_value", "negative_slope", "threshold")

    def __init__(
        self,
        algebra: Algebra,
        max_value: float | None = None,
        negative_slope: float = 0.0,
        threshold: float = 0.0,
        **keywords: Any,
    ) -> None:
        super().__init__(algebra, **keywords)
        if (max_value or 0.0) < 0 or negative_slope < 0 or threshold < 0:
            raise ConfigError(
                f"layer {self.name}: max_value, negative_slope and threshold must not be negative, "
                f"got {max_value}, {negative_slope} and {threshold}"
            )
        self.max_value, self.negative_slope, self.threshold = max_value, negative_slope, threshold

    def slot(self, slot: Tensor) -> Tensor:
        """Return the rectified slot."""
        return keras.activations.relu(slot, self.negative_slope, self.max_value, self.threshold)
