"""Gradient accumulation: a Keras model that trains a batch in micro-batches and skips non-finite steps."""

from typing import Any, Self

import keras
import tensorflow as tf

from fedpp.cipher.components import Tensor
from fedpp.errors import ModelError


@keras.saving.register_keras_serializable(package="fedpp")
class AccumulatingModel(keras.Model):  # type: ignore[misc]
    """Functional model trained in parts of `micro_batch` examples.

    The gradient is that of the mean loss of the batch, up to the rounding of the sum of parts (layers with batch
    statistics, such as BatchNormalization, use one part). If loss or gradient is not finite, no trained weight changes
    and the reported loss is NaN, for a callback such as `NonFiniteWatch`.
    """

    micro_batch: int | None = None  # None: the whole batch at once

    def train_step(self, data: tuple[Any, ...]) -> dict[str, Tensor]:
        """Take one step."""
        inputs, targets, weights = keras.utils.unpack_x_y_sample_weight(data)
        if weights is not None or self.losses or len(self.metrics) > 1 or not callable(self.loss):
            raise ModelError(
                f"model {self.name} needs one loss object and nothing else: give class weights to the loss, "
                "and leave out sample weights, metrics and penalties of layers"
            )
        size = tf.shape(targets)[0]
        if self.micro_batch is None:
            loss, gradients = self._gradients(inputs, targets)
        else:
            loss, gradients = self._accumulated(inputs, targets, size, self.micro_batch)
        finite = tf.reduce_all([tf.math.is_finite(tf.reduce_sum(value)) for value in (loss, *gradients)])
        variables = self.trainable_variables

        def apply() -> tf.Tensor:
            self.optimizer.apply(gradients, variables)
            return loss

        if not self.optimizer.built:
            self.optimizer.build(variables)  # its variables cannot be made within a branch
        reported = tf.cond(finite, apply, lambda: tf.fill(tf.shape(loss), tf.cast(float("nan"), loss.dtype)))
        self._loss_tracker.update_state(reported, sample_weight=size)
        return {"loss": self._loss_tracker.result()}

    def get_config(self) -> dict[str, Any]:
        """Return the network and the size of micro-batches."""
        return {**super().get_config(), "micro_batch": self.micro_batch}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """Make the model from its settings."""
        settings = dict(config)
        micro_batch = settings.pop("micro_batch", None)
        model: Self = super().from_config(settings, custom_objects)
        model.micro_batch = micro_batch
        return model

    def _gradients(self, inputs: Any, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the mean loss, and its gradients by the trainable variables."""
        with tf.GradientTape() as tape:
            loss = self.loss(targets, self(inputs, training=True))  # Keras's compute_loss casts it to float32
        return loss, tape.gradient(loss, [variable.value for variable in self.trainable_variables])

    def _accumulated(self, inputs: Any, targets: Tensor, size: Tensor, part: int) -> tuple[Tensor, list[Tensor]]:
        """Return the same from parts of the batch, each weighted by its number of examples."""

        def more(start: Tensor, loss: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
            stop = tf.minimum(start + part, size)
            some, gradients = self._gradients(
                *tf.nest.map_structure(lambda value: value[start:stop], (inputs, targets))
            )
            share = tf.cast(stop - start, some.dtype) / tf.cast(size, some.dtype)
            return stop, loss + share * some, *(s + share * g for s, g in zip(sums, gradients, strict=True))

        zeros = [tf.zeros_like(variable.value) for variable in self.trainable_variables]
        none = tf.zeros((), self.outputs[0].dtype)
        _, loss, *gradients = tf.while_loop(
            lambda start, *_: start < size, more, (tf.constant(0), none, *zeros), parallel_iterations=1
        )
        return loss, gradients
