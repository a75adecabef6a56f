"""Early stopping against Keras's own, whose rule it follows."""

from collections.abc import Iterator

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpp.learning.early_stopping import EarlyStopping


class Steps(keras.Model):
    """A model of one weight, which counts its epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.add_weight(shape=(), initializer="zeros")
        self.stop_training = False


def run(callback: keras.callbacks.Callback, losses: list[float]) -> tuple[int, float]:
    """Go through epochs as `fit` does; return how many there were, and the weight that is kept."""
    model = Steps()
    callback.set_model(model)
    callback.on_train_begin()
    epochs = 0
    for epoch, loss in enumerate(losses):
        model.weight.assign(epoch + 1.0)
        callback.on_epoch_end(epoch, {"val_loss": loss})
        epochs += 1
        if model.stop_training:
            break
    callback.on_train_end()
    return epochs, float(model.weight)


def telling(losses: list[float]) -> EarlyStopping:
    answers: Iterator[float] = iter(losses)
    return EarlyStopping(lambda _: next(answers), min_delta=0.25, patience=3)


LOSSES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1.5]), min_size=1, max_size=12)


@settings(max_examples=200)
@given(LOSSES)
def test_it_stops_and_keeps_as_keras_does(losses: list[float]):
    """Epochs and kept weights are those of the stock callback, for losses that fall by just the least, or rise."""
    stock = keras.callbacks.EarlyStopping(min_delta=0.25, patience=3, restore_best_weights=True)
    assert run(telling(losses), losses) == run(stock, losses)


@settings(max_examples=50)
@given(LOSSES, st.integers(0, 11))
def test_a_resumed_one_goes_on_as_an_unbroken_one(losses: list[float], cut: int):
    """With its state saved and restored after any epoch it stops at the same, and keeps the same weights."""
    whole = telling(losses)
    epochs, kept = run(whole, losses)
    cut = min(cut, epochs - 1)
    first = telling(losses[:cut])
    model = Steps()
    first.set_model(model)
    for epoch in range(cut):
        model.weight.assign(epoch + 1.0)
        first.on_epoch_end(epoch)
    second = telling(losses[cut:])
    second.restore({name: np.array(values) for name, values in first.state().items()})
    second.set_model(model)
    for epoch in range(cut, epochs):
        model.weight.assign(epoch + 1.0)
        second.on_epoch_end(epoch)
    second.on_train_end()
    assert (second.losses, second.best_epoch, second.stopped) == (whole.losses, whole.best_epoch, whole.stopped)
    assert float(model.weight) == kept


def test_the_loss_is_in_the_history():
    """Other callbacks, and the history, see the loss as val_loss."""
    logs: dict[str, float] = {}
    callback = telling([0.5])
    callback.set_model(Steps())
    callback.on_epoch_end(0, logs)
    assert logs == {"val_loss": pytest.approx(0.5)}
