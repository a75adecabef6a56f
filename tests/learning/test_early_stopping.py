"""Early stopping, compared with Keras's own callback."""

from collections.abc import Iterator

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpp.learning.early_stopping import EarlyStopping


class Steps(keras.Model):
    """A model of one weight, which holds the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.add_weight(shape=(), initializer="zeros")
        self.stop_training = False


def run(callback: keras.callbacks.Callback, losses: list[float]) -> tuple[int, float]:
    """Call the callback for each epoch, as `fit` does; return the number of epochs and the final weight."""
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


def stopping(losses: list[float]) -> EarlyStopping:
    """Return a callback that gets these losses."""
    remaining: Iterator[float] = iter(losses)
    return EarlyStopping(lambda _: next(remaining), min_delta=0.25, patience=3)


LOSSES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1.5]), min_size=1, max_size=12)


@given(LOSSES)
def test_it_stops_and_keeps_weights_as_keras_does(losses: list[float]):
    """Epochs and kept weights are those of the stock callback, for any losses."""
    stock = keras.callbacks.EarlyStopping(min_delta=0.25, patience=3, restore_best_weights=True)
    assert run(stopping(losses), losses) == run(stock, losses)


@given(LOSSES, st.integers(0, 11))
def test_resuming_does_not_change_the_result(losses: list[float], cut: int):
    """With its state saved and restored after any epoch, it stops at the same epoch with the same weights."""
    whole = stopping(losses)
    epochs, kept = run(whole, losses)
    cut = min(cut, epochs - 1)
    first = stopping(losses[:cut])
    model = Steps()
    first.set_model(model)
    for epoch in range(cut):
        model.weight.assign(epoch + 1.0)
        first.on_epoch_end(epoch)
    second = stopping(losses[cut:])
    second.restore({name: np.array(values) for name, values in first.state().items()})
    second.set_model(model)
    for epoch in range(cut, epochs):
        model.weight.assign(epoch + 1.0)
        second.on_epoch_end(epoch)
    second.on_train_end()
    assert (second.losses, second.best_epoch, second.stopped) == (whole.losses, whole.best_epoch, whole.stopped)
    assert float(model.weight) == kept


def test_the_loss_is_in_the_history():
    """Other callbacks and the history get the loss as val_loss."""
    logs: dict[str, float] = {}
    callback = stopping([0.5])
    callback.set_model(Steps())
    callback.on_epoch_end(0, logs)
    assert logs == {"val_loss": pytest.approx(0.5)}
