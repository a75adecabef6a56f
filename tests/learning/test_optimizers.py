"""Encrypted optimizers, compared with stock Keras and a hand-written loop by slot; bounds of decoys."""

from collections.abc import Callable
from functools import partial
from io import BytesIO
from math import inf
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import h5py
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from stock_layers import algebra, rows_of, slots_of

from fedpp.cipher.components import Algebra
from fedpp.errors import ConfigError, DomainMismatchError, KeyFileError, ModelError
from fedpp.learning import key_scope
from fedpp.learning.decoys import initial_deviation
from fedpp.learning.encrypted_optimizer import EncryptedOptimizer
from fedpp.learning.layers import Dense, FromRows, ToRows
from fedpp.learning.losses import CategoricalCrossentropy
from fedpp.learning.optimizers import SGD, Adam, AdamW

SHAPES = [(3, 4), (4,), (2, 2, 1, 3)]
STEPS = 6


Make = Callable[..., Any]
Stock = keras.optimizers
RULES: dict[str, tuple[Make, Make]] = {
    "sgd": (SGD, Stock.SGD),
    "momentum": (partial(SGD, momentum=0.9), partial(Stock.SGD, momentum=0.9)),
    "nesterov": (partial(SGD, momentum=0.9, nesterov=True), partial(Stock.SGD, momentum=0.9, nesterov=True)),
    "adam": (Adam, Stock.Adam),
    "adamw": (partial(AdamW, weight_decay=0.3), partial(Stock.AdamW, weight_decay=0.3)),
}
CLIPPINGS: list[dict[str, float]] = [{}, {"clipvalue": 0.4}, {"clipnorm": 1.1}, {"global_clipnorm": 1.7}]
CASES = pytest.mark.parametrize("rule", RULES)


def variables(of: Algebra, values: list[np.ndarray], dtype: str) -> list[keras.Variable]:
    """Return the variables of weights whose slots are `[n, *shape]`."""
    return [keras.Variable(part.astype(dtype)) for slots in values for part in of.from_slots(tuple(slots))]


def derivatives(of: Algebra, slots: list[np.ndarray], dtype: str) -> list[Any]:
    """Return the derivatives by coordinates, as autodiff would, for derivatives `[n, *shape]` by slots."""
    basis = np.array([of.from_slots(tuple(row)) for row in np.eye(of.n)])  # x = s B, so dL/dx = dL/ds inv(B)^T
    return [
        keras.ops.convert_to_tensor(part.astype(dtype))
        for slot in slots
        for part in np.einsum("jk,k...->j...", np.linalg.inv(basis), slot)
    ]


def all_slots(of: Algebra, weights: list[keras.Variable]) -> list[np.ndarray]:
    """Return the slots `[n, *shape]` of each weight."""
    return [slots_of(of, weights[i : i + of.n]) for i in range(0, len(weights), of.n)]


def drawn(n: int, shapes: list[tuple[int, ...]], seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(n, *shape)) for shape in shapes]


def trained(
    optimizer: EncryptedOptimizer, n: int, shapes: list[tuple[int, ...]] = SHAPES, dtype: str = "float64"
) -> list[np.ndarray]:
    """Return the slots of the weights after some steps with random gradients."""
    weights = variables(optimizer.algebra, drawn(n, shapes, 0), dtype)
    for step in range(STEPS):
        optimizer.apply(derivatives(optimizer.algebra, drawn(n, shapes, 1 + step), dtype), weights)
    return all_slots(optimizer.algebra, weights)


def by_hand(rule: str, clipping: dict[str, float], rate: float, n: int) -> list[np.ndarray]:
    """Return the same by textbook formulas in NumPy, one slot at a time."""
    after = [np.empty((n, *shape)) for shape in SHAPES]
    for k in range(n):
        weights = [w[k] for w in drawn(n, SHAPES, 0)]
        first, second = ([np.zeros_like(w) for w in weights] for _ in range(2))
        for t in range(1, STEPS + 1):
            gradients = [g[k] for g in drawn(n, SHAPES, t)]
            total = np.sqrt(sum(np.sum(g**2) for g in gradients))
            for i, g in enumerate(gradients):
                if "clipvalue" in clipping:
                    g = np.clip(g, -clipping["clipvalue"], clipping["clipvalue"])  # noqa: PLW2901
                if "clipnorm" in clipping:
                    g = g * min(1.0, clipping["clipnorm"] / np.linalg.norm(g))  # noqa: PLW2901
                if "global_clipnorm" in clipping:
                    g = g * min(1.0, clipping["global_clipnorm"] / total)  # noqa: PLW2901
                if rule == "adamw":
                    weights[i] = weights[i] - rate * 0.3 * weights[i]
                if rule.startswith("adam"):
                    first[i] = 0.9 * first[i] + 0.1 * g
                    second[i] = 0.999 * second[i] + 0.001 * g**2
                    alpha = rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
                    weights[i] = weights[i] - alpha * first[i] / (np.sqrt(second[i]) + 1e-7)
                else:
                    first[i] = (0.0 if rule == "sgd" else 0.9) * first[i] - rate * g
                    weights[i] = weights[i] + (0.9 * first[i] - rate * g if rule == "nesterov" else first[i])
        for i, weight in enumerate(weights):
            after[i][k] = weight
    return after


EVERY = [
    pytest.param(rule, clipping, n, marks=() if not clipping or rule == "adamw" else pytest.mark.slow)
    for rule in RULES
    for clipping in CLIPPINGS
    for n in (1, 2, 3)
]


@pytest.mark.parametrize(("rule", "clipping", "n"), EVERY)
def test_steps_are_those_of_keras_and_of_the_textbook(rule: str, clipping: dict[str, float], n: int):
    """In every slot steps equal stock Keras's up to its float32 scalars, and the textbook's up to rounding."""
    rate = float(np.float32(0.05))  # Keras keeps it in float32
    ours, stock = RULES[rule]
    moved = trained(ours(algebra(n), rate, decoy_bound=inf, **clipping), n)
    for mine, expected in zip(moved, by_hand(rule, clipping, rate, n), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-12)
    for k in range(n):
        optimizer = stock(rate, **clipping)
        weights = [keras.Variable(w[k]) for w in drawn(n, SHAPES, 0)]
        for step in range(STEPS):
            gradients = [keras.ops.convert_to_tensor(g[k]) for g in drawn(n, SHAPES, 1 + step)]
            optimizer.apply(gradients, weights)
        for mine, expected in zip(moved, weights, strict=True):
            np.testing.assert_allclose(mine[k], expected, rtol=0, atol=2e-6)


@settings(max_examples=settings().max_examples // 2)
@given(
    st.sampled_from(sorted(RULES)),
    st.sampled_from(CLIPPINGS),
    st.integers(2, 3),
    st.lists(arrays.array_shapes(max_dims=4, max_side=4), min_size=1, max_size=3),
)
def test_shapes_do_not_matter(rule: str, clipping: dict[str, float], n: int, shapes: list[tuple[int, ...]]):
    """For weights of any shape, the message's slot takes the steps of the plaintext reference."""
    make = RULES[rule][0]
    moved = trained(make(algebra(n), 0.05, **clipping), n, shapes)
    reference, weights = make(algebra(1), 0.05, **clipping), [keras.Variable(w[0]) for w in drawn(n, shapes, 0)]
    for step in range(STEPS):
        reference.apply([keras.ops.convert_to_tensor(g[0]) for g in drawn(n, shapes, 1 + step)], weights)
    for mine, expected in zip(moved, weights, strict=True):
        np.testing.assert_allclose(mine[0], expected, rtol=0, atol=1e-11)


@CASES
def test_float32_stays_within_its_rounding(rule: str):
    """In float32 the steps are those of float64 up to rounding."""
    make = RULES[rule][0]
    single, double = (trained(make(algebra(2), 0.05), 2, dtype=dtype) for dtype in ("float32", "float64"))
    for low, high in zip(single, double, strict=True):
        np.testing.assert_allclose(low, high, rtol=0, atol=2e-5)


def test_a_schedule_sets_the_rate_of_each_step():
    """A decaying learning rate gives Keras's steps under the same schedule."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    moved = trained(SGD(algebra(2), schedule), 2)
    weights = [keras.Variable(w[0]) for w in drawn(2, SHAPES, 0)]
    stock = keras.optimizers.SGD(schedule)
    for step in range(STEPS):
        stock.apply([keras.ops.convert_to_tensor(g[0]) for g in drawn(2, SHAPES, 1 + step)], weights)
    for mine, expected in zip(moved, weights, strict=True):
        np.testing.assert_allclose(mine[0], expected, rtol=0, atol=1e-6)


def test_weights_can_be_excluded_from_decay():
    """Keras's `exclude_from_weight_decay` by name holds for the n variables of a ciphertext."""
    decayed, kept = AdamW(algebra(2), 0.05, weight_decay=0.3), AdamW(algebra(2), 0.05, weight_decay=0.3)
    kept.exclude_from_weight_decay(var_names=["variable"])
    plain = trained(Adam(algebra(2), 0.05), 2)
    for mine, expected in zip(trained(kept, 2), plain, strict=True):
        np.testing.assert_array_equal(mine, expected)
    assert np.abs(trained(decayed, 2)[0] - plain[0]).max() > 1e-2


def test_restart_resets_all_but_the_learning_rate():
    """After a restart the steps are those of a new optimizer at the current rate."""
    used, new = (SGD(algebra(2), rate, momentum=0.9) for rate in (0.5, 0.1))
    gradients = drawn(2, SHAPES, 1)
    weights = variables(used.algebra, drawn(2, SHAPES, 0), "float64")
    used.apply(derivatives(used.algebra, gradients, "float64"), weights)
    used.learning_rate = 0.1
    used.restart()
    for variable, part in zip(weights, variables(used.algebra, drawn(2, SHAPES, 0), "float64"), strict=True):
        variable.assign(part)
    for step in range(STEPS):
        used.apply(derivatives(used.algebra, drawn(2, SHAPES, 1 + step), "float64"), weights)
    for mine, expected in zip(all_slots(used.algebra, weights), trained(new, 2), strict=True):
        np.testing.assert_array_equal(mine, expected)


def network(of: Algebra, optimizer: EncryptedOptimizer, seed: int = 0) -> keras.Model:
    """Return a small compiled network; its weights are drawn."""
    rows = keras.Input((3, of.n), dtype="float64")
    x = Dense(of, 4, activation="tanh", dtype="float64")(FromRows(of, dtype="float64")(rows))
    model = keras.Model(rows, ToRows(of, dtype="float64")(Dense(of, 2, dtype="float64")(x)))
    shapes = [tuple(v.shape) for v in model.trainable_variables[:: of.n]]
    parts = [np.asarray(v) for v in variables(of, drawn(of.n, shapes, seed), "float64")]
    model.set_weights(parts)
    loss = CategoricalCrossentropy(of, "float64", label_smoothing=0.1)
    model.compile(optimizer, loss, jit_compile=False, run_eagerly=True)  # tracing takes longer
    return model


def batch(of: Algebra, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return encrypted inputs `[8, 3, n]` and one-hot labels `[8, 2, n]`."""
    generator = np.random.default_rng(seed)
    inputs, labels = generator.normal(size=(of.n, 8, 3)), np.eye(2)[generator.integers(2, size=(of.n, 8))]
    return rows_of(of, inputs), rows_of(of, labels)


@pytest.mark.parametrize(("rule", "proximal"), [("nesterov", 0.0), ("adamw", 0.0), ("adamw", 0.7)])
def test_a_saved_model_resumes_with_the_same_steps(rule: str, proximal: float, tmp_path: Path):
    """A compiled model, loaded from a `.keras` file under its key, takes the same steps as the saved one."""
    of, path = algebra(2), tmp_path / "model.keras"
    model = network(of, RULES[rule][0](of, 0.05, global_clipnorm=0.3, decoy_bound=3.0, proximal=proximal))
    for step in range(STEPS):
        model.train_on_batch(*batch(of, step))
    model.save(path)
    with key_scope.under(of):
        read = keras.models.load_model(path)
    assert read.optimizer.get_config() == model.optimizer.get_config()
    assert int(read.optimizer.iterations) == STEPS
    for step in range(STEPS, 2 * STEPS):
        for one in (model, read):
            one.train_on_batch(*batch(of, step))
    for mine, expected in zip(read.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-12)


def test_a_file_contains_no_key(tmp_path: Path):
    """A file has moments as rows: no entry is the message's moment, and only the domain is named."""
    of, path = algebra(2), tmp_path / "model.keras"
    model = network(of, Adam(of, 0.05))
    model.train_on_batch(*batch(of, 0))
    model.save(path)
    message = np.asarray(model.optimizer.moment("momentum", 0))
    entries: list[np.ndarray] = []
    with ZipFile(path) as archive, h5py.File(BytesIO(archive.read("model.weights.h5"))) as file:
        file["optimizer"].visititems(
            lambda _, item: entries.append(item[()]) if isinstance(item, h5py.Dataset) else None
        )
        config = archive.read("config.json").decode()
    rows = [entry for entry in entries if entry.shape == (2, *message.shape, 2)]
    assert len(rows) == 2  # of the first kernel: the first moment and the second
    assert all(np.abs(row[0, ..., k] - message).max() > 1e-6 for row in rows for k in range(2))
    np.testing.assert_allclose(of.to_slots(of.from_rows(rows[0][0]))[0], message, rtol=1e-9)
    assert of.domain in config
    for number in np.concatenate([of._basis.ravel(), of._from_rows.ravel(), [of.d, of._root_d]]):
        assert f"{number:.10g}"[:8] not in config


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments_of_any_size_survive_saving_bit_for_bit(dtype: str):
    """Rows keep the message's second moments exactly, even if the decoys' are 1e12 times as large."""
    of = algebra(2)
    saved, read = Adam(of), Adam(of)
    for one in (saved, read):
        one.build(variables(of, drawn(2, SHAPES, 0), dtype))
    generator = np.random.default_rng(3)
    for i, variable in enumerate(saved._moments["velocity"]):
        size = 1e-12 if i % 2 == 0 else 1.0
        variable.assign(size * generator.uniform(0.1, 1, variable.shape))
    store: dict[str, np.ndarray] = {}
    saved.save_own_variables(store)
    read.load_own_variables(store)
    for mine, expected in zip(read.variables, saved.variables, strict=True):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: Adam(a, -0.1), "learning_rate must be at least 0 .* got -0.1"),
        (lambda a: Adam(a, float("nan")), "learning_rate must be"),
        (lambda a: AdamW(a, weight_decay=-1.0), "weight_decay must be at least 0"),
        (lambda a: AdamW(a, weight_decay=None), "AdamW needs a weight_decay"),
        (lambda a: SGD(a, clipnorm=0.0), "clipnorm must be above 0"),
        (lambda a: SGD(a, momentum=1.0), "momentum must be at least 0 and below 1"),
        (lambda a: Adam(a, beta_2=1.5), "beta_2 must be"),
        (lambda a: Adam(a, decoy_bound=0.0), "decoy_bound must be above 0"),
    ],
)
def test_settings_out_of_range_are_rejected(make: Make, message: str):
    """A setting out of range is a ConfigError that names it and its value."""
    with pytest.raises(ConfigError, match=message):
        make(algebra(2))


def test_two_clippings_are_rejected_as_by_keras():
    """Two clippings at once are Keras's own ValueError."""
    with pytest.raises(ValueError, match="Only one of `clipnorm`"):
        Adam(algebra(2), clipnorm=1.0, clipvalue=1.0)


def test_another_domain_is_rejected():
    """A configuration is read under the key of its domain and n only; plaintext needs no key."""
    config = Adam(algebra(2)).get_config()
    with pytest.raises(KeyFileError, match="needs the evaluation key"):
        Adam.from_config(config)
    with key_scope.under(algebra(2, epoch=2)), pytest.raises(DomainMismatchError, match="belongs to domain"):
        Adam.from_config(config)
    assert Adam.from_config(Adam(algebra(1), 0.25).get_config()).learning_rate == 0.25


def test_weights_that_do_not_fit_are_rejected():
    """Incomplete ciphertexts, two dtypes, and a state of other weights raise ModelError."""
    of = algebra(2)
    weights = variables(of, drawn(2, SHAPES, 0), "float64")
    with pytest.raises(ModelError, match="weights of 2 variables each"):
        Adam(of).build(weights[:3])
    with pytest.raises(ModelError, match="float32, float64"):
        Adam(of).build([weights[0], keras.Variable(np.zeros(3, np.float32))])
    saved, other = Adam(of), Adam(of)
    saved.build(weights)
    other.build(weights[:4])
    store: dict[str, np.ndarray] = {}
    saved.save_own_variables(store)
    with pytest.raises(ModelError, match="has a state of"):
        other.load_own_variables(store)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", [SGD, pytest.param(Adam, marks=pytest.mark.slow), AdamW])
def test_a_bound_that_is_not_reached_changes_no_bit(rule: type[SGD | Adam], dtype: str):
    """Weights with a bound that no decoy reaches, and without a bound, are equal bit for bit."""
    wide, none = (trained(rule(algebra(2), 0.05, decoy_bound=bound), 2, dtype=dtype) for bound in (50.0, inf))
    for mine, expected in zip(wide, none, strict=True):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("n", [2, 3])
def test_decoys_are_bounded_and_the_message_is_not(n: int):
    """With huge gradients the root mean square of a decoy ends at the bound; the message takes its full step."""
    of = algebra(n)
    optimizer = SGD(of, 1.0, decoy_bound=2.0)
    weights = variables(of, [100 * w for w in drawn(n, SHAPES, 0)], "float64")
    gradients = [1000 * g for g in drawn(n, SHAPES, 1)]
    optimizer.apply(derivatives(of, gradients, "float64"), weights)
    for shape, start, gradient, moved in zip(
        SHAPES, drawn(n, SHAPES, 0), gradients, all_slots(of, weights), strict=True
    ):
        np.testing.assert_allclose(moved[0], 100 * start[0] - gradient[0], rtol=1e-12, atol=1e-10)
        deviations = np.sqrt(np.mean(moved[1:] ** 2, axis=tuple(range(1, moved.ndim))))
        np.testing.assert_allclose(deviations, 2.0 * initial_deviation(shape), rtol=1e-9)


def test_the_unit_of_the_bound_is_the_initial_deviation():
    """The unit is the root mean square of Keras's Glorot initial weights, and of ones."""
    for shape in [(300, 200), (3, 3, 20, 30)]:
        draw = np.asarray(keras.initializers.GlorotUniform(seed=1)(shape), np.float64)
        assert initial_deviation(shape) == pytest.approx(np.sqrt(np.mean(draw**2)), rel=2e-2)
    assert initial_deviation((7,)) == 1.0
