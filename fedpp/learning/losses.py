"""Softmax cross entropy between encrypted labels and encrypted logits."""

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Tensor

DECOY_WEIGHT = 2.0**-4  # measured: at 1 float32 loses up to three bits of the message's gradient, at 1/10 none


class EncryptedCrossEntropy(keras.losses.Loss):  # type: ignore[misc]
    """The weighted sum of the slots of the loss's ciphertext: message loss plus a share of the decoys' losses.

    The loss on ciphertext is a ciphertext; its gradient comes from differentiating a sum of its slots
    (`Algebra.gradient`). All slots of a gradient share its rounding, and decoys, whose labels are noise, keep
    large gradients while the message's fade: so theirs are made small, and Adam, which keeps moments by slot,
    trains them all the same. The number that `fit` reports is not the loss of the message: that one only the
    vault can tell. Labels and logits are rows `[batch, classes, n]`; the result is `[batch]`.
    """

    def __init__(self, algebra: Algebra, dtype: str) -> None:
        """Compute in this algebra."""
        super().__init__(name="loss_with_decoys", dtype=dtype)
        self.algebra = algebra

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the sum over slots of `-sum_k y_k log softmax(z)_k`, for each sequence."""
        labels = self.algebra.to_slots(self.algebra.from_rows(y_true))
        logits = self.algebra.to_slots(self.algebra.from_rows(y_pred))
        losses = [-ops.sum(y * ops.log_softmax(z, axis=-1), axis=-1) for y, z in zip(labels, logits, strict=True)]
        return losses[0] + DECOY_WEIGHT * sum(losses[1:])
