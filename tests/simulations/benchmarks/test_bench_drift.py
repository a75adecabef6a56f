"""Benchmark of rounding: its figures over a few steps, its chart, and the two representations of moments."""

from pathlib import Path

import keras
import numpy as np
import pytest

from fedpp.cipher.components import Algebra
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.optimizers import Adam
from simulations.benchmarks import bench_drift
from simulations.benchmarks.bench_drift import CHART, RowMoments, drift

STEPS, SIZE = 30, 200
SMALL = 1e-4  # of the message's gradients, where the decoys' are of size 1


def moved(optimizer: Adam, dtype: str) -> np.ndarray:
    """Return the message of a weight of zeros after steps along small message and large decoy gradients."""
    of, generator = optimizer.algebra, np.random.default_rng(0)
    weight = [keras.Variable(np.zeros(SIZE, dtype)) for _ in range(of.n)]
    for _ in range(STEPS):
        slots = generator.normal(size=(2, SIZE)) * np.array([[SMALL], [1.0]])
        basis = np.array([of.from_slots(tuple(row)) for row in np.eye(of.n)])
        parts = (np.linalg.inv(basis) @ slots[: of.n]).astype(dtype)  # the derivatives by the coordinates
        optimizer.apply([keras.ops.convert_to_tensor(part) for part in parts], weight)
    return np.asarray(of.to_slots(tuple(np.asarray(v, np.float64) for v in weight))[0])


def test_small_moments_are_lost_as_rows_and_not_by_slot():
    """In float32, where the message's gradients are 1e-4 of the decoys', moments as rows lose Adam's precision."""
    algebra = KeyDomain.of_secret(bytes(32), n=2).evaluation_key().algebra()
    expected = moved(Adam(Algebra.plaintext()), "float64")
    by_slot, by_rows = (moved(make(algebra), "float32") for make in (Adam, RowMoments))
    off, lost = (np.linalg.norm(steps - expected) / np.linalg.norm(expected) for steps in (by_slot, by_rows))
    assert off < 0.01
    assert lost > 50 * off


def test_moments_as_rows_are_adam_where_nothing_rounds():
    """In float64 the variant takes Adam's own steps, so the benchmark compares rounding alone."""
    algebra = KeyDomain.of_secret(bytes(32), n=2).evaluation_key().algebra()
    np.testing.assert_allclose(moved(RowMoments(algebra), "float64"), moved(Adam(algebra), "float64"), rtol=1e-5)


@pytest.mark.usefixtures("eagerly")
@pytest.mark.filterwarnings("ignore:Even though the .tf.config")  # tf.data is traced all the same
def test_a_step_is_measured(monkeypatch: pytest.MonkeyPatch):
    """A checkpoint has a row, with the ciphertext near its plaintext reference in float64."""
    monkeypatch.setattr(bench_drift, "PATIENTS", 16)
    (row,) = drift(checkpoints=(1,), draws={"float64": 1})["rows"]
    assert row["case"] == "float64, step 1"
    assert 0 <= row["probabilities"] < 1e-12
    assert 0 < row["weights_control"] < 1e-9
    assert row["reference_loss"] == pytest.approx(np.log(2), abs=0.1)


@pytest.mark.slow
def test_a_few_steps_are_measured_and_drawn(tmp_path: Path):
    """Each dtype has a row for each checkpoint, with the ciphertext near its plaintext reference; a chart is drawn."""
    result = drift(tmp_path / "out", checkpoints=(1, 3), draws={"float32": 1, "float64": 1})
    assert [row["case"] for row in result["rows"]] == [f"{d}, step {s}" for d in ("float32", "float64") for s in (1, 3)]
    for row in result["rows"]:
        assert 0 <= row["probabilities"] < (1e-4 if row["case"].startswith("float32") else 1e-12)
        assert 0 < row["weights_control"] < (1e-2 if row["case"].startswith("float32") else 1e-9)
        assert row["reference_loss"] == pytest.approx(np.log(2), abs=0.1)
    assert result["rows"][0]["weights"] > 1e3 * result["rows"][2]["weights"]
    assert (tmp_path / "out" / CHART).read_bytes().startswith(b"\x89PNG")
