"""Early stopping by a loss from outside: on ciphertext only the key's owner (the vault) can compute it."""

from collections.abc import Callable

import keras
import numpy as np
from numpy.typing import NDArray

from fedpp.config.hyperparameters import MIN_DELTA, PATIENCE

State = dict[str, NDArray[np.generic]]


class EarlyStopping(keras.callbacks.Callback):  # type: ignore[misc]
    """Callback that stops when a loss has not fallen by `min_delta` for `patience` epochs, and keeps the best weights.

    It follows `keras.callbacks.EarlyStopping(min_delta, patience, restore_best_weights=True)`, whose state cannot be
    saved. This state is part of checkpoints, so a resumed training stops at the same epoch as an uninterrupted one.
    """

    def __init__(self, loss: Callable[[int], float], *, min_delta: float = MIN_DELTA, patience: int = PATIENCE) -> None:
        """Call `loss(epoch)` after each epoch, counted from 1; it returns the loss of the validation predictions."""
        super().__init__()
        self._loss, self.min_delta, self.patience = loss, min_delta, patience
        self.losses: list[float] = []
        self.best_epoch = 0  # counted from 1
        self._best: list[NDArray[np.generic]] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Get the loss, and keep the weights if it is the best."""
        loss = float(self._loss(len(self.losses) + 1))
        if logs is not None:
            logs["val_loss"] = loss
        if not self.losses or loss < self.losses[self.best_epoch - 1] - self.min_delta:
            self.best_epoch, self._best = len(self.losses) + 1, self.model.get_weights()
        self.losses.append(loss)
        self.model.stop_training = self.stopped

    @property
    def stopped(self) -> bool:
        """Return whether training must stop."""
        return len(self.losses) - self.best_epoch >= self.patience

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Set the best epoch's weights."""
        self.keep_best(self.model)

    def keep_best(self, model: keras.Model) -> None:
        """Set the best epoch's weights, if an epoch is finished."""
        if self._best:
            model.set_weights(self._best)

    def state(self) -> State:
        """Return losses, best epoch and best weights."""
        weights = {f"best/{number:04}": values for number, values in enumerate(self._best)}
        return {"losses": np.array(self.losses), "best_epoch": np.array(self.best_epoch), **weights}

    def restore(self, state: State) -> None:
        """Set what `state` returned."""
        self.losses = [float(loss) for loss in state["losses"]]
        self.best_epoch = int(state["best_epoch"])
        self._best = [state[name] for name in sorted(state) if name.startswith("best/")]
