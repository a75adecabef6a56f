"""The loss on ciphertext, by slot."""

import keras
import numpy as np
import pytest

from fedpp.cipher.components import Algebra
from fedpp.keys.domain import KeyDomain
from fedpp.learning.losses import EncryptedCrossEntropy

DTYPE = "float64"
SIZES = pytest.mark.parametrize("n", [2, 3])


def algebra(n: int) -> Algebra:
    return KeyDomain(bytes([5] * 32), n=n, epoch=1).evaluation_key().algebra()


@SIZES
def test_loss_is_a_weighted_sum_of_the_slots_losses(n: int):
    """The loss is Keras's cross entropy of the message and a sixteenth of each decoy's, averaged over the batch."""
    a, generator = algebra(n), np.random.default_rng(0)
    logits = generator.normal(size=(n, 5, 3))
    labels = np.eye(3)[generator.integers(3, size=(n, 5))]

    def rows(slots: np.ndarray) -> np.ndarray:
        return np.stack(a.to_rows(a.from_slots(tuple(slots))), axis=-1)

    stock = keras.losses.CategoricalCrossentropy(from_logits=True, dtype=DTYPE)
    message, *decoys = (float(stock(y, z)) for y, z in zip(labels, logits, strict=True))
    ours = EncryptedCrossEntropy(a, DTYPE)(rows(labels), rows(logits))
    np.testing.assert_allclose(float(ours), message + sum(decoys) / 16, rtol=1e-12)
