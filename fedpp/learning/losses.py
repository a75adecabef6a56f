"""Cross-entropy losses of encrypted labels and logits; with plaintext algebra, of plaintext."""

from collections.abc import Sequence
from math import inf
from typing import Any, Self

import keras
from keras import ops

from fedpp.cipher.components import Algebra, Slots, Tensor
from fedpp.errors import ConfigError
from fedpp.learning import key_scope
from fedpp.learning.decoys import DECOY_LABEL, DECOY_WEIGHT


class EncryptedLoss(keras.losses.Loss):  # type: ignore[misc]
    """Loss on ciphertext: the message's loss plus `DECOY_WEIGHT` times the decoys' losses.

    The loss of ciphertexts is a ciphertext; its gradient comes from differentiating a weighted sum of its slots
    (`Algebra.gradient`). All slots of a gradient share its rounding error. Decoys have noise as labels, so their
    gradients stay large while the message's become small: therefore they are scaled down, and an optimizer with moments
    by slot trains them nevertheless. The number that `fit` reports is not the loss of the message, which only the vault
    can compute. Labels and logits are rows with the slots on the last axis (none for plaintext, n = 1); the result is
    `[batch]`.
    """

    def __init__(
        self,
        algebra: Algebra,
        dtype: str,
        *,
        label_smoothing: float = 0.0,
        name: str = "loss_with_decoys",
        reduction: str = "sum_over_batch_size",
    ) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing!r:.40}")
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.algebra, self.label_smoothing = algebra, label_smoothing

    def slot_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Return the loss `[batch]` of one slot."""
        raise NotImplementedError

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the sum over slots, for each sequence."""
        message, *others = self._slots(y_true)
        labels = [message, *(ops.clip(decoy, -DECOY_LABEL, DECOY_LABEL) for decoy in others)]
        losses = [self.slot_loss(y, z) for y, z in zip(labels, self._slots(y_pred), strict=True)]
        return losses[0] + DECOY_WEIGHT * sum(losses[1:]) if others else losses[0]

    def get_config(self) -> dict[str, Any]:
        """Return the settings and the names of the algebra, without the key."""
        own = {"dtype": self.dtype, "label_smoothing": self.label_smoothing}
        return {**super().get_config(), **key_scope.describe(self.algebra), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the loss from its settings, in the algebra of the scope (`fedpp.learning.key_scope`)."""
        settings = dict(config)
        return cls(key_scope.current(settings), settings.pop("dtype"), **settings)

    def _slots(self, rows: Tensor) -> Slots:
        return (rows,) if self.algebra.n == 1 else self.algebra.to_slots(self.algebra.from_rows(rows))


@keras.saving.register_keras_serializable(package="fedpp")
class CategoricalCrossentropy(EncryptedLoss):
    """`keras.losses.CategoricalCrossentropy` from logits, of labels and logits in rows `[batch, classes, n]`.

    A class weight multiplies the loss of the sequences of that class, as a sample weight does. In Keras smoothed
    labels are `(1 - s) y + s / classes`.
    """

    def __init__(
        self, algebra: Algebra, dtype: str, *, class_weights: Sequence[float] | None = None, **common: Any
    ) -> None:
        """Take the weights in the order of the classes; the common settings are those of `EncryptedLoss`."""
        super().__init__(algebra, dtype, **common)
        self.class_weights = _weights("class_weights", class_weights)

    def slot_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Return `-w_y sum_k y_k log softmax(z)_k` for each sequence."""
        smoothed = labels
        if self.label_smoothing:
            smoothed = labels * (1.0 - self.label_smoothing) + self.label_smoothing / labels.shape[-1]
        loss = -ops.sum(smoothed * ops.log_softmax(logits, axis=-1), axis=-1)
        if self.class_weights is None:
            return loss
        return loss * ops.sum(labels * _fitting(self.class_weights, labels, -1), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the settings and which algebra they need."""
        return {**super().get_config(), "class_weights": self.class_weights}


@keras.saving.register_keras_serializable(package="fedpp")
class BinaryCrossentropy(EncryptedLoss):
    """`keras.losses.BinaryCrossentropy` from logits, of findings that may be unknown.

    Labels are rows `[batch, findings, 2, n]`, one-hot pairs (absent, present), and (0, 0) for an unknown finding, which
    adds no loss; logits are rows `[batch, findings, n]`. The loss of a sequence is the sum over its known findings,
    divided by the number of all findings. A positive weight multiplies the loss of a finding that is present, as a
    sample weight does. In Keras smoothed labels are `(1 - s) y + s / 2`.
    """

    def __init__(
        self, algebra: Algebra, dtype: str, *, positive_weights: Sequence[float] | None = None, **common: Any
    ) -> None:
        """Take the weights in the order of the findings; the common settings are those of `EncryptedLoss`."""
        super().__init__(algebra, dtype, **common)
        self.positive_weights = _weights("positive_weights", positive_weights)

    def slot_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Return the mean over findings of `w (y_absent softplus(z) + y_present softplus(-z))` for each sequence."""
        absent, present = labels[..., 0], labels[..., 1]
        smoothed = (absent, present)
        if self.label_smoothing:
            shared = (absent + present) * (0.5 * self.label_smoothing)
            smoothed = tuple(y * (1.0 - self.label_smoothing) + shared for y in smoothed)
        losses = smoothed[0] * ops.softplus(logits) + smoothed[1] * ops.softplus(-logits)
        if self.positive_weights is not None:
            losses = losses * (absent + present * _fitting(self.positive_weights, labels, -2))
        return ops.mean(losses, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the settings and which algebra they need."""
        return {**super().get_config(), "positive_weights": self.positive_weights}


def _weights(name: str, weights: Sequence[float] | None) -> tuple[float, ...] | None:
    if weights is None:
        return None
    if not all(0.0 < weight < inf for weight in weights):
        raise ConfigError(f"{name} must be positive and finite, got {tuple(weights)!r:.60}")
    return tuple(float(weight) for weight in weights)


def _fitting(weights: tuple[float, ...], labels: Tensor, axis: int) -> Tensor:
    if len(weights) != labels.shape[axis]:
        raise ConfigError(f"the loss has {len(weights)} weights for labels of {labels.shape[axis]}: give one for each")
    return ops.convert_to_tensor(weights, labels.dtype)
