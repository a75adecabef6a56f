"""Models that are worked on piece by piece: to the same bits, and without another copy of them in memory."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from global_states import NETWORK, RULES, algebra_of, begun, drawn
from site_nodes import plan_of

from fedpp import arrays
from fedpp.arrays import are_finite, pieces
from fedpp.errors import GateError
from fedpp.keys.domain import KeyDomain
from fedpp.learning import decoys, gate, models
from fedpp.learning.global_state import GlobalState, initial, unflat
from fedpp.learning.initial import encrypted_initial_weights
from fedpp.learning.server_optimizers import step
from fedpp.network import NetworkSpec
from fedpp.recipe import ServerRule
from sites import rounds

MEGABYTE = 2**20
LARGE = NetworkSpec(1, 16, 16, 1, 2, filters=(4,), kernel=1, dense=2**12, lstm=1, architecture="cnn")  # 8 MB of rows


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda size: monkeypatch.setattr(arrays, "PIECE", size)


def test_pieces_are_views_of_all_entries_in_order(small_pieces: Callable[[int], None]):
    """Each entry of each array comes once, beside the others' of its place; what is written to a piece stays."""
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
    """In whatever piece of whatever array it stands."""
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
def test_a_step_in_pieces_is_the_step(n: int, rule: ServerRule, small_pieces: Callable[[int], None]):
    """Rows and moments after two rounds are the same to the bit, wherever the pieces end."""
    states = []
    for size in (10**9, 3, 1):
        small_pieces(size)
        state = begun(drawn(n, 0), rule, dtype="float32")
        for number in (1, 2):
            state = step(state, drawn(n, number, 0.1), rule, algebra_of(n))
        states.append(state.digest)
    assert len(set(states)) == 1


@pytest.mark.parametrize("factor", [1.0, 1000.0], ids=["within", "beyond"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_in_pieces_are_the_weights(
    dtype: str, factor: float, domain: KeyDomain, small_pieces: Callable[[int], None]
):
    """Rows that are set and read again are the same, also where decoys are taken into their bound, of all pieces."""
    key = domain.evaluation_key()
    of = key.algebra()
    model = models.encrypted(TINY, of, dtype)
    rows = {
        name: of.encrypted((message, decoy * factor))
        for name, row in encrypted_initial_weights(TINY, 1, key).items()
        for message, decoy in [of.decrypted(row)]
    }
    found = []
    for size in (10**9, 3):
        small_pieces(size)
        models.set_rows(model, TINY, of, rows)
        found.append(models.get_rows(model, TINY, of))
    tolerance = {"rtol": 0, "atol": 0} if factor == 1.0 else {"rtol": 1e-6, "atol": 1e-6}  # a norm is summed otherwise
    for name, whole in found[0].items():
        np.testing.assert_allclose(found[1][name], whole, **tolerance)
        beyond = decoys.shares(of, rows[name])[0] < 1.0
        assert beyond == (factor > 1.0 and np.any(whole != 0)), name


def test_a_gate_measures_all_pieces(small_pieces: Callable[[int], None]):
    """The norm is that of all values, in whatever order small and large ones come; a bad value is seen in any piece."""
    small_pieces(2)
    values = np.array([1e-200, 3.0, 0.0, 0.0, 4e150, 1.0, 3e150])
    assert gate.norm([values]) == pytest.approx(5e150, rel=1e-14)
    assert gate.norm([values[::-1]]) == pytest.approx(5e150, rel=1e-14)
    rows = drawn(2, 0)
    for place in range(rows["dense/kernel"].size):
        update = drawn(2, 1)
        update["dense/kernel"].flat[place] = np.nan
        with pytest.raises(GateError, match="not finite"):
            gate.require_update(rows, update, np.inf)


def test_an_update_is_encoded_in_the_networks_order(domain: KeyDomain, small_pieces: Callable[[int], None]):
    """The words of all weights stand one behind the other, whatever order the update has and wherever pieces end."""
    small_pieces(3)
    plan = replace(plan_of(domain, masked=True), network=NETWORK, dtype="float64")
    update = drawn(2, 1, 1e-3)
    words = rounds.encoded(plan, dict(reversed(update.items())), 2)
    back = unflat(rounds.ring_of(plan).decode(words, 2), NETWORK, 2)
    for name, values in update.items():
        np.testing.assert_allclose(back[name], values, rtol=0, atol=1e-12)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Fail if what is within holds so many bytes more at any moment, by NumPy's arrays and Python's objects."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= size
    finally:
        tracemalloc.stop()


def large() -> GlobalState:
    generator = np.random.default_rng(1)
    rows = {spec.name: generator.normal(size=(*spec.shape, 2)).astype(np.float32) for spec in LARGE.weights()}
    return initial(
        rows,
        network=LARGE,
        domain=algebra_of(2).domain,
        dtype="float32",
        classes=("no", "yes"),
        rule=ServerRule(),
        salt="5a" * 32,
    )


def test_a_large_model_is_in_memory_once(domain: KeyDomain, small_pieces: Callable[[int], None]):
    """No step of a round holds more than what it returns, and some pieces."""
    small_pieces(2**12)  # 64 KiB of float64 rows
    before, of = large(), algebra_of(2)
    rows = sum(values.nbytes for values in before.rows.values())
    assert rows > 8 * MEGABYTE
    update = {name: np.full(values.shape, 1e-3) for name, values in before.rows.items()}
    plan = replace(plan_of(domain, masked=True), network=LARGE, dtype="float32", bound=1.0)
    content = before.to_bytes()
    with at_most(rows + MEGABYTE):
        after = step(before, update, before.rule, of)
    with at_most(2 * rows + MEGABYTE):
        rounds.update_of(before, after.rows)
    with at_most(rows + MEGABYTE):
        rounds.encoded(plan, update, 2)
    with at_most(MEGABYTE):
        assert after.digest != before.digest
        gate.require_update(before.rows, update, 1.0)
        GlobalState.from_bytes(content)
    with at_most(rows + MEGABYTE):
        after.to_bytes()


def test_the_weights_of_a_large_model_are_set_and_read_piece_by_piece(
    domain: KeyDomain, small_pieces: Callable[[int], None]
):
    """Setting rows holds what variables are set from and one of these twice, reading them what is read and returned."""
    small_pieces(2**12)
    state, of = large(), domain.evaluation_key().algebra()
    rows = sum(values.nbytes for values in state.rows.values())
    model = models.encrypted(LARGE, of, "float32")
    with at_most(rows + rows // 2 + MEGABYTE):
        models.set_rows(model, LARGE, of, state.rows)
    with at_most(2 * rows + MEGABYTE):
        models.get_rows(model, LARGE, of)
