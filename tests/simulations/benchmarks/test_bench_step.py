"""Benchmark of a training step: its block form is right, and every figure is there. No test depends on a time."""

import json

import numpy as np
import pytest
import tensorflow as tf

from fedpp.cipher.algebra import encrypt
from fedpp.keys.key_domain import KeyDomain
from simulations.benchmarks.bench_step import CASES, Case, prepared, step
from simulations.benchmarks.block_form import BlockForm

FIGURES = {
    *("ciphertext_ms", "plaintext_ms", "ratio", "processor_ratio", "more_frame_ratio", "plaintext_to_keras_fit"),
    *("block_form_ratio", "block_form_processor_ratio"),
    *("ciphertext_mb", "plaintext_mb", "memory_ratio", "memory_growth_ratio"),
}


@pytest.mark.parametrize("n", [2, 3])
def test_block_form_computes_on_the_slots(n: int):
    """Blocks of rows, slots, products, public numbers and gradients have the expected slots."""
    r, generator = KeyDomain.of_secret(bytes(32), n=n).matrix(), np.random.default_rng(0)
    form = BlockForm(r)
    x, w = generator.normal(size=(2, n, 4, 5)), generator.normal(size=(n, 5, 3))
    x = x[0]
    blocks, kernel = form.from_slots(tuple(x)), form.from_slots(tuple(w))
    np.testing.assert_allclose(form.to_slots(blocks), x, atol=1e-12)
    rows = encrypt(np.moveaxis(x, 0, -1), r)
    np.testing.assert_allclose(form.from_rows(form.encrypt(rows)), blocks, atol=1e-12)
    np.testing.assert_allclose(form.product_slots(blocks, kernel, np.matmul), x @ w, atol=1e-12)
    np.testing.assert_allclose(form.to_slots(form.public(x[0])), [x[0]] * n, atol=1e-12)
    # by the entries A of sum_k u_k s_k(A): the derivatives by the slots are u
    u = generator.normal(size=n)
    parts = [tf.Variable(part) for part in blocks]
    with tf.GradientTape() as tape:
        loss = sum(tf.reduce_sum(slot) * factor for slot, factor in zip(form.to_slots(tuple(parts)), u, strict=True))
    slots = form.to_slots(form.gradient(tuple(tape.gradient(loss, parts))))
    np.testing.assert_allclose(slots, np.broadcast_to(u[:, None, None], x.shape), atol=1e-12)


@pytest.mark.usefixtures("eagerly")
def test_all_forms_take_the_same_steps():
    """The losses of two steps on plaintext, and of Keras's own, agree; so do those of ciphertext and block form."""
    case = Case("cnn", 16, 2, frames=2)
    losses = {}
    for form in ("ciphertext", "block_form", "plaintext", "keras"):
        action = prepared(case, form)
        losses[form] = [float(np.ravel(action())[0]) for _ in range(2)]
    np.testing.assert_allclose(losses["block_form"], losses["ciphertext"], rtol=1e-4)
    np.testing.assert_allclose(losses["keras"], losses["plaintext"], rtol=1e-4)


@pytest.mark.slow
def test_a_quick_bench_has_every_figure():
    """Each case has a row of positive figures, fit for JSON; the grid holds three networks in two sizes."""
    (row,) = json.loads(json.dumps(step([Case("cnn", 16, 2, frames=2)], repetitions=2)))["rows"]
    assert row.pop("case") == "cnn, 16x16, 2 frames, batch 2"
    assert set(row) == FIGURES
    assert all(value > 0 for value in row.values())
    assert row["ciphertext_mb"] > 100
    assert len({str(case) for case in CASES}) == 6
