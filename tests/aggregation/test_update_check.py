"""A site's gate: what passes, what does not, and what of it others may know."""

import math
import re

import numpy as np
import pytest
from global_states import drawn
from hypothesis import given
from hypothesis import strategies as st

from fedpp.aggregation.update_check import norm, require_no_harm, require_update
from fedpp.errors import ModelError, UpdateCheckError


def test_a_norm_is_over_all_values_of_all_rows():
    """It is the Euclidean norm, by a loop over single numbers, in float64 whatever the rows are."""
    rows = drawn(2, 0)
    total = math.fsum(float(value) ** 2 for values in rows.values() for value in values.ravel())
    assert norm(rows.values()) == pytest.approx(math.sqrt(total), rel=1e-14)
    single = [np.full((3, 2), 1e30, np.float32)]
    assert norm(single) == pytest.approx(1e30 * math.sqrt(6), rel=1e-6)


@given(st.floats(1e-300, 1e300), st.integers(1, 30))
def test_a_norm_overflows_where_it_must_alone(size: float, count: int):
    """Of values of any size whose norm is a number, it is that number."""
    assert norm([np.full(count, size)]) == pytest.approx(size * math.sqrt(count), rel=1e-14)


@given(st.floats(1e-3, 1e3), st.floats(0.01, 100))
def test_an_update_passes_up_to_its_bound(ratio: float, most: float):
    """An update of so many times the model's norm passes if, and only if, that is at most the bound."""
    rows = drawn(2, 0)
    update = {name: values * ratio for name, values in rows.items()}
    if ratio <= most * (1 - 1e-12):
        require_update(rows, update, most)
    elif ratio > most * (1 + 1e-12):
        with pytest.raises(ModelError, match=f"norm is more than {re.escape(f'{most:g}')} times the global model's"):
            require_update(rows, update, most)


def test_the_figures_stand_behind_what_others_may_know():
    """The line has the reason, the values and what to do; the kind, which leaves the site, has no value."""
    rows = {"dense/kernel": np.array([[3.0, 4.0]])}
    with pytest.raises(UpdateCheckError) as refused:
        require_update(rows, {"dense/kernel": np.array([[30.0, 40.0]])}, 2.0)
    assert refused.value.kind == (
        "the update's Euclidean norm is more than 2 times the global model's: "
        "lower the learning rate, train fewer epochs a round, or raise max-update-norm"
    )
    assert str(refused.value) == f"{refused.value.kind} (it is 50, the model's 5)"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_value_that_is_no_number_is_enough(value: float, dtype: str):
    """It is refused whatever the bound is, without a word about which weight it was."""
    rows = drawn(2, 0)
    for name in rows:
        update = {other: values.astype(dtype) for other, values in drawn(2, 1).items()}
        update[name].flat[-1] = value
        with pytest.raises(UpdateCheckError) as refused:
            require_update(rows, update, math.inf)
        assert refused.value.kind == "the update holds values that are not finite: lower the learning rate"


def test_extreme_updates_and_models():
    """No update passes always; none but that passes a model of zeros; squares that overflow do not pass by that."""
    zeros = {name: np.zeros_like(values) for name, values in drawn(2, 0).items()}
    require_update(drawn(2, 0), zeros, 1e-9)
    require_update(zeros, zeros, 1.0)
    with pytest.raises(ModelError, match="it is 1e-300, the model's 0"):
        require_update({"a": np.zeros((1, 1))}, {"a": np.array([[1e-300]])}, 1.0)
    huge = {name: np.full_like(values, 1e200) for name, values in zeros.items()}
    larger = {name: values * 100 for name, values in huge.items()}
    require_update(huge, larger, 101.0)
    with pytest.raises(ModelError, match="is more than 99 times"):
        require_update(huge, larger, 99.0)
    with pytest.raises(ModelError, match="is more than nan times"):
        require_update(huge, zeros, math.nan)


def test_an_update_of_something_else_is_refused():
    """Other names or shapes than the global model's are not measured."""
    rows = drawn(2, 0)
    for other in ({}, {**rows, "more": np.zeros(2)}, {**rows, "logits/bias": np.zeros((2, 1))}):
        with pytest.raises(ModelError, match="other names or shapes"):
            require_update(rows, other, 1.0)


@pytest.mark.parametrize(
    ("before", "after", "most"),
    [(0.5, 0.5, 0.0), (0.5, 0.4, 0.0), (0.5, 0.75, 0.25), (0.5, 9.0, 10.0), (9.0, 0.0, 0.0), (0.5, 0.3, -0.1)],
)
def test_a_loss_may_rise_so_far(before: float, after: float, most: float):
    """A loss that falls, or rises by no more than the bound, passes."""
    require_no_harm(before, after, most)


@pytest.mark.parametrize(
    ("before", "after", "most"), [(0.5, 0.76, 0.25), (0.5, 0.5000001, 0.0), (0.5, 0.5, -0.1), (0.5, 0.5, math.nan)]
)
def test_a_loss_may_rise_no_further(before: float, after: float, most: float):
    """A larger rise is reported without the loss."""
    with pytest.raises(UpdateCheckError) as refused:
        require_no_harm(before, after, most)
    assert refused.value.kind == (
        f"the validation loss rose by more than {most:g} nats: keep the model of the round before, and lower the "
        "learning rate"
    )
    assert str(refused.value).endswith(f" (from 0.5 to {after:.3g})")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_is_a_number(value: float):
    """Before or after, what is not finite is refused, also where the other is not known."""
    for pair in ((value, 0.5), (0.5, value), (None, value), (value, None)):
        with pytest.raises(ModelError, match="the validation loss is not a finite number"):
            require_no_harm(*pair, 1.0)


def test_without_validation_sequences_all_passes():
    """None is no loss: there is nothing to compare."""
    for pair in ((None, None), (None, 5.0), (5.0, None)):
        require_no_harm(*pair, 0.0)
