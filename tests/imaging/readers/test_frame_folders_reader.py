"""Folders of frames with an index: read in order, refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from conftest import loaded
from PIL import Image
from raw_images import refused_in_one_line, values, write_images

from fedpp.errors import RawDataError
from fedpp.imaging.readers.frame_folders import read_frame_folders


def write_index(folder: Path, *rows: str, header: str = "sequence,patient,label") -> None:
    (folder / "index.csv").write_text("\n".join((header, *rows)) + "\n")


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path):
    """Frame 10 comes after frame 9, with leading zeros or not; other files are ignored."""
    write_images(tmp_path / "s", "f1.png", "f02.png", "f9.bmp", "f10.png", "f100.tiff")
    (tmp_path / "s" / "notes.txt").write_text("no image")
    (tmp_path / "s" / "._f1.png").write_bytes(b"left by a desktop")
    write_index(tmp_path, "s,p,a")
    (sequence,) = read_frame_folders(tmp_path)
    assert values(sequence.frames) == [1, 2, 3, 4, 5]


def test_digits_of_other_kinds_are_no_numbers(tmp_path: Path):
    """A superscript in a file name is text: it does not break the order."""
    write_images(tmp_path / "s", "a\N{SUPERSCRIPT TWO}1.png", "1\N{SUPERSCRIPT TWO}2.png", "\N{SUPERSCRIPT TWO}1.png")
    write_index(tmp_path, "s,p,a")
    assert sorted(values(read_frame_folders(tmp_path)[0].frames)) == [1, 2, 3]


def test_a_sequence_of_several_parts_is_in_the_order_of_time(tmp_path: Path):
    """Folders `sequence/time` make one sequence, time 2 before time 10, whatever the order of the rows."""
    write_images(tmp_path / "s" / "10", "0.png")
    write_images(tmp_path / "s" / "2", "0.png", "1.png")
    write_index(tmp_path, "s,p,a,10", "s,p,a,2", header="sequence,patient,label,time")
    (sequence,) = read_frame_folders(tmp_path)
    assert values(sequence.frames) == [1, 2, 1]


def test_other_columns_and_an_empty_label(tmp_path: Path):
    """Columns that are not needed are ignored, and an empty label is none."""
    write_images(tmp_path / "s", "0.png")
    write_index(tmp_path, "3,s,,p", header="severity,sequence,label,patient")
    (sequence,) = read_frame_folders(tmp_path)
    assert (sequence.id, sequence.patient, sequence.label) == ("s", "p", None)


@pytest.mark.parametrize(
    ("mode", "pixel", "grey"),
    [
        ("L", 200, 200),
        ("RGB", (255, 0, 0), 76),
        ("RGBA", (0, 255, 0, 51), 30),
        ("1", 1, 255),
        ("I;16", 51_400, 200),
        ("F", 0.25, 0.25),
    ],
)
def test_pixels_become_grey(tmp_path: Path, mode: str, pixel: object, grey: float):
    """Colour becomes its luma, on black if it is transparent; 16 bits become the scale of 8, floats keep values."""
    folder = tmp_path / "s"
    folder.mkdir()
    Image.new(mode, (3, 2), pixel).save(folder / ("0.tiff" if mode == "F" else "0.png"))
    write_index(tmp_path, "s,p,a")
    (frame,) = read_frame_folders(tmp_path)[0].frames
    np.testing.assert_array_equal(frame, np.full((2, 3), grey))


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("sequence,patient", ["s,secret"], "has no column label, it has sequence, patient: is its"),
        ("sequence,patient,label", [], "names no sequence"),
        ("sequence,patient,label", ["s,secret,a", "gone,secret,a"], "line 3 names no folder below"),
        ("sequence,patient,label", ["s,,a"], "line 2: sequence and patient must not be empty"),
        ("sequence,patient,label", ["s,secret,a", "s,secret,b"], "more than one patient or label, lines 2, 3"),
        ("sequence,patient,label", ["secret,p,a", "secret,p,a"], "twice, lines 2, 3"),
        ("sequence,patient,label", ["s,secret,a", "s/,secret,a"], "lines 2, 3 name one folder"),
        ("sequence,patient,label", ["s,secret,a", "x/../s,q,a"], "lines 2, 3 name one folder"),
        ("sequence,patient,label,time", ["s,secret,a,1", "s,secret,a,2"], "line 2 names no folder below"),
        ("sequence,patient,label", ["empty,secret,a"], "empty holds no image"),
        ("sequence,patient,label", ["broken,secret,a"], "cannot read the image"),
        ("sequence,patient,label", ["text,secret,a"], "cannot read the image"),
        ("sequence,patient,label", ["endless,secret,a"], "not finite"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, header: str, rows: list[str], message: str):
    """A missing column, row, folder or image, and a broken image, are named; the patient is not."""
    write_images(tmp_path / "s", "0.png")
    write_images(tmp_path / "broken", "0.png")
    (tmp_path / "broken" / "0.png").write_bytes((tmp_path / "broken" / "0.png").read_bytes()[:45])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "0.png").write_text("no image")
    (tmp_path / "endless").mkdir()
    Image.new("F", (2, 2), float("nan")).save(tmp_path / "endless" / "0.tiff")
    write_index(tmp_path, *rows, header=header)
    with refused_in_one_line(message, hidden="secret", besides=str(tmp_path)):
        loaded(read_frame_folders(tmp_path))


def test_damaged_images_are_refused_quietly(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    """Whatever byte of an image is changed, it is read or refused: no other error, no warning."""
    generator = np.random.default_rng(0)
    for suffix in (".png", ".jpg", ".tiff", ".bmp"):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        Image.fromarray(generator.integers(0, 255, (9, 7), dtype=np.uint8)).save(folder / f"0{suffix}")
        write_index(tmp_path, f"{folder.name},p,a")
        intact = (folder / f"0{suffix}").read_bytes()
        refused = 0
        for _ in range(60):
            damaged = bytearray(intact)
            damaged[generator.integers(len(intact))] = generator.integers(256)
            (folder / f"0{suffix}").write_bytes(damaged[: generator.integers(1, 2 * len(intact))])
            try:
                loaded(read_frame_folders(tmp_path))
            except RawDataError:
                refused += 1
        assert refused > 8
    assert not recwarn.list


def test_blanks_do_not_make_another_patient(tmp_path: Path):
    """Spaces around a value are no part of it: one patient must not land in two splits."""
    for name in ("s", "t"):
        write_images(tmp_path / name, "0.png")
    write_index(tmp_path, "s,P1,a", "t , P1 ,a ")
    assert {(s.patient, s.label) for s in read_frame_folders(tmp_path)} == {("P1", "a")}


def test_what_a_file_is_counts_and_not_its_name(tmp_path: Path):
    """A file of another format under an image's name is refused: Pillow's rarer decoders never see it."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "0.png").write_bytes(b"P5 2 2 255 1234")
    write_index(tmp_path, "s,p,a")
    with pytest.raises(RawDataError, match=r"0\.png: it is no PNG, JPEG, TIFF, BMP, GIF or WEBP$"):
        loaded(read_frame_folders(tmp_path))


def test_a_folder_outside_is_not_read(tmp_path: Path):
    """A sequence or a time that leads out of the folder is refused, by its line."""
    write_images(tmp_path / "outside", "0.png")
    write_images(tmp_path / "root" / "s", "0.png")
    for row in ("../outside,p,a,", f"{tmp_path / 'outside'},p,a,", "s,p,a,../../outside"):
        write_index(tmp_path / "root", row, header="sequence,patient,label,time")
        with pytest.raises(RawDataError, match="line 2: sequence leads out of"):
            read_frame_folders(tmp_path / "root")
    write_index(tmp_path / "root", "../root/s,p,a")
    assert len(read_frame_folders(tmp_path / "root")[0].frames) == 1


def test_a_missing_folder_is_refused_and_skipped(tmp_path: Path):
    """A folder that is missing or empty goes to `refuse`; if that returns, the others are read, if there are any."""
    write_images(tmp_path / "s" / "1", "0.png")
    (tmp_path / "empty").mkdir()
    rows = ("s,p,a,1", "s,p,a,2", "empty,q,b,", "gone,r,b,")
    write_index(tmp_path, *rows, header="sequence,patient,label,time")
    refusals: dict[Path, str] = {}
    (sequence,) = read_frame_folders(tmp_path, lambda path, error: refusals.update({path: str(error)}))
    assert (sequence.id, len(sequence.frames)) == ("s", 1)
    assert [path.relative_to(tmp_path).as_posix() for path in refusals] == ["s/2", "empty", "gone"]
    assert "line 5 names no folder below" in refusals[tmp_path / "gone"]
    write_index(tmp_path, *rows[1:], header="sequence,patient,label,time")
    with pytest.raises(RawDataError, match="names no sequence whose folder holds an image"):
        read_frame_folders(tmp_path, lambda *_: None)


def test_times_may_be_of_many_digits(tmp_path: Path):
    """A number too long for Python to count with is after the others."""
    for folder in ("1" * 100, "2"):
        write_images(tmp_path / "s" / folder, "0.png")
    rows = [f"s,p,a,{'9' * 5_000}", f"s,p,a,{'1' * 100}", "s,p,a,2"]
    write_index(tmp_path, *rows, header="sequence,patient,label,time")
    (sequence,) = read_frame_folders(tmp_path, lambda *_: None)
    assert [file.path.parent.name for file in sequence.frames.files] == ["2", "1" * 100]
