"""Step bounds: what is beyond them is scaled to them in its slot alone, and the rest keeps its bits."""

import math
from fractions import Fraction

import numpy as np
import pytest
from global_states import algebra_of, drawn
from hypothesis import given
from hypothesis import strategies as st

from fedpp.aggregation import step_bounds
from fedpp.aggregation.ring import Ring
from fedpp.aggregation.step_bounds import bound, clipped, local_steps, require_reachable
from fedpp.arrays import PIECE
from fedpp.config.hyperparameters import Hyperparameters, Training
from fedpp.errors import MaskError, ModelError

SLOTS = pytest.mark.parametrize("n", [1, 2, 3])


def rms(rows: np.ndarray, n: int) -> list[float]:
    """Return the root mean square of each slot, with exact sums."""
    slots = algebra_of(n).decrypted(rows.reshape(-1, n))
    return [math.sqrt(sum(Fraction(float(v)) ** 2 for v in slot) / len(slot)) for slot in slots]


def rows_of(slots: list[np.ndarray], n: int) -> np.ndarray:
    return algebra_of(n).encrypted(tuple(slots))


@pytest.mark.parametrize(
    ("epochs", "batch", "sequences", "steps"), [(1, 8, 8, 1), (2, 8, 9, 4), (3, 1, 5, 15), (2, 8, 0, 0), (1, 8, 1, 1)]
)
def test_local_steps_are_those_of_the_batches(epochs: int, batch: int, sequences: int, steps: int):
    """Each epoch has a step for each batch, the last one not full."""
    training = Training(epochs=epochs, hyperparameters=Hyperparameters(batch_size=batch))
    assert local_steps(training, sequences) == steps


def test_the_bound_grows_with_rate_and_steps():
    """The bound is the product of the contract's factor, the learning rate and the steps."""
    assert bound(4.0, 0.25, 6) == 6.0


@SLOTS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_within_the_bound_keeps_its_bits(n: int, dtype: type):
    """An update within the bound is the same arrays, and no name is reported."""
    update = {name: rows.astype(dtype) for name, rows in drawn(n, 0, size=0.1).items()}
    largest = max(max(rms(rows.astype(np.float64), n)) for rows in update.values())
    rows, names = clipped(update, algebra_of(n), largest * (1 + 1e-9))
    assert names == []
    assert all(rows[name] is update[name] for name in update)


@SLOTS
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_slot_beyond_the_bound_is_scaled_alone(n: int, slot: int):
    """One slot of one weight is scaled to the bound; its direction, other slots and other weights stay."""
    if slot >= n:
        slot = n - 1
    update, algebra = drawn(n, 1, size=0.01), algebra_of(n)
    name = list(update)[1]
    slots = [np.array(values) for values in algebra.decrypted(update[name])]
    slots[slot] = slots[slot] * 1000
    update[name] = rows_of(slots, n)
    rows, names = clipped(update, algebra, 0.5)
    assert names == [name]
    assert all(rows[other] is update[other] for other in update if other != name)
    assert rows[name].shape == update[name].shape
    found = algebra.decrypted(rows[name])
    factor = 0.5 / rms(update[name], n)[slot]
    for number, values in enumerate(slots):
        expected = values * (factor if number == slot else 1.0)
        np.testing.assert_allclose(found[number], expected, rtol=2e-6, atol=1e-9)
    assert 0.5 * (1 - 1e-5) < rms(rows[name], n)[slot] <= 0.5


@given(st.integers(1, 3), st.integers(0, 2**32), st.floats(1e-6, 1e3), st.sampled_from([np.float32, np.float64]))
def test_clipping_twice_changes_nothing_more(n: int, seed: int, largest: float, dtype: type):
    """The law: what was clipped is within the bound, so the second time returns the same arrays."""
    update = {name: rows.astype(dtype) for name, rows in drawn(n, seed, size=10.0).items()}
    once, _ = clipped(update, algebra_of(n), largest, max_value=20.0)
    twice, names = clipped(once, algebra_of(n), largest, max_value=20.0)
    assert names == []
    assert all(twice[name] is once[name] for name in once)
    assert all(rows.dtype == dtype for rows in once.values())
    assert all(np.abs(rows).max() <= 20.0 for rows in once.values())


@SLOTS
def test_rows_beyond_the_ring_are_scaled_as_one(n: int):
    """A weight with one value beyond the largest is scaled until the ring takes it; the ring refuses it before."""
    update, algebra, ring = drawn(n, 2), algebra_of(n), Ring(64, 10, sites=3, bound=8.0)
    name = next(iter(update))
    update[name] = update[name].copy()
    update[name].reshape(-1)[0] = 100.0
    with pytest.raises(MaskError):
        ring.encode(update[name], 2)
    rows, names = clipped(update, algebra, math.inf, max_value=8.0)
    assert names == [name]
    np.testing.assert_allclose(rows[name], update[name] * 0.08, rtol=2e-6)
    ring.encode(rows[name], 2)


def test_huge_values_are_scaled_too():
    """Values whose squares overflow are scaled to the bound, and no NaN appears."""
    update = {"w": np.array([[1e200], [-1e200], [0.0]])}
    rows, names = clipped(update, algebra_of(1), 2.0)
    assert names == ["w"]
    np.testing.assert_allclose(rows["w"][:, 0], np.array([1, -1, 0]) * 2.0 * math.sqrt(1.5), rtol=2e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_refused(value: float):
    """No scale makes a number of it: the site trains again at a lower rate."""
    with pytest.raises(ModelError, match="not finite"):
        clipped({"w": np.array([[1.0], [value]])}, algebra_of(1), 1.0)


@pytest.mark.parametrize(
    ("elements", "draws"),
    [*((elements, 100) for elements in (1, 2, 3, 7, 30)), *((PIECE + more, 5) for more in (-1, 0, 1, PIECE + 5))],
)
def test_the_mean_square_has_one_order_of_additions(elements: int, draws: int):
    """The scale of an aggregate is that of plain Python additions in the documented order, so machines agree on it.

    Sums of squares are not exact in float64, so another order of additions shows in some draws.
    """
    for seed in range(draws):
        values = np.random.default_rng([elements, seed]).normal(size=elements)
        top = max(abs(value) for value in values.tolist())
        totals = [0.0] * min(PIECE, elements)
        for place, value in enumerate(values.tolist()):
            totals[place % PIECE] += (value / top) * (value / top)
        while len(totals) > 1:
            if len(totals) % 2:
                totals.append(0.0)
            half = len(totals) // 2
            totals = [a + b for a, b in zip(totals[:half], totals[half:], strict=True)]
        size = top * math.sqrt(totals[0] / elements)
        rows, _ = clipped({"w": values[:, None]}, algebra_of(1), size / 3)
        np.testing.assert_array_equal(rows["w"][:, 0], values * (size / 3 / size * step_bounds.SLACK))


@pytest.mark.parametrize("bits", [32, 64])
def test_a_sum_is_of_updates_within_the_ring(bits: int):
    """The sum of the sites' largest values passes, either sign; one more is refused."""
    ring, weights = Ring(bits, 30, sites=3, bound=4.0), (5, 10, 15)
    most = sum(ring.max_magnitude(weight) for weight in weights)
    for value in (most, -most, 0):
        require_reachable(np.array([1, value], f"<i{bits // 8}").view(ring.dtype), ring, weights)
    for value in (most + 1, -most - 1, -(2 ** (bits - 1))):
        with pytest.raises(MaskError, match="beyond what"):
            require_reachable(np.array([1, value], f"<i{bits // 8}").view(ring.dtype), ring, weights)
    extremes = [ring.encode(np.full(1, sign * 4.0), weight) for sign in (1, -1) for weight in weights]
    for three in (extremes[:3], extremes[3:]):
        require_reachable(sum(three[1:], three[0]), ring, weights)
    require_reachable(np.zeros(0, ring.dtype), ring, weights)
