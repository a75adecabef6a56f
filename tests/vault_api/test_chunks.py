"""Arrays in chunks: unchanged, or refused in one line with the values received and the next step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedpp.errors import VaultError
from fedpp.vault_api.chunks import CHUNK_BYTES, from_chunks, to_chunks
from fedpp.vault_api.vault_pb2 import ArrayChunk

ARRAYS = arrays(
    st.sampled_from([np.float32, np.float64]), array_shapes(max_side=3), elements=st.floats(-1, 1, width=32)
)


@given(st.dictionaries(st.text("abc", min_size=1), ARRAYS, max_size=3))
def test_arrays_survive_their_chunks(given_: dict[str, np.ndarray]):
    """Names, dtypes, shapes and values of several arrays in one stream."""
    read = dict(from_chunks([chunk for name, array in given_.items() for chunk in to_chunks(name, array)]))
    assert read.keys() == given_.keys()
    for name, array in given_.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_a_long_array_has_several_chunks():
    """No chunk is longer than allowed."""
    array = np.arange(CHUNK_BYTES // 4 + 1, dtype=np.float64)
    chunks = list(to_chunks("w", array))
    assert [len(chunk.data) for chunk in chunks] == [0, CHUNK_BYTES, CHUNK_BYTES, 8]
    np.testing.assert_array_equal(dict(from_chunks(chunks))["w"], array)


@pytest.mark.parametrize(
    ("chunks", "line"),
    [
        (
            [ArrayChunk(name="w", dtype="int8", shape=[1])],
            (
                "an array is of float32 or float64 and at most 4294967296 bytes, got 'w' of 'int8' and shape [1]: "
                "use one fedpp everywhere"
            ),
        ),
        (
            [ArrayChunk(name="w\n", dtype="float64", shape=[2**29 + 1])],
            r"got 'w\n' of 'float64' and shape [536870913]: ",
        ),
        ([ArrayChunk(name="w", dtype="float32", shape=[2**16] * 999)], "shape [65536, 65536, "),
        ([ArrayChunk(data=b"abc")], "3 bytes of an array came before its name: use one fedpp everywhere"),
        (
            [ArrayChunk(name="w", dtype="float32", shape=[2, 3], data=bytes(25))],
            "array 'w' of float32 and shape [2, 3] has 24 bytes, got more: use one fedpp everywhere",
        ),
        (
            [ArrayChunk(name="w", dtype="float32", shape=[2, 3]), ArrayChunk(data=bytes(23))],
            "array 'w' of float32 and shape [2, 3] has 24 bytes, got fewer: use one fedpp everywhere",
        ),
        ([ArrayChunk(name=name, dtype="float32", shape=[1]) for name in "ab"], "array 'a' of float32 and shape [1] "),
    ],
)
def test_chunks_that_do_not_fit_are_refused(chunks: list[ArrayChunk], line: str):
    """Another dtype, too much, and data that do not fit the shape, are one line that names the array."""
    with pytest.raises(VaultError) as raised:
        list(from_chunks(chunks))
    assert line in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300
