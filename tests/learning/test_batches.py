"""Batches: order, content, and prefetching."""

from threading import Condition

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from fedpp.errors import DatasetError
from fedpp.learning.batches import AHEAD, Batches, Reader

SECONDS = 20.0  # maximum wait for a prefetched batch


class Shelf:
    """A reader of one number a sequence, which counts its batches and can fail at one of them."""

    def __init__(self, failing: int | None = None) -> None:
        self.batches = 0
        self.changed = Condition()
        self._failing = failing

    def __call__(self, indices: NDArray[np.integer]) -> NDArray[np.float64]:
        if len(indices):
            with self.changed:
                self.batches += 1
                self.changed.notify_all()
            if self.batches == self._failing:
                raise DatasetError("shard frames-00001.npy is damaged: restore it")
        return indices.astype(np.float64)[:, None]

    def reach(self, batches: int, seconds: float = SECONDS) -> bool:
        """Wait until this many batches are read; return whether they are."""
        with self.changed:
            return self.changed.wait_for(lambda: self.batches >= batches, seconds)


def zeros(indices: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.zeros((len(indices), 1))


def model(seen: list[object] | None = None) -> keras.Model:
    """Return a compiled linear model of one input; `seen` gets the input's dtype and static shape."""

    def look(x: object) -> object:
        if seen is not None:
            seen.append((x.dtype.name, tuple(x.shape)))
        return x

    x = keras.Input((1,), dtype="float64")
    y = keras.layers.Dense(1, dtype="float64")(keras.layers.Lambda(look, dtype="float64")(x))
    linear = keras.Model([x], y)
    linear.compile("sgd", keras.losses.MeanSquaredError(dtype="float64"), jit_compile=False)
    linear.optimizer.learning_rate = 1e-6
    return linear


def epochs(seed: tuple[int, ...] | None, indices: NDArray[np.integer]) -> list[list[int]]:
    """Return the order of two epochs."""
    order = [int(i) for batch in Batches([Shelf()], None, indices, 6, seed).order(2) for i in batch]
    return [order[: len(indices)], order[len(indices) :]]


def test_batches_cover_every_sequence_once_in_the_seeds_order():
    """Each epoch is a permutation that depends on seed and epoch; without a seed the order is as given."""
    indices = np.arange(10, 30)
    first, second = epochs((1, 2), indices)
    assert sorted(first) == sorted(second) == list(indices)
    assert first != second
    assert epochs((1, 2), indices) == [first, second]
    assert epochs((1, 3), indices)[0] != first
    assert epochs(None, indices) == [list(indices)] * 2


def test_the_order_of_a_seed_is_fixed():
    """These are the permutations of the first two epochs; later versions must not change them."""
    assert epochs((4, 1), np.arange(6)) == [[3, 2, 4, 1, 5, 0], [5, 4, 2, 0, 1, 3]]


def test_finished_epochs_are_skipped():
    """After 2 epochs the third has its own order, and any batch of any epoch can be read again."""
    batches = Batches([Shelf()], Shelf(), np.arange(10), 4, (1, 2))
    whole = [batch.tolist() for batch in batches.order(3)]
    assert [batch.tolist() for batch in batches.order(3, 2)] == whole[6:]
    assert list(batches.order(3, 3)) == []
    for epoch, number in ((1, 0), (2, 2), (3, 1)):
        (values,), labels = batches.batch(epoch, number)
        assert values[:, 0].tolist() == labels[:, 0].tolist() == whole[3 * (epoch - 1) + number]


def test_fit_trains_on_the_batches_in_their_order():
    """`fit` reads every epoch once in its order, with a smaller last batch, and returns a loss for each epoch."""
    read: list[list[int]] = []

    def reader(indices: NDArray[np.integer]) -> NDArray[np.float64]:
        read.append(indices.tolist())
        return zeros(indices)

    data = Batches([reader], zeros, np.arange(7), 3, (5,))
    assert len(data) == 3
    losses = data.fit(model(), 2)
    assert read == [[], *(batch.tolist() for batch in data.order(2))]
    assert [len(batch) for batch in read[1:]] == [3, 3, 1] * 2
    assert len(losses) == 2


def test_float64_arrives_as_float64_and_with_its_shape():
    """Neither Keras nor TensorFlow casts a reader's values; all axes but the batch's have a static size."""
    seen: list[object] = []
    shelf = Shelf()
    data = Batches([shelf], lambda i: np.full((len(i), 1), 1 / 3), np.arange(6), 2, (0,))
    linear = model(seen)
    seen.clear()
    losses = data.fit(linear, 1)
    assert set(seen) == {("float64", (None, 1))}
    linear.set_weights([np.ones((1, 1)), np.zeros(1)])
    outputs = Batches([lambda i: shelf(i) + 2.0**-40], None, np.arange(6), 4).predict(linear)
    np.testing.assert_array_equal(outputs[:, 0], np.arange(6) + 2.0**-40)
    assert np.isfinite(losses[0])


def test_the_next_batches_are_prefetched_during_the_step():
    """During a step the next batches are read, also of the next epoch, but not more than the limit."""
    shelf, missing, most = Shelf(), [], []
    steps = 10

    class Step(keras.callbacks.Callback):
        done = 0

        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            self.done += 1
            if not shelf.reach(min(self.done + AHEAD, 2 * steps)):
                missing.append(self.done)
            shelf.reach(self.done + AHEAD + 2, 0.05)  # more than that is not read
            most.append(shelf.batches - self.done)

    Batches([shelf], zeros, np.arange(2 * steps), 2, (0,)).fit(model(), 2, [Step()])
    assert missing == []
    assert len(most) == 2 * steps
    assert max(most) <= AHEAD + 1
    assert shelf.batches == 2 * steps, "nothing is read twice"


@pytest.mark.parametrize("failing", [1, 10])
def test_a_reader_s_error_is_reraised(failing: int, capsys: pytest.CaptureFixture[str]):
    """`fit` and `predict` raise the reader's own error, without TensorFlow's error as context."""

    def fit(shelf: Reader) -> object:
        return Batches([shelf], zeros, np.arange(20), 4, (0,)).fit(model(), 2)

    def predict(shelf: Reader) -> object:
        return Batches([shelf], None, np.arange(20), 2).predict(model())

    for use in (fit, predict):
        with pytest.raises(DatasetError, match="shard frames-00001.npy is damaged: restore it") as raised:
            use(Shelf(failing))
        assert raised.value.__suppress_context__
        assert raised.value.__cause__ is None
    assert capsys.readouterr() == ("", "")


def test_other_errors_of_tensorflow_are_unchanged():
    """An error of the step, not of a reader, is TensorFlow's own."""

    class Refusing(keras.Model):
        def call(self, inputs: tuple[tf.Tensor]) -> tf.Tensor:
            (x,) = inputs
            with tf.control_dependencies([tf.debugging.assert_less(x, tf.cast(2, x.dtype), "too large")]):
                return tf.identity(x)

    with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        Batches([Shelf()], None, np.arange(3), 3).predict(Refusing(dtype="float64"))
