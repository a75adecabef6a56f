"""Strategy state: what a strategy of Flower carries from round to round, as bytes: numbers, arrays, lists and dicts.

Bytes: a container (`fedpp.container`) whose header describes the values, with every array's dtype and shape, and whose
content is the arrays' bytes in that order. None of it is code, and a value of another kind is an error.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedpp import container
from fedpp.errors import FederationError

FORMAT = "fedpp-strategy-1"
MAX_HEADER = 2**28  # bytes
_PLAIN = (type(None), bool, int, float)
_CONTAINERS = (dict, list, np.ndarray, ArrayRecord)  # which may change and be the same object


def state_of(strategy: Strategy, as_made: Mapping[str, Any]) -> bytes:
    """Return the attributes of a strategy that differ from `as_made`, those after its construction.

    Law: a new strategy that `restore` gave these bytes has them again. Raises `FederationError`.
    """
    changed = {
        name: value
        for name, value in vars(strategy).items()
        if value is not as_made.get(name, ...) or isinstance(value, _CONTAINERS)
    }
    arrays: list[np.ndarray] = []
    described = [
        [name, _described(value, arrays, f"{type(strategy).__name__}.{name}")] for name, value in changed.items()
    ]
    content = (array.reshape(-1).view(np.uint8).data for array in arrays)
    return b"".join(container.parts(FORMAT, {"attributes": described}, *content))


def restore(strategy: Strategy, state: bytes) -> None:
    """Give a new strategy the state of an earlier one of the same class; raise `FederationError` if it is damaged."""
    if not state:
        return
    try:
        described, content = container.unpack(FORMAT, state, MAX_HEADER)
        found, rest = _read({"dict": described["attributes"]}, content)
        whole = not rest and found.keys() <= vars(strategy).keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise FederationError(f"the state of {type(strategy).__name__} is damaged: start a new run, with --model")
    vars(strategy).update(found)


def _described(value: Any, arrays: list[np.ndarray], name: str) -> Any:
    """Return a value fit for JSON; its arrays are appended to `arrays`."""
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        arrays.append(np.ascontiguousarray(value))
        return {"array": [value.dtype.str, list(value.shape)]}
    if isinstance(value, list):
        return {"list": [_described(each, arrays, name) for each in value]}
    if isinstance(value, ArrayRecord):
        return {"record": [[key, _described(array.numpy(), arrays, name)] for key, array in value.items()]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": [[key, _described(each, arrays, name)] for key, each in value.items()]}
    raise FederationError(f"{name} is of {type(value).__name__}, which no checkpoint holds: use another strategy")


def _read(described: Any, rest: memoryview) -> tuple[Any, memoryview]:
    """Return the value that `_described` described, and the bytes behind its arrays."""
    if not isinstance(described, dict):
        return described, rest
    (kind, inside), *more = described.items()
    if more:
        raise ValueError
    if kind == "array":
        dtype, shape = np.dtype(inside[0]), tuple(inside[1])
        size = dtype.itemsize * prod(shape)
        array = np.frombuffer(rest[:size], dtype).reshape(shape).copy()  # which the strategy may write to
        return array, rest[size:]
    if kind == "list":
        items = []
        for each in inside:
            item, rest = _read(each, rest)
            items.append(item)
        return items, rest
    found = {}
    for key, each in inside:
        found[key], rest = _read(each, rest)
    if kind == "record":
        return ArrayRecord({key: Array(array) for key, array in found.items()}), rest
    if kind == "dict":
        return found, rest
    raise KeyError(kind)
