"""Dropout layer on ciphertext."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Ciphertext
from fedpp.errors import ConfigError
from fedpp.learning.layers.encrypted_layer import EncryptedLayer


@keras.saving.register_keras_serializable(package="fedpp")
class Dropout(EncryptedLayer):
    """`keras.layers.Dropout` on ciphertext: one public dropout mask, so all slots drop the same values."""

    settings = ("rate", "noise_shape", "seed")

    def __init__(
        self,
        algebra: Algebra,
        rate: float,
        noise_shape: Sequence[int | None] | None = None,
        seed: int | None = None,
        **keywords: Any,
    ) -> None:
        """Take the settings of the stock layer; the same seed gives the stock layer's dropout mask."""
        super().__init__(algebra, **keywords)
        if not 0 <= rate < 1:
            raise ConfigError(f"layer {self.name}: rate must be at least 0 and below 1, got {rate}")
        self.rate, self.seed = rate, seed
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, x: Ciphertext, *, training: bool = False) -> Ciphertext:
        """Return x with dropped values set to zero and the others scaled by `1 / (1 - rate)`."""
        if not training or not self.rate:
            return tuple(x)
        dropout_mask = keras.random.dropout(
            ops.ones_like(x[0]), self.rate, noise_shape=self.noise_shape, seed=self.seed_generator
        )
        return tuple(part * dropout_mask for part in x)
