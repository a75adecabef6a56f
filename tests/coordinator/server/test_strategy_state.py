"""What a strategy remembers, to bytes and back."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg

from coordinator.server.strategy_state import recall, remembered
from fedpp.errors import FederationError


def strategy(**attributes: object) -> FedAvg:
    made = FedAvg()
    vars(made).update(dict.fromkeys(("scale", "count", "moments", "each", "record", "nothing")) | attributes)
    return made


MEMORY = {
    "scale": 0.1 + 0.2,
    "count": 3,
    "moments": {"kernel": np.arange(6, dtype="<f4").reshape(3, 2), "bias": np.array([-0.0, np.inf, np.nan])},
    "each": [np.zeros((0, 4)), [True, 1e-300], np.array(7, "<i8")],
    "record": ArrayRecord({"b": Array(np.ones((2, 1))), "a": Array(np.full(3, 0.1, "float32"))}),
}


def test_a_strategy_recalls_what_it_remembered():
    """Numbers, arrays, lists, dicts and records are the same to the bit, in their order, and may be written to."""
    as_made = dict(vars(strategy()))
    memory = remembered(strategy(**MEMORY), as_made)
    recalled = strategy()
    recall(recalled, memory)
    assert remembered(recalled, as_made) == memory
    assert (recalled.scale, recalled.count, recalled.nothing) == (0.1 + 0.2, 3, None)
    for name, values in MEMORY["moments"].items():
        np.testing.assert_array_equal(recalled.moments[name], values)
        assert recalled.moments[name].dtype == values.dtype
    assert list(recalled.record) == ["b", "a"]
    np.testing.assert_array_equal(recalled.record["a"].numpy(), np.full(3, 0.1, "float32"))
    recalled.moments["kernel"] += 1


def test_a_new_strategy_remembers_nothing():
    """What its constructor made is not kept: the run's settings are where that stands."""
    made = FedAvg()
    assert remembered(made, dict(vars(made))) == b"{}\n"
    before = dict(vars(made))
    recall(made, b"")
    assert vars(made) == before


def test_what_was_changed_in_place_is_remembered():
    """An array, a list or a dict may be the same object and hold something else."""
    changed = strategy(each=[1])
    as_made = dict(vars(changed))
    changed.each.append(2)
    recalled = strategy()
    recall(recalled, remembered(changed, as_made))
    assert recalled.each == [1, 2]


@pytest.mark.parametrize("value", [{1: 2}, b"bytes", {"a": object()}, [np.array(["text"])], np.array([object()]), 1j])
def test_what_no_checkpoint_holds_is_an_error(value: object):
    """A strategy that remembers something else is named: to leave it out would be another strategy after a death."""
    with pytest.raises(FederationError, match=r"FedAvg\.each is of .*, which no checkpoint holds"):
        remembered(strategy(each=value), dict(vars(strategy())))


@pytest.mark.parametrize(
    "damage",
    [
        lambda memory: memory[:-1],
        lambda memory: memory + b"\0",
        lambda memory: memory[1:],
        lambda memory: memory.replace(b"count", b"other"),
        lambda memory: memory.replace(b'"dict"', b'"what"'),
        lambda memory: memory.replace(b"<f4", b"<O8"),
        lambda memory: memory.replace(b'"record": {', b'"record": 7, "dict": {'),
        lambda memory: b"[]\n",
    ],
)
def test_damaged_memory_is_refused(damage):
    """Cut, longer, of other names, kinds or dtypes: one error, and nothing is run that stands in it."""
    memory = remembered(strategy(**MEMORY), dict(vars(strategy())))
    assert damage(memory) != memory
    with pytest.raises(FederationError, match="what FedAvg remembered is damaged"):
        recall(strategy(), damage(memory))
