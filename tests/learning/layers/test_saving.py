"""Layers in configurations and `.keras` files: they contain no key and load under the key of the scope."""

import inspect
import io
import json
import warnings
import zipfile
from contextlib import nullcontext
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stock_layers import CASES, DTYPE, Case, algebra

from fedpp.cipher.components import Algebra
from fedpp.errors import DomainMismatchError, FedppError, KeyFileError, ModelError
from fedpp.learning import key_scope, layers

SIZES = st.sampled_from([2, 3])
FEW = settings().max_examples // 8


def network(case: Case, a: Algebra, generator: np.random.Generator) -> keras.Model:
    """Return a functional model of one layer between rows, with random weights."""
    inputs = [keras.Input((*shape[1:], a.n), dtype=DTYPE) for shape in case.shapes]
    x = case.call(case.ours(a), [layers.FromRows(a, dtype=DTYPE)(rows) for rows in inputs], None)
    model = keras.Model(inputs, layers.ToRows(a, dtype=DTYPE)(x))
    weights = [generator.normal(size=weight.shape) for weight in model.weights]
    for i in range(0, len(weights), a.n):  # any ciphertext is a weight, but a variance must be positive
        if "variance" in model.weights[i].name:
            weights[i : i + a.n] = a.from_slots(tuple(map(abs, weights[i : i + a.n])))
    model.set_weights(weights)
    return model


def save(model: keras.Model, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # h5py and NumPy 2.4, within Keras
        model.save(path)


def contents(path: Path) -> tuple[list[np.ndarray], str]:
    """Return the arrays and the text of a `.keras` file."""
    arrays: list[np.ndarray] = []
    text = ""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".h5"):
                with h5py.File(io.BytesIO(archive.read(name))) as file:
                    file.visititems(lambda _, item: arrays.append(item[()]) if isinstance(item, h5py.Dataset) else None)
            else:
                text += archive.read(name).decode()
    return arrays, text


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=FEW, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), n=SIZES)
def test_a_saved_layer_loads_under_the_key(name: str, n: int, data: st.DataObject, tmp_path: Path):
    """A model loaded from a `.keras` file gives the same outputs; the file contains rows and no key."""
    case, a, generator = data.draw(CASES[name]), algebra(n), np.random.default_rng(1)
    model, path = network(case, a, generator), tmp_path / "model.keras"
    save(model, path)
    with layers.under(algebra(n)):
        loaded = keras.models.load_model(path)
    xs = [tf.constant(generator.normal(size=(*shape, n))) for shape in case.shapes]
    np.testing.assert_allclose(loaded(xs), model(xs), atol=1e-12, rtol=1e-12)

    arrays, text = contents(path)
    weights = [tuple(model.get_weights()[i : i + n]) for i in range(0, len(model.weights), n)]
    for weight in weights:
        rows = np.stack(a.to_rows(weight), axis=-1)
        assert any(array.shape == rows.shape and np.allclose(array, rows, atol=1e-12) for array in arrays)
        if n == 2:  # for any other n, components are the columns of the rows
            found = [column for array in arrays if array.ndim for column in np.moveaxis(array, -1, 0)]
            assert not any(c.shape == p.shape and np.allclose(c, p) for p in weight for c in [*arrays, *found])
    secret = [*a._basis.ravel(), *a._inverse.ravel(), *a._from_rows.ravel()]
    numbers = [number for number in map(float, secret) if min(abs(number - public) for public in (0, 0.5, 1)) > 1e-9]
    assert not any(str(number)[:10] in text for number in numbers)
    assert not any(np.isclose(array, number, rtol=1e-9).any() for array in arrays for number in numbers)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=FEW)
@given(data=st.data(), n=SIZES)
def test_a_layer_survives_its_configuration(name: str, n: int, data: st.DataObject):
    """`from_config(get_config())`, through JSON, has the same configuration, and the scope's algebra."""
    a = algebra(n)
    layer = data.draw(CASES[name]).ours(a)
    config = layer.get_config()
    with key_scope.under(a):
        again = type(layer).from_config(json.loads(json.dumps(config)))
    assert again.get_config() == config
    assert again.algebra is a


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_has_every_setting(name: str):
    """Each constructor argument of a layer and of its base classes is in its configuration."""
    layer = getattr(layers, name)
    own = [c for c in layer.__mro__ if c.__module__.startswith("fedpp.") and "__init__" in vars(c)]
    arguments = {argument for c in own for argument in inspect.signature(c.__init__).parameters}
    settings = {"layer"} if name == "Bidirectional" else set(layer.settings)
    assert arguments - {"self", "algebra", "keywords", "trainable", "dtype", "name"} == settings


def dense_file(tmp_path: Path, a: Algebra) -> Path:
    rows = keras.Input((3, a.n), dtype=DTYPE)
    x = layers.Dense(a, 2, dtype=DTYPE)(layers.FromRows(a, dtype=DTYPE)(rows))
    path = tmp_path / "model.keras"
    save(keras.Model(rows, layers.ToRows(a, dtype=DTYPE)(x)), path)
    return path


ONE, TWO = algebra(2), algebra(2, epoch=2)
DOMAINS = f"belongs to domain {ONE.domain[:16]}, the key to {TWO.domain[:16]}"


@pytest.mark.parametrize(
    ("of", "scope", "error", "message"),
    [
        (ONE, None, KeyFileError, f"evaluation key of domain {ONE.domain[:16]}.*layers.under"),
        (ONE, TWO, DomainMismatchError, DOMAINS),
        (Algebra(np.eye(2) + 0.3, "x"), Algebra(np.eye(3) + 0.3, "x"), ModelError, "n = 2, the key of n = 3"),
    ],
    ids=["no scope", "another domain", "another n"],
)
def test_a_model_is_not_loaded_under_another_key(
    of: Algebra, scope: Algebra | None, error: type[FedppError], message: str, tmp_path: Path
):
    """Without a scope, and under the key of another domain or n, one line names what the model needs."""
    path = dense_file(tmp_path, of)
    with layers.under(scope) if scope else nullcontext(), pytest.raises(error, match=message) as refusal:
        keras.models.load_model(path)
    assert "\n" not in str(refusal.value)


def test_a_scope_ends(tmp_path: Path):
    """After its block a scope has no effect; after an inner scope the outer one applies again."""
    a, other = algebra(2), algebra(2, epoch=2)
    path = dense_file(tmp_path, a)
    with layers.under(a):
        with layers.under(other), pytest.raises(FedppError):
            keras.models.load_model(path)
        keras.models.load_model(path)
    with pytest.raises(KeyFileError):
        keras.models.load_model(path)


def test_plaintext_needs_no_scope(tmp_path: Path):
    """A model with plaintext algebra is loaded without a scope."""
    model = keras.models.load_model(dense_file(tmp_path, Algebra.plaintext()))
    assert model.count_params() == 3 * 2 + 2


def test_weights_of_other_shapes_are_rejected():
    """A layer loads rows of its own shapes only; the error names layer and both shapes."""
    a = algebra(2)
    layer = layers.Dense(a, 2, dtype=DTYPE, name="head")
    layer.build(((None, 3), (None, 3)))
    store = {"0": np.zeros((3, 4, 2)), "1": np.zeros((4, 2))}
    with pytest.raises(ModelError, match=r"layer head has weights of shapes \[\(3, 2, 2\).*file \[\(3, 4, 2\)"):
        layer.load_own_variables(store)


def test_a_clone_uses_the_algebra_of_the_scope():
    """`keras.models.clone_model` makes the layers under the scope, with the same functional graph."""
    a, generator = algebra(2), np.random.default_rng(0)
    rows, valid = keras.Input((4, 3, 2), dtype=DTYPE), keras.Input((4,), dtype="bool")
    x = layers.FromRows(a, dtype=DTYPE)(rows)
    x = layers.Bidirectional(a, layers.GRU(a, 2, return_sequences=True, dtype=DTYPE), dtype=DTYPE)(x, valid)
    x = layers.LSTM(a, 2, dtype=DTYPE)(layers.Add(a, dtype=DTYPE)([x, x]), valid)
    model = keras.Model([rows, valid], layers.ToRows(a, dtype=DTYPE)(x))
    model.set_weights([generator.normal(size=w.shape) for w in model.weights])
    with layers.under(a):
        clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    inputs = [generator.normal(size=(2, 4, 3, 2)), np.array([[True, True, False, False], [True] * 4])]
    np.testing.assert_array_equal(clone(inputs), model(inputs))
