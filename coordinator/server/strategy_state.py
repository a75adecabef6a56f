"""What a strategy of Flower remembers from round to round, as bytes: numbers, arrays, and lists and dicts of them.

Bytes: a line of JSON that says what is what, with every array's dtype and shape, and the arrays' bytes in that order.
Nothing of it is code, and what it cannot hold is an error, not left out. Damage is found by the file that it lies in.
"""

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedpp.errors import FederationError

_PLAIN = (type(None), bool, int, float)
_CONTAINERS = (dict, list, np.ndarray, ArrayRecord)  # which may change and be the same object


def remembered(strategy: Strategy, as_made: Mapping[str, Any]) -> bytes:
    """Return what a strategy knows more than `as_made`, its attributes after it was made.

    Law: of a new strategy that `recall` gave these bytes, they are the same again. Raises `FederationError`.
    """
    changed = {
        name: value
        for name, value in vars(strategy).items()
        if value is not as_made.get(name, ...) or isinstance(value, _CONTAINERS)
    }
    arrays: list[np.ndarray] = []
    told = {name: _told(value, arrays, f"{type(strategy).__name__}.{name}") for name, value in changed.items()}
    return b"".join([json.dumps(told).encode(), b"\n", *(array.tobytes() for array in arrays)])


def recall(strategy: Strategy, memory: bytes) -> None:
    """Give a new strategy what `remembered` told of an earlier one of the same class; raise `FederationError`."""
    if not memory:
        return
    header, _, content = memory.partition(b"\n")
    try:
        told = json.loads(header)
        found, rest = _read({"dict": told}, memoryview(content))
        whole = not rest and found.keys() <= vars(strategy).keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise FederationError(f"what {type(strategy).__name__} remembered is damaged: begin a new run, with --model")
    vars(strategy).update(found)


def _told(value: Any, arrays: list[np.ndarray], name: str) -> Any:
    """Return a value fit for JSON; its arrays are appended to `arrays`."""
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        arrays.append(np.ascontiguousarray(value))
        return {"array": [value.dtype.str, list(value.shape)]}
    if isinstance(value, list):
        return {"list": [_told(each, arrays, name) for each in value]}
    if isinstance(value, ArrayRecord):
        return {"record": {key: _told(array.numpy(), arrays, name) for key, array in value.items()}}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _told(each, arrays, name) for key, each in value.items()}}
    raise FederationError(f"{name} is of {type(value).__name__}, which no checkpoint holds: take another strategy")


def _read(told: Any, rest: memoryview) -> tuple[Any, memoryview]:
    """Return what `_told` told, and the bytes behind its arrays."""
    if not isinstance(told, dict):
        return told, rest
    (kind, inside), *more = told.items()
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
    for key, each in inside.items():
        found[key], rest = _read(each, rest)
    if kind == "record":
        return ArrayRecord({key: Array(array) for key, array in found.items()}), rest
    if kind == "dict":
        return found, rest
    raise KeyError(kind)
