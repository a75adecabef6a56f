"""Sequences restricted to the files that can be decoded."""

from pathlib import Path

import numpy as np
import pytest

from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.readable import readable
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import Frame, FrameFile, FrameFiles, ImageSequence, refuse

READ: list[Path] = []


def read(file: Path, count: int, *, colour: bool) -> list[Frame]:
    """Pretend to read a file, which fails if its name says so."""
    assert not colour
    READ.append(file)
    if "bad" in file.name:
        raise UnusableFileError(f"cannot read {file}", Reason.DAMAGED)
    return [np.full((1, 1), float(i)) for i in range(count)]


def sequence(patient: str, *files: tuple[str, int], labels: str = "", label: str | None = None) -> ImageSequence:
    """Make a sequence of files and their numbers of frames, with a label a frame, "-" for none, and times."""
    frames = FrameFiles([FrameFile(Path(name), count, read) for name, count in files])
    known = tuple(None if letter == "-" else letter for letter in labels) or None
    times = tuple(float(i) for i in range(len(frames))) if labels else None
    return ImageSequence("s", patient, label, frames, known, times)


def test_files_that_fail_are_removed_with_their_labels_and_times():
    """Labels and times stay those of their frames, the label is the last one known, and no frames are no sequence."""
    sequences = [
        sequence("p", ("a", 1), ("bad b", 2), ("c", 2), ("bad d", 1), labels="01101x", label="x"),
        sequence("q", ("bad e", 1), ("bad f", 3)),
        sequence("r", ("g", 3), ("bad h", 1), label="kept"),
        sequence("s", ("i", 1), ("bad j", 1), labels="-1", label="1"),
        sequence("t", ("k", 2), labels="01", label="1"),
    ]
    refusals: list[str] = []
    p, r, s, t = readable(sequences, lambda file, error: refusals.append(f"{file}: {error}"))
    assert refusals == [f"bad {letter}: cannot read bad {letter}" for letter in "bdefhj"]
    assert (p.labels, p.times, p.label) == (("0", "0", "1"), (0, 3, 4), "1")
    assert [file.path.name for file in p.frames.files] == ["a", "c"]
    assert (len(r.frames), r.labels, r.times, r.label) == (3, None, None, "kept")
    assert (s.labels, s.label) == ((None,), None)
    assert t is sequences[4]


def test_each_file_is_decoded_once():
    """A file in two sequences is read once, and refused once."""
    refusals: list[Path] = []
    READ.clear()
    readable([sequence("p", ("a", 1), ("bad", 1)), sequence("q", ("bad", 1))], lambda file, _: refusals.append(file))
    assert [file.name for file in READ] == ["a", "bad"]
    assert refusals == [Path("bad")]


def test_a_refusal_that_raises_ends_it():
    """With `refuse` the first file that fails ends the reading."""
    with pytest.raises(RawDataError, match="cannot read bad"):
        readable([sequence("p", ("a", 1), ("bad", 1))], refuse)


def test_parts_of_files_are_not_taken():
    """A window of a sequence would lose count: it is refused."""
    whole = sequence("p", ("a", 3))
    part = ImageSequence("s", "p", None, whole.frames[1:])
    with pytest.raises(ValueError, match="sequences of whole files"):
        readable([part], refuse)
