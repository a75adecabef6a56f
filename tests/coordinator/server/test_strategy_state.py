"""Strategy state, to bytes and back."""

from hashlib import sha256

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg

from coordinator.server.strategy_state import restore, state_of
from fedpp.errors import FederationError


def strategy(**attributes: object) -> FedAvg:
    made = FedAvg()
    vars(made).update(dict.fromkeys(("scale", "count", "moments", "each", "record", "nothing")) | attributes)
    return made


STATE = {
    "scale": 0.1 + 0.2,
    "count": 3,
    "moments": {"kernel": np.arange(6, dtype="<f4").reshape(3, 2), "bias": np.array([-0.0, np.inf, np.nan])},
    "each": [np.zeros((0, 4)), [True, 1e-300], np.array(7, "<i8")],
    "record": ArrayRecord({"b": Array(np.ones((2, 1))), "a": Array(np.full(3, 0.1, "float32"))}),
}


def test_a_strategy_s_state_is_restored():
    """Numbers, arrays, lists, dicts and records are the same to the bit, in their order, and may be written to."""
    as_made = dict(vars(strategy()))
    state = state_of(strategy(**STATE), as_made)
    restored = strategy()
    restore(restored, state)
    assert state_of(restored, as_made) == state
    assert (restored.scale, restored.count, restored.nothing) == (0.1 + 0.2, 3, None)
    for name, values in STATE["moments"].items():
        np.testing.assert_array_equal(restored.moments[name], values)
        assert restored.moments[name].dtype == values.dtype
    assert list(restored.record) == ["b", "a"]
    np.testing.assert_array_equal(restored.record["a"].numpy(), np.full(3, 0.1, "float32"))
    restored.moments["kernel"] += 1


def test_a_new_strategy_has_no_state():
    """Attributes that its constructor made are not stored: they follow from the run configuration."""
    made = FedAvg()
    assert state_of(made, dict(vars(made)))[:-32] == b'fedpp-strategy-1\n{"attributes":[]}\n'
    before = dict(vars(made))
    restore(made, b"")
    assert vars(made) == before


def test_values_changed_in_place_are_stored():
    """An array, a list or a dict may be the same object with another content."""
    changed = strategy(each=[1])
    as_made = dict(vars(changed))
    changed.each.append(2)
    restored = strategy()
    restore(restored, state_of(changed, as_made))
    assert restored.each == [1, 2]


@pytest.mark.parametrize("value", [{1: 2}, b"bytes", {"a": object()}, [np.array(["text"])], np.array([object()]), 1j])
def test_a_value_that_no_checkpoint_holds_is_an_error(value: object):
    """The error names the value: without it, the strategy would be another one after a resume."""
    with pytest.raises(FederationError, match=r"FedAvg\.each is of .*, which no checkpoint holds"):
        state_of(strategy(each=value), dict(vars(strategy())))


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state[:-1],
        lambda state: state + b"\0",
        lambda state: state[1:],
        lambda state: state.replace(b"count", b"other"),
        lambda state: state.replace(b'"dict"', b'"what"'),
        lambda state: state.replace(b"<f4", b"<O8"),
        lambda state: state.replace(b'{"record":[', b'{"dict":7,"record":['),
        lambda state: b"fedpp-strategy-1\n{}\n" + state[-32:],
    ],
)
def test_damaged_state_is_refused(damage):
    """Cut, longer, with other names, kinds or dtypes: one error, and nothing in it is executed."""
    state = state_of(strategy(**STATE), dict(vars(strategy())))
    assert damage(state) != state
    body = damage(state)[:-32]
    for damaged in (damage(state), body + sha256(body).digest()):  # with a digest that fits, too
        with pytest.raises(FederationError, match="the state of FedAvg is damaged"):
            restore(strategy(), damaged)
