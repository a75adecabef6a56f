"""What a message may hold: requests within bounds, arrays that are what they say."""

import tracemalloc
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from run_specs import RUN_SPEC, varied

from fedpp.config.hyperparameters import Hyperparameters
from fedpp.errors import FederationError
from fedpp.protocol import messages
from fedpp.texts import one_line

INITIAL = messages.InitialRequest(RUN_SPEC)
TRAIN = messages.TrainRequest(RUN_SPEC, 1)
EVALUATE = messages.EvaluateRequest(RUN_SPEC, 2)
ACCEPT = messages.AcceptRequest(RUN_SPEC, 2, attempt=3, keep=True)


def refusal(kind: type[messages.Request], record: ConfigRecord) -> str:
    """Return why a request is refused, which must be one line."""
    with pytest.raises(FederationError, match="the coordinator's request does not fit: ") as raised:
        kind.read(RecordDict({messages.CONFIG: record}))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1100
    return str(raised.value)


@pytest.mark.parametrize(
    "request_",
    [
        INITIAL,
        TRAIN,
        replace(TRAIN, attempt=100),
        EVALUATE,
        ACCEPT,
        replace(ACCEPT, keep=False),
        replace(
            TRAIN,
            run_spec=varied(RUN_SPEC, masked=False, dtype="float32", hyperparameters=Hyperparameters(learning_rate=1)),
        ),
    ],
)
def test_a_request_survives_its_record(request_: messages.Request) -> None:
    """What `to_record` returned is read as it was."""
    content = RecordDict({messages.CONFIG: request_.to_record()})
    assert type(request_).read(content) == request_


@pytest.mark.parametrize(
    ("request_", "change", "reason"),
    [
        (INITIAL, {"model": "clear"}, "unknown 'model'"),
        *(
            (request, {name: value}, f"{name} must be a whole number from 1 to ")
            for request in (TRAIN, EVALUATE, ACCEPT)
            for name in ("round", "attempt")
            for value in (0, -1, 1.0, True, "1", 2**31)
        ),
        *(
            (request, {"base": value}, "base must be a digest of 64 hexadecimal digits, or nothing, got ")
            for request in (TRAIN, EVALUATE, ACCEPT)
            for value in ("ab" * 31, "xy" * 32, "AB" * 32, 0, False, b"")
        ),
        (TRAIN, {"attempt": 101}, "attempt must be a whole number from 1 to 100, got 101"),
        *((ACCEPT, {"keep": value}, "keep must be true or false") for value in (1, "yes", 0.0)),
        (TRAIN, {"split": "test"}, "unknown 'split'"),
        (TRAIN, {"run_spec": 7}, "it is damaged"),
        (TRAIN, {"run_spec": b"{}"}, "missing domain, missing frames"),
    ],
)
def test_a_request_out_of_bounds_is_refused(request_: messages.Request, change: dict[str, Any], reason: str) -> None:
    """What a request says beside its plan is as strict."""
    assert reason in refusal(type(request_), ConfigRecord({**request_.to_record(), **change}))


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({messages.CONFIG: MetricRecord()})])
def test_a_message_without_a_request_is_refused(content: RecordDict) -> None:
    """A missing record, and one of another kind, are one line."""
    requests = (messages.InitialRequest, messages.TrainRequest, messages.EvaluateRequest, messages.AcceptRequest)
    for kind in (messages.DescribeRequest, *requests):
        with pytest.raises(FederationError, match="a message came without config"):
            kind.read(content)


@given(st.text(), st.text())
def test_an_origin_survives_its_record(domain: str, round_: str) -> None:
    """A domain and a round are read as they were."""
    origin = messages.Origin(domain, round_)
    assert messages.Origin.read(RecordDict({messages.ORIGIN: origin.to_record()})) == origin


@pytest.mark.parametrize("change", [{"domain": 7}, {"round": 1}, {"round": b"{}"}, {"site": "north"}])
def test_an_origin_is_two_texts(change: dict[str, Any]) -> None:
    """A number, bytes, and more are refused; so is one that lacks either, or is not there."""
    record = messages.Origin("d" * 64, "{}").to_record()
    halves = [{name: record[name]} for name in record]
    contents = [RecordDict({messages.ORIGIN: ConfigRecord(values)}) for values in ({**record, **change}, *halves)]
    for content in contents:
        with pytest.raises(FederationError, match="its origin does not fit"):
            messages.Origin.read(content)
    with pytest.raises(FederationError, match="a message came without origin"):
        messages.Origin.read(RecordDict())


@pytest.mark.parametrize("reason", ["", "the validation loss rose"])
def test_a_verdict_survives_its_record(reason: str) -> None:
    """It is read as it was."""
    verdict = messages.Verdict("ab" * 32, reason)
    assert messages.Verdict.read(RecordDict({messages.VERDICT: verdict.to_record()})) == verdict


@given(st.text(min_size=1, max_size=50))
def test_no_reason_turns_into_a_yes(reason: str) -> None:
    """A verdict with a reason is read as one line of it, or refused: never as an adoption."""
    content = RecordDict({messages.VERDICT: messages.Verdict("ab" * 32, reason).to_record()})
    try:
        assert messages.Verdict.read(content).reason == one_line(reason) != ""
    except FederationError:
        assert not one_line(reason)


@pytest.mark.parametrize(
    "change",
    [
        *({"digest": value} for value in ("", "a" * 63, "A" * 64, "a" * 64 + "\n", 7)),
        *({"reason": value} for value in (7, False, "\n", "\u200b")),
        {"loss": 0.5},
    ],
)
def test_a_verdict_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    """A digest is 64 hex digits, a reason text that shows."""
    record = ConfigRecord({**messages.Verdict("ab" * 32, "no").to_record(), **change})
    with pytest.raises(FederationError, match="its verdict does not fit"):
        messages.Verdict.read(RecordDict({messages.VERDICT: record}))


@given(st.binary(min_size=1, max_size=300))
def test_a_state_survives_packing(state: bytes) -> None:
    """What was packed is unpacked, byte by byte."""
    assert (
        messages.state_of(RecordDict({messages.ARRAYS: ArrayRecord({messages.STATE: messages.pack_state(state)})}))
        == state
    )


@given(arrays(st.sampled_from(["<u4", "<u8"]), st.integers(1, 50)))
def test_words_survive_packing(words: np.ndarray) -> None:
    """Words are read as they were, and as words of another number or width they are refused."""
    content = RecordDict({messages.ARRAYS: ArrayRecord({messages.WORDS: Array(words)})})
    bits = 8 * words.itemsize
    np.testing.assert_array_equal(messages.words_of(content, bits, words.size), words)
    for width, length in ((96 - bits, words.size), (bits, words.size + 1), (bits, words.size - 1)):
        with pytest.raises(FederationError, match="its words are"):
            messages.words_of(content, width, length)


@pytest.mark.parametrize(
    "arrays_",
    [
        {},
        {messages.STATE: Array(np.zeros(0, np.uint8))},
        {messages.STATE: Array(np.zeros((2, 2), np.uint8))},
        {messages.STATE: Array("uint8", (2**35,), "numpy.ndarray", b"")},
        {messages.STATE: Array("uint8", (-1,), "numpy.ndarray", b"")},
        {messages.STATE: Array("uint8", (), "numpy.ndarray", b"")},
    ],
)
def test_a_message_without_a_state_or_words_is_refused(arrays_: dict[str, Array]) -> None:
    """What is missing, empty, of another shape or beyond all bounds is no state."""
    content = RecordDict({messages.ARRAYS: ArrayRecord(arrays_)})
    with pytest.raises(FederationError, match="a message came without a state"):
        messages.state_of(content)
    with pytest.raises(FederationError, match="a message came without words"):
        messages.words_of(content, 32, 2)
    for read in (messages.state_of, lambda content: messages.words_of(content, 32, 2)):
        with pytest.raises(FederationError, match="a message came without arrays"):
            read(RecordDict({messages.ARRAYS: ConfigRecord()}))


def test_a_text_is_where_its_name_says() -> None:
    """The text of a record is returned; a missing one, or what is no text, is refused."""
    assert messages.text_of(RecordDict({messages.SUM: ConfigRecord({messages.SUM: "{}"})}), messages.SUM) == "{}"
    for record in (ConfigRecord(), ConfigRecord({messages.SUM: 7}), ConfigRecord({messages.SUM: b"{}"})):
        with pytest.raises(FederationError, match="a message came without the text sum"):
            messages.text_of(RecordDict({messages.SUM: record}), messages.SUM)
    with pytest.raises(FederationError, match="a message came without sum"):
        messages.text_of(RecordDict(), messages.SUM)


def npy(shape: tuple[int, ...], dtype: str, data: bytes) -> bytes:
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("uint64", (2,), b""),
        ("uint64", (2,), b"\x93NUMPY\x01\x00\xff\xff{"),
        ("uint64", (2,), npy((2,), "<u8", bytes(15))),
        ("uint64", (2,), npy((2,), "<u8", bytes(17))),
        ("uint64", (2,), npy((3,), "<u8", bytes(16))),
        ("uint64", (2,), npy((4,), "<u4", bytes(16))),
        ("uint64", (2,), npy((2,), ">u8", bytes(16))),
        ("uint64", (2,), npy((2,), "<f8", bytes(16))),
        ("uint64", (2,), npy((2,), "|O", bytes(16))),
        ("uint64", (3,), npy((3,), "<u8", bytes(24))),
        ("uint64", (2, 1), npy((2, 1), "<u8", bytes(16))),
        ("uint64", (10**13,), npy((10**13,), "<u8", bytes(16))),
        ("uint64", (-1, -2), npy((-1, -2), "<u8", bytes(16))),
        ("uint64", (0, 10**30), npy((0, 10**30), "<u8", b"")),
        ("uint64", (1,) * 80, npy((1,) * 80, "<u8", bytes(8))),
        ("uint64", (), npy((), "<u8", bytes(8))),
        ("float64", (2,), npy((2,), "<f8", bytes(16))),
        ("int64", (2,), npy((2,), "<i8", bytes(16))),
        ("uint64", (2,), b"\x93NUMPY\x01\x00\x10\x27" + b"-" * 10000 + bytes(16)),
    ],
)
def test_arrays_that_are_not_what_they_say_are_refused(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    """Nothing is allocated, and no foreign header is parsed, for an array that is not the one that is due."""
    array = Array(dtype, shape, "numpy.ndarray", data)
    tracemalloc.start()
    try:
        with pytest.raises(FederationError, match="its words are|the data of its words") as raised:
            messages.vector(array, messages.WORDS, "uint64", 2)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert len(str(raised.value)) < 300
