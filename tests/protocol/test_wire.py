"""What a message may hold: requests within bounds, arrays that are what they say."""

import tracemalloc
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from conftest import TINY
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedpp.errors import FederationError
from fedpp.protocol import wire
from fedpp.recipe import Recipe

TRAIN = wire.TrainRequest(
    "d" * 64, TINY, "float64", recipe=Recipe(learning_rate=0.1, batch_size=2), epochs=1, seed=0, round=1
)
EVALUATE = wire.EvaluateRequest("d" * 64, TINY, "float64", Recipe(batch_size=2), split="validation", round=1)
INITIAL = wire.InitialWeightsRequest("d" * 64, TINY, "float64", seed=2**63 - 1)


@pytest.mark.parametrize("request_", [TRAIN, EVALUATE, INITIAL, replace(TRAIN, recipe=Recipe(learning_rate=1))])
def test_a_request_survives_its_record(request_: wire.Request) -> None:
    """What `to_record` returned is read as it was."""
    content = RecordDict({wire.CONFIG: request_.to_record()})
    assert type(request_).of(content) == request_


@pytest.mark.parametrize(
    ("request_", "change", "reason"),
    [
        (TRAIN, {"epochs": 0}, "epochs must be a whole number from 1 to 1000, got 0"),
        (TRAIN, {"epochs": 1001}, "epochs must be"),
        (TRAIN, {"epochs": True}, "epochs must be"),
        (TRAIN, {"batch_size": 4097}, "batch-size must be"),
        (EVALUATE, {"batch_size": 2.0}, "batch-size must be"),
        (TRAIN, {"seed": -1}, "seed must be"),
        (INITIAL, {"seed": -1}, "seed must be"),
        (TRAIN, {"round": 0}, "round must be"),
        (TRAIN, {"learning_rate": 0.0}, "learning-rate must be"),
        (TRAIN, {"learning_rate": float("nan")}, "learning-rate must be"),
        (TRAIN, {"learning_rate": float("inf")}, "learning-rate must be"),
        (TRAIN, {"learning_rate": "fast"}, "learning-rate must be"),
        (TRAIN, {"dtype": "float16"}, "dtype must be one of float32, float64, got 'float16'"),
        (EVALUATE, {"split": "all"}, "split must be one of train, validation, test, got 'all'"),
        (TRAIN, {"network": replace(TINY, lstm=10_000).to_json()}, "a network may have 50000000 parameters"),
        (TRAIN, {"network": "no network"}, "not a network specification"),
        (TRAIN, {"network": 7}, "not a network specification"),
        (TRAIN, {"split": "test"}, "unexpected keyword argument 'split'"),
    ],
)
def test_a_request_out_of_bounds_is_refused(request_: wire.Request, change: dict[str, object], reason: str) -> None:
    """A site does no work for a request that no coordinator of ours would make."""
    record = ConfigRecord({**request_.to_record(), **change})
    with pytest.raises(FederationError, match="the coordinator's request does not fit") as raised:
        type(request_).of(RecordDict({wire.CONFIG: record}))
    assert reason in str(raised.value)


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({wire.CONFIG: MetricRecord()})])
def test_a_message_without_a_request_is_refused(content: RecordDict) -> None:
    """A missing record, and one of another kind, are one line."""
    with pytest.raises(FederationError, match="a message came without config"):
        wire.TrainRequest.of(content)


@given(arrays(st.sampled_from(["<f4", "<f8"]), array_shapes(max_dims=5, max_side=4)))
def test_arrays_survive_packing(values: np.ndarray) -> None:
    """What was packed is unpacked, bit by bit."""
    content = RecordDict({wire.ARRAYS: wire.pack_arrays({"w": values})})
    unpacked = wire.unpack_arrays(content)["w"]
    assert (unpacked.dtype, unpacked.shape, unpacked.tobytes()) == (values.dtype, values.shape, values.tobytes())


def npy(shape: tuple[int, ...], dtype: str, data: bytes) -> bytes:
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("float64", (2,), b""),
        ("float64", (2,), b"\x93NUMPY\x01\x00\xff\xff{"),
        ("float64", (2,), npy((2,), "<f8", bytes(15))),
        ("float64", (2,), npy((2,), "<f8", bytes(17))),
        ("float64", (2,), npy((3,), "<f8", bytes(16))),
        ("float64", (2,), npy((4,), "<f4", bytes(16))),
        ("float64", (2,), npy((2,), ">f8", bytes(16))),
        ("float64", (2,), npy((2,), "|O", bytes(16))),
        ("float64", (10**13,), npy((10**13,), "<f8", bytes(16))),
        ("float64", (-1, -2), npy((-1, -2), "<f8", bytes(16))),
        ("float64", (0, 10**30), npy((0, 10**30), "<f8", b"")),
        ("float64", (1,) * 80, npy((1,) * 80, "<f8", bytes(8))),
        ("float64", (), npy((), "<f8", bytes(8))),
        ("int64", (2,), npy((2,), "<i8", bytes(16))),
        ("float64", (2,), b"\x93NUMPY\x01\x00\x10\x27" + b"-" * 10000 + bytes(16)),
    ],
)
def test_arrays_that_are_not_what_they_say_are_refused(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    """Nothing is allocated, and no foreign header is parsed, for an array whose data do not fit its shape."""
    content = RecordDict({wire.ARRAYS: ArrayRecord({"w": Array(dtype, shape, "numpy.ndarray", data)})})
    tracemalloc.start()
    try:
        with pytest.raises(FederationError, match="array 'w'"):
            wire.unpack_arrays(content)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@given(st.text(max_size=3000))
def test_a_text_of_others_is_one_printable_line(text: str) -> None:
    """No line break, no terminal's command, no endless line; what was such a line stays as it is."""
    line = wire.one_line(text)
    assert line.isprintable()
    assert len(line) <= wire.MOST_CHARACTERS
    assert wire.one_line(line.strip()) == " ".join(line.split())
