"""The step of a large batch in small parts, and the step that is not taken."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpp.errors import ModelError
from fedpp.learning.gradient_accumulation import AccumulatingModel


def model(micro_batch: int | None, rate: float = 0.5) -> AccumulatingModel:
    """Return a small network of two inputs, with plain gradient descent, so that a step shows its gradient."""
    keras.utils.set_random_seed(3)
    first, second = keras.Input((4,), dtype="float64"), keras.Input((2,), dtype="float64")
    x = keras.layers.Dense(3, activation="tanh", dtype="float64")(first)
    x = keras.layers.Concatenate(dtype="float64")([x, second])
    built = AccumulatingModel([first, second], keras.layers.Dense(2, dtype="float64")(x))
    built.micro_batch = micro_batch
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, dtype="float64")
    built.compile(keras.optimizers.SGD(rate), loss, jit_compile=False)
    return built


def batch(size: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    generator = np.random.default_rng(size)
    labels = np.eye(2)[generator.integers(2, size=size)]
    return (generator.normal(size=(size, 4)), generator.normal(size=(size, 2))), labels


@settings(max_examples=12)
@given(st.integers(1, 13), st.integers(1, 14))
def test_the_parts_give_the_whole_batch_s_step(size: int, part: int):
    """Loss and weights after a step are those of Keras's own step on the whole batch, whatever the parts."""
    inputs, labels = batch(size)
    parts, whole = model(part), model(None)
    stock = keras.Model(whole.inputs, whole.outputs)
    stock.compile(keras.optimizers.SGD(0.5), whole.loss, jit_compile=False)
    losses = [float(m.train_on_batch(inputs, labels)) for m in (parts, stock)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-13)
    for ours, theirs in zip(parts.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)


def test_the_whole_batch_is_keras_s_step_to_the_bit():
    """Without parts the step is Keras's own."""
    inputs, labels = batch(6)
    ours, shared = model(None), model(None)
    stock = keras.Model(shared.inputs, shared.outputs)
    stock.compile(keras.optimizers.SGD(0.5), shared.loss, jit_compile=False)
    for one in (ours, stock):
        one.fit(inputs, labels, batch_size=6, epochs=3, verbose=0)
    for left, right in zip(ours.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("part", [None, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_not_taken(part: int | None, bad: float):
    """Weights and step count stay, to the bit, and the loss is not a number; the next good batch is learned from."""
    inputs, labels = batch(5)
    ours = model(part)
    before = [w.copy() for w in ours.get_weights()]
    spoilt = (inputs[0], np.where(np.arange(5)[:, None] == 4, bad, inputs[1]))
    assert np.isnan(ours.train_on_batch(spoilt, labels))
    for left, right in zip(ours.get_weights(), before, strict=True):
        np.testing.assert_array_equal(left, right)
    assert int(ours.optimizer.iterations) == 0
    ours.reset_metrics()
    assert np.isfinite(ours.train_on_batch(inputs, labels))
    assert all((left != right).any() for left, right in zip(ours.get_weights(), before, strict=True))


@pytest.mark.parametrize("part", [None, 2])
def test_a_gradient_that_is_not_finite_is_not_taken_though_the_loss_is(part: int | None):
    """At the kink of a root the loss is 0 and its derivative is no number: no weight moves, and the loss says so."""
    inputs, labels = batch(5)
    ours = model(part)
    ours.compile(keras.optimizers.SGD(0.5), lambda _, z: keras.ops.sqrt(keras.ops.sum(z * z)), jit_compile=False)
    ours.set_weights([np.zeros(w.shape) for w in ours.get_weights()])
    assert float(ours.loss(labels, ours(list(inputs)))) == 0
    assert np.isnan(ours.train_on_batch(inputs, labels))
    assert all(not w.any() for w in ours.get_weights())


def test_it_is_saved_and_loaded(tmp_path):
    """A `.keras` file holds the model as one that accumulates, with its part and its weights."""
    ours = model(3)
    ours.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, AccumulatingModel)
    assert loaded.micro_batch == 3
    inputs, _ = batch(4)
    np.testing.assert_array_equal(loaded.predict_on_batch(list(inputs)), ours.predict_on_batch(list(inputs)))


def test_what_the_step_would_not_heed_is_refused():
    """Weights of examples, metrics, penalties and a loss by name are no part of the step: one line says so."""
    inputs, labels = batch(4)
    ours, penalized = model(None), model(None)
    penalized.layers[-1].kernel.regularizer = keras.regularizers.L2(0.1)
    measured, named = model(None), model(None)
    measured.compile("sgd", ours.loss, metrics=["accuracy"], jit_compile=False)
    named.compile("sgd", "categorical_crossentropy", jit_compile=False)
    before = ours.get_weights()
    for refusing, weights in ((ours, np.zeros(4)), (penalized, None), (measured, None), (named, None)):
        with pytest.raises(ModelError, match="is trained by one loss object"):
            refusing.train_on_batch(inputs, labels, sample_weight=weights)
    for left, right in zip(ours.get_weights(), before, strict=True):
        np.testing.assert_array_equal(left, right)
