"""Frames that are read on access."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpp.imaging.sequence import DecodedLater, Frame, FrameFile, FrameFiles, last_known

READ: list[int] = []


def read(path: Path, count: int, *, colour: bool) -> list[Frame]:
    """Pretend to read a file of `count` frames, numbered from its name; in colour they have three channels."""
    first = int(path.name)
    READ.append(first)
    return [np.full((1, 1, 3) if colour else (1, 1), first + i) for i in range(count)]


def files(counts: list[int]) -> FrameFiles:
    firsts = np.cumsum([0, *counts[:-1]]).tolist()
    return FrameFiles([FrameFile(Path(str(first)), count, read) for first, count in zip(firsts, counts, strict=True)])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.data())
def test_they_are_a_sequence_of_their_files_frames(counts: list[int], data: st.DataObject):
    """Length, index, slice, iteration and pickling are those of the list of all frames."""
    frames, expected = files(counts), list(range(sum(counts)))
    assert len(frames) == len(expected)
    assert [int(f[0, 0]) for f in frames] == expected
    index = data.draw(st.sampled_from(expected))
    assert int(frames[index][0, 0]) == expected[index]
    assert int(frames[-1 - index][0, 0]) == expected[-1 - index]
    part = data.draw(st.slices(len(expected)))
    assert [int(f[0, 0]) for f in frames[part]] == expected[part]
    assert [int(f[0, 0]) for f in pickle.loads(pickle.dumps(frames))] == expected  # noqa: S301  our own
    wanted = sorted(data.draw(st.sets(st.sampled_from(expected))))
    assert [int(f[0, 0]) for f in frames.take(wanted)] == wanted


def test_a_file_is_read_once_and_only_if_it_is_wanted():
    """Three frames of one file cost one reading, and the files of no wanted frame none."""
    frames = files([2, 5, 3])
    READ.clear()
    frames.take([2, 4, 6])
    assert READ == [2]


def test_an_index_too_large_is_an_index_error():
    """Iteration by index ends."""
    with pytest.raises(IndexError):
        files([1, 2])[3]


def test_frames_that_are_decoded_later_are_a_sequence():
    """Each is decoded on access, by its number from the start, and none beyond the end."""
    decoded: list[int] = []

    def decode(number: int) -> Frame:
        decoded.append(number)
        return np.full((1, 1), number)

    frames = DecodedLater(3, decode)
    assert decoded == []
    assert [int(frame[0, 0]) for frame in (frames[-1], *frames[1:])] == [2, 1, 2]
    assert decoded == [2, 1, 2]
    assert len(list(frames)) == len(frames) == 3
    with pytest.raises(IndexError):
        frames[3]


def test_frames_are_taken_in_colour_on_request():
    """Their reader is called for colour, and for grey otherwise."""
    assert [frame.shape for frame in files([2, 1]).take([0, 2], colour=True)] == [(1, 1, 3)] * 2
    assert [frame.shape for frame in files([2, 1])] == [(1, 1)] * 3


@pytest.mark.parametrize(
    ("labels", "last"),
    [
        ((), None),
        ((None, None), None),
        (("a", "b", None), "b"),
        ((("1", None, "0"), None, (None, None, "1")), ("1", None, "1")),
        ((("0", "1"), ("1", "0")), ("1", "0")),
    ],
)
def test_the_last_label_that_is_known(labels, last):
    """Of one label the last that is not missing; of several findings that of each, whenever it was known."""
    assert last_known(labels) == last
