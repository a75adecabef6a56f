"""Learner: training and prediction by Keras's `fit`, shared by the encrypted network and its plaintext reference."""

from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from fedpp.arrays import are_finite
from fedpp.cipher.components import Algebra
from fedpp.config.hyperparameters import Dtype, Hyperparameters
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import ModelError
from fedpp.learning import models
from fedpp.learning.batches import Batches, Indices, Reader
from fedpp.learning.losses import BinaryCrossentropy, CategoricalCrossentropy
from fedpp.learning.nonfinite_watch import NonFiniteWatch
from fedpp.learning.optimizers import Adam
from fedpp.protocol.label_counts import LabelCounts, class_weights

Values = NDArray[np.floating]
State = dict[str, NDArray[np.generic]]


class Learner:
    """Network in one algebra, compiled once; with plaintext algebra, the plaintext reference of stock Keras layers.

    Readers return the values of the sequences at given positions, in the model's dtype: the network's inputs, and
    labels `[k, classes(, n)]` or, with several findings, `[k, findings, 2(, n)]`. Plaintext has no last axis n.
    """

    def __init__(self, network: ModelSpec, algebra: Algebra, hyperparameters: Hyperparameters, dtype: Dtype) -> None:
        """Build and compile the network; weights are zero, or Keras's initial ones, until they are set."""
        self.network, self.algebra, self.hyperparameters, self.dtype = network, algebra, hyperparameters, dtype
        plain = algebra.n == 1
        self.model = models.plaintext(network, dtype) if plain else models.encrypted(network, algebra, dtype)
        self.model.micro_batch = (
            hyperparameters.micro_batch if hyperparameters.batch_size > hyperparameters.micro_batch else None
        )
        self._labels: LabelCounts | None = None
        self._compile(Adam(algebra, hyperparameters.learning_rate, proximal=hyperparameters.proximal))

    def balance(self, labels: LabelCounts | None) -> None:
        """Let the loss weigh by these training labels, where the hyperparameters say so; None: all classes alike."""
        if self.hyperparameters.balanced and labels != self._labels:
            self._labels = labels
            self._compile(self.model.optimizer)

    def _compile(self, optimizer: keras.optimizers.Optimizer) -> None:
        weights = class_weights(self.network.task, self.hyperparameters.positive_weight, self._labels)
        self.model.compile(
            optimizer=optimizer,
            loss=_loss(self.network, self.algebra, self.hyperparameters, self.dtype, weights),
            run_eagerly=self.model.run_eagerly,
            jit_compile=False,  # measured: XLA on the CPU gains nothing here and costs seconds of compilation
        )

    def fit(
        self,
        inputs: Sequence[Reader],
        labels: Reader,
        indices: Indices,
        *,
        epochs: int,
        seed: Sequence[int],
        done: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int = 0,
    ) -> list[float]:
        """Train for the epochs after `done`, up to `epochs`; return the loss of each epoch, with decoys.

        Raises `ModelError`, with the name of the layer, if a loss, a gradient or a weight is not finite.
        """
        self._build_optimizer()
        data = Batches(inputs, labels, indices, self.hyperparameters.batch_size, seed)
        watch = NonFiniteWatch(self.algebra, data.batch)
        losses = data.fit(self.model, epochs, [watch, *callbacks], verbose, done)
        if not are_finite(np.asarray(weight) for weight in self.model.weights):  # also after the last step
            rate = self.hyperparameters.learning_rate
            raise ModelError(f"the training diverged at learning rate {rate}: weights are not finite; lower it")
        return losses

    def predict(self, inputs: Sequence[Reader], indices: Indices) -> Values:
        """Return logits `[k, classes(, n)]`."""
        if not len(indices):
            slots = () if self.algebra.n == 1 else (self.algebra.n,)
            return np.zeros((0, len(self.network.task.classes), *slots), self.dtype)
        size = min(self.hyperparameters.batch_size, self.hyperparameters.micro_batch)
        return Batches(inputs, None, indices, size).predict(self.model)

    def state(self) -> State:
        """Return all that training changes, bit for bit: weights, optimizer variables, seeds of dropout."""
        return {f"{number:04}": np.array(variable) for number, variable in enumerate(self._variables())}

    def restore(self, state: State) -> None:
        """Set what `state` returned."""
        for variable, values in zip(self._variables(), (state[name] for name in sorted(state)), strict=True):
            variable.assign(values)

    def _variables(self) -> list[keras.Variable]:
        self._build_optimizer()
        return [*self.model.variables, *self.model.optimizer.variables]

    def _build_optimizer(self) -> None:
        """Make the moments, which take twice the network's memory and are not needed for prediction."""
        self.model.optimizer.build(self.model.trainable_variables)


def _loss(
    network: ModelSpec, algebra: Algebra, hyperparameters: Hyperparameters, dtype: Dtype, weights: tuple[float, ...]
) -> keras.losses.Loss:
    smoothing = hyperparameters.label_smoothing
    if network.task.multi_label:
        return BinaryCrossentropy(algebra, dtype, positive_weights=weights, label_smoothing=smoothing)
    return CategoricalCrossentropy(algebra, dtype, class_weights=weights, label_smoothing=smoothing)
