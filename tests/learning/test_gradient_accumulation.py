"""Gradient accumulation: the step of a batch in parts, and skipped non-finite steps."""

import keras
import numpy as np
import pytest
from hypothesis import given
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


def stock(whole: AccumulatingModel) -> keras.Model:
    """Return a model of the same layers, and so of the same weights, with Keras's own step."""
    made = keras.Model(whole.inputs, whole.outputs)
    made.compile(keras.optimizers.SGD(0.5), whole.loss, jit_compile=False)
    return made


def check_parts(parts: AccumulatingModel, whole: keras.Model, size: int) -> None:
    """Compare loss and weights after a step in parts with those of Keras's own step on the whole batch."""
    losses = []
    for one in (parts, whole):
        one.reset_metrics()
        losses.append(float(one.train_on_batch(*batch(size))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-13)
    for ours, theirs in zip(parts.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.usefixtures("eagerly")
def test_parts_give_the_step_of_the_whole_batch():
    """Loss and weights after a step are the same for any size of parts."""
    parts, whole = model(None), stock(model(None))
    start = whole.get_weights()

    @given(st.integers(1, 13), st.integers(1, 14))
    def check(size: int, part: int) -> None:
        parts.micro_batch = part
        for one in (parts, whole):
            one.set_weights(start)
        check_parts(parts, whole, size)

    check()


@pytest.mark.parametrize("size", [6, 7])
def test_traced_parts_give_the_step_of_the_whole_batch(size: int):
    """The same holds for a traced step, with a smaller last part or without one."""
    check_parts(model(3), stock(model(None)), size)


def test_one_part_gives_keras_s_step_bit_for_bit():
    """Without parts the step is Keras's own."""
    inputs, labels = batch(6)
    ours, theirs = model(None), stock(model(None))
    for one in (ours, theirs):
        one.fit(inputs, labels, batch_size=6, epochs=3, verbose=0)
    for left, right in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(("part", "bad"), [(None, np.nan), (2, np.inf)])
def test_a_non_finite_step_is_skipped(part: int | None, bad: float):
    """Weights and step count stay bit for bit, and the loss is NaN; the next good batch is trained."""
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


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("part", [None, 2])
def test_a_non_finite_gradient_with_finite_loss_is_skipped(part: int | None):
    """The square root at 0 has loss 0 and derivative NaN: no weight changes, and the reported loss is NaN."""
    inputs, labels = batch(5)
    ours = model(part)
    ours.compile(keras.optimizers.SGD(0.5), lambda _, z: keras.ops.sqrt(keras.ops.sum(z * z)), jit_compile=False)
    ours.set_weights([np.zeros(w.shape) for w in ours.get_weights()])
    assert float(ours.loss(labels, ours(list(inputs)))) == 0
    assert np.isnan(ours.train_on_batch(inputs, labels))
    assert all(not w.any() for w in ours.get_weights())


def test_it_is_saved_and_loaded(tmp_path):
    """A `.keras` file keeps the model's class, micro-batch and weights."""
    ours = model(3)
    ours.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, AccumulatingModel)
    assert loaded.micro_batch == 3
    inputs, _ = batch(4)
    np.testing.assert_array_equal(loaded.predict_on_batch(list(inputs)), ours.predict_on_batch(list(inputs)))


def test_settings_without_effect_are_rejected():
    """Sample weights, metrics, penalties and a loss by name are not part of the step and raise ModelError."""
    inputs, labels = batch(4)
    ours, penalized = model(None), model(None)
    penalized.layers[-1].kernel.regularizer = keras.regularizers.L2(0.1)
    measured, named = model(None), model(None)
    measured.compile("sgd", ours.loss, metrics=["accuracy"], jit_compile=False)
    named.compile("sgd", "categorical_crossentropy", jit_compile=False)
    before = ours.get_weights()
    for refusing, weights in ((ours, np.zeros(4)), (penalized, None), (measured, None), (named, None)):
        with pytest.raises(ModelError, match="needs one loss object and nothing else"):
            refusing.train_on_batch(inputs, labels, sample_weight=weights)
    for left, right in zip(ours.get_weights(), before, strict=True):
        np.testing.assert_array_equal(left, right)
