"""Large models processed in pieces: the same bits, without another copy in memory."""

import math
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
from conftest import TINY
from global_states import NETWORK, RULES, Arrays, algebra_of, begun, domain_of, drawn
from hypothesis import given
from hypothesis import strategies as st
from run_specs import varied
from site_nodes import run_spec_of

from fedpp import arrays
from fedpp.aggregation import update_check
from fedpp.aggregation.global_state import GlobalState, initial, unflat
from fedpp.aggregation.server_step import step
from fedpp.arrays import are_finite, pieces
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.errors import UpdateCheckError
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import decoys, models
from fedpp.learning.initial_weights import encrypted_initial_weights
from sites.client import local_round

MEGABYTE = 2**20
LARGE = NETWORK.changed(height=16, width=16, filters=(4,), dense=2**12)  # 8 MB of rows


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda size: monkeypatch.setattr(arrays, "PIECE", size)


def test_pieces_are_views_of_all_entries_in_order(small_pieces: Callable[[int], None]):
    """Each entry of each array comes once, with the other arrays' entries of its place; pieces are writable views."""
    small_pieces(3)
    one, two = np.arange(8), np.arange(16.0).reshape(8, 2)
    found = list(pieces(one, two))
    assert [len(some) for some, _ in found] == [3, 3, 2]
    np.testing.assert_array_equal(np.concatenate([some for some, _ in found]), one)
    np.testing.assert_array_equal(np.concatenate([some for _, some in found]), two)
    for some, _ in found:
        some[:] = 7
    assert (one == 7).all()
    assert list(pieces(np.empty(0))) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_anywhere_is_not_finite(value: float, small_pieces: Callable[[int], None]):
    """It is found in any piece of any array."""
    small_pieces(3)
    several = [np.zeros((2, 4)), np.zeros(1, np.float32)]
    assert are_finite(several)
    for array in several:
        for place in range(array.size):
            array.flat[place] = value
            assert not are_finite(several)
            array.flat[place] = 0.0


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_step_in_pieces_is_the_step(n: int, rule: ServerOptimizerConfig, small_pieces: Callable[[int], None]):
    """Rows and moments after two rounds are equal bit for bit, for any size of pieces."""
    states = []
    for size in (10**9, 3, 1):
        small_pieces(size)
        state = begun(drawn(n, 0), rule, dtype="float32")
        for number in (1, 2):
            state = step(state, drawn(n, number, 0.1), rule, algebra_of(n))
        states.append(state.digest)
    assert len(set(states)) == 1


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_in_pieces_are_the_weights(dtype: str, n: int, small_pieces: Callable[[int], None]):
    """Variables equal the components of the rows bit for bit, and the read rows those of the variables."""
    small_pieces(3)
    of, key = algebra_of(n), domain_of(n).evaluation_key()
    rows = {name: row.astype(dtype) for name, row in encrypted_initial_weights(TINY, 1, key).items()}
    model = models.encrypted(TINY, of, dtype)
    models.set_rows(model, TINY, of, rows)
    parts = [part.astype(dtype) for row in rows.values() for part in of.from_rows(row.astype(np.float64))]
    for found, part in zip(model.get_weights(), parts, strict=True):
        np.testing.assert_array_equal(found, part)
    wholes = (tuple(part.astype(np.float64) for part in parts[i : i + n]) for i in range(0, len(parts), n))
    for found, whole in zip(models.get_rows(model, TINY, of).values(), wholes, strict=True):
        np.testing.assert_array_equal(found, np.stack(of.to_rows(whole), axis=-1).astype(dtype))


@given(st.integers(1, 40), st.lists(st.sampled_from([0.5, 3.0, 50.0]), min_size=2, max_size=2), st.integers(0, 99))
def test_a_decoy_is_measured_over_all_pieces(entries: int, sizes: list[float], seed: int):
    """A decoy's factor is its bound over its norm, at most 1; each decoy has its own factor."""
    of = algebra_of(3)
    slots = np.random.default_rng(seed).normal(size=(3, entries)) * np.array([100.0, *sizes])[:, None]
    with patch("fedpp.arrays.PIECE", 3):
        found = decoys.shares(of, of.encrypted(tuple(slots)))
    lengths = [math.sqrt(math.fsum(slot**2)) for slot in slots[1:]]
    limit = decoys.DECOY_BOUND * math.sqrt(entries)  # of a vector
    assert found == tuple(pytest.approx(min(1.0, limit / length), rel=1e-9) for length in lengths)
    assert all(share == 1.0 for share, length in zip(found, lengths, strict=True) if length < limit * (1 - 1e-9))


def test_the_update_check_measures_all_pieces(small_pieces: Callable[[int], None]):
    """The norm is of all values, in any order of small and large ones; a bad value is found in any piece."""
    small_pieces(2)
    values = np.array([1e-200, 3.0, 0.0, 0.0, 4e150, 1.0, 3e150])
    assert update_check.norm([values]) == pytest.approx(5e150, rel=1e-14)
    assert update_check.norm([values[::-1]]) == pytest.approx(5e150, rel=1e-14)
    assert update_check.norm([np.zeros(4), np.array([3.0, 4.0])]) == 5.0
    rows = drawn(2, 0)
    for place in range(rows["dense/kernel"].size):
        update = drawn(2, 1)
        update["dense/kernel"].flat[place] = np.nan
        with pytest.raises(UpdateCheckError, match="not finite"):
            update_check.require_update(rows, update, np.inf)


def test_an_update_is_encoded_in_the_network_s_order(domain: KeyDomain, small_pieces: Callable[[int], None]):
    """The encoded update has all weights in the network's order, for any order of the update and size of pieces."""
    small_pieces(3)
    run_spec = varied(run_spec_of(domain, masked=True), network=NETWORK, dtype="float64")
    update = drawn(2, 1, 1e-3)
    words = local_round.encoded(run_spec, dict(reversed(update.items())), 2)
    back = unflat(local_round.ring_of(run_spec).decode(words, 2), NETWORK, 2)
    for name, values in update.items():
        np.testing.assert_allclose(back[name], values, rtol=0, atol=1e-12)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Fail if the block allocates more than this many bytes at any moment, in NumPy arrays and Python objects."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= size
    finally:
        tracemalloc.stop()


def large(rule: ServerOptimizerConfig) -> GlobalState:
    generator = np.random.default_rng(1)
    rows = {spec.name: generator.normal(size=(*spec.shape, 2)) for spec in LARGE.weights()}
    return initial(
        rows,
        network=LARGE,
        domain=algebra_of(2).domain,
        dtype="float32",
        classes=("no", "yes"),
        rule=rule,
        salt="5a" * 32,
    )


def size_of(rows: Arrays) -> int:
    return sum(values.nbytes for values in rows.values())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_step_of_a_large_model_allocates_the_next_state_only(
    rule: ServerOptimizerConfig, small_pieces: Callable[[int], None]
):
    """Only rows and moments of the next state are allocated, for every server optimizer."""
    small_pieces(2**12)  # 64 KiB of float64 rows
    before = large(rule)
    update = {name: np.full(values.shape, 1e-3) for name, values in before.rows.items()}
    with at_most(size_of(before.rows) + size_of(before.moments) + 2 * MEGABYTE):
        step(before, update, rule, algebra_of(2))


def test_a_large_model_is_in_memory_once(domain: KeyDomain, small_pieces: Callable[[int], None]):
    """Each operation of a site in a round allocates its result and some pieces."""
    small_pieces(2**12)
    before = large(ServerOptimizerConfig())
    rows = size_of(before.rows)
    assert rows > 8 * MEGABYTE
    update = {name: np.full(values.shape, 1e-3) for name, values in before.rows.items()}
    after = step(before, update, before.rule, algebra_of(2))
    run_spec = varied(run_spec_of(domain, masked=True), network=LARGE, dtype="float32", max_update_value=1.0)
    content = before.to_bytes()
    with at_most(2 * rows + MEGABYTE):
        local_round.update_of(before, after.rows)
    with at_most(rows + MEGABYTE):
        local_round.encoded(run_spec, update, 2)
    with at_most(MEGABYTE):
        assert after.digest != before.digest
        update_check.require_update(before.rows, update, 1.0)
        GlobalState.from_bytes(content)
    with at_most(rows + MEGABYTE):
        after.to_bytes()


def test_the_weights_of_a_large_model_are_set_and_read_piece_by_piece(
    domain: KeyDomain, small_pieces: Callable[[int], None]
):
    """Setting rows allocates components and TensorFlow's copy; reading allocates values and rows."""
    small_pieces(2**12)
    state, of = large(ServerOptimizerConfig()), domain.evaluation_key().algebra()
    rows = size_of(state.rows)
    model = models.encrypted(LARGE, of, "float32")
    with at_most(2 * rows + MEGABYTE):
        models.set_rows(model, LARGE, of, state.rows)
    with at_most(2 * rows + MEGABYTE):
        models.get_rows(model, LARGE, of)
