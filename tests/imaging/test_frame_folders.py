"""Frame folders listed by index.csv."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedpp.errors import RawDataError
from fedpp.imaging.layout import read_sequences

DATA = Path(os.environ.get("FEDPP_DATA", Path(__file__).parents[3] / "shared" / "data"))
HEADER = "sequence,patient,label,time,probe\n"


def _write_frame(file: Path, value: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(file)


def _values(frames) -> list[float]:
    return [float(frame.mean()) for frame in frames]


def test_frames_stand_in_the_order_of_their_numbers(tmp_path: Path):
    """Frame 10 comes after frame 2, with or without leading zeros; ids keep theirs, other files are ignored."""
    for number in (10, 2, 1):
        _write_frame(tmp_path / "s1" / f"frame{number}.png", number)
    (tmp_path / "s1" / "notes.txt").write_text("not a frame")
    (tmp_path / "index.csv").write_text(HEADER + "s1,007,ill,2020-01-02,convex\n")
    [sequence], _ = read_sequences(tmp_path, "frames")
    assert _values(sequence.frames) == [1, 2, 10]
    assert (sequence.id, sequence.patient, sequence.label) == ("s1", "007", "ill")
    assert sequence.times == ("2020-01-02",) * 3


@pytest.mark.parametrize(
    ("name", "mode", "tolerance"), [("a.jpg", "RGB", 2), ("a.tif", "I;16", 0), ("a.png", "RGBA", 0), ("a.PNG", "L", 0)]
)
def test_images_of_every_kind_become_grey(tmp_path: Path, name: str, mode: str, tolerance: float):
    """PNG, JPEG and TIFF, grey, colour and 16 bit, give one plane of grey values."""
    (tmp_path / "s").mkdir()
    if mode == "I;16":
        image, expected = Image.fromarray(np.full((8, 9), 4000, np.uint16)), 4000.0
    else:
        image, expected = Image.new(mode, (9, 8), 90 if mode == "L" else (90,) * len(mode)), 90.0
    image.save(tmp_path / "s" / name)
    (tmp_path / "index.csv").write_text(HEADER + "s,p,ill,,\n")
    [sequence], _ = read_sequences(tmp_path)
    assert sequence.frames[0].shape == (8, 9)
    assert abs(float(sequence.frames[0].mean()) - expected) <= tolerance


def test_a_table_of_a_spreadsheet_is_read(tmp_path: Path):
    """A byte order mark and blank labels in all rows are fine: the sequences are unlabelled."""
    _write_frame(tmp_path / "s" / "1.png", 1)
    (tmp_path / "index.csv").write_text("\ufeff" + HEADER + "s,p,,,\n", encoding="utf-8")
    [sequence], described = read_sequences(tmp_path)
    assert sequence.label is None
    assert described == "frame folders, listed by index.csv: 1 sequences of 1 patients, 1 frames"


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (HEADER + "absent,PATIENT-X,ill,,\n", "absent, which is missing"),
        (HEADER + "empty,PATIENT-X,ill,,\n", "empty has no frames"),
        (HEADER + "broken,PATIENT-X,ill,,\n", "broken/1.png is not a readable image"),
        (HEADER + "good,PATIENT-X,ill,,\ngood,PATIENT-X,ill,,\n", "line 3 names the folder of line 2 again"),
        (HEADER + "good,PATIENT-X,ill,,\npages,PATIENT-X,,,\n", "line 3 has no label"),
        (HEADER + "good,,ill,,\n", "line 2 has no patient"),
        (HEADER + ",PATIENT-X,ill,,\n", "line 2 has no sequence"),
        (HEADER + "pages,PATIENT-X,ill,,\n", "1.tif holds several images"),
        (HEADER + "nan,PATIENT-X,ill,,\n", "1.tif has pixels that are not finite"),
        (HEADER, "lists no sequence"),
        ("sequence,label\ngood,PATIENT-X\n", "has no column patient"),
        ("good,PATIENT-X,ill\n", "has no column sequence, patient, label"),
        ("", "has no column sequence, patient, label"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, table: str, named: str):
    """Each fault of table or images gives one line that says where, and names no patient."""
    _write_frame(tmp_path / "good" / "1.png", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.png").write_bytes((tmp_path / "good" / "1.png").read_bytes()[:40])
    (tmp_path / "pages").mkdir()
    page = Image.new("L", (3, 3))
    page.save(tmp_path / "pages" / "1.tif", save_all=True, append_images=[page])
    (tmp_path / "nan").mkdir()
    Image.fromarray(np.full((3, 3), np.nan, np.float32)).save(tmp_path / "nan" / "1.tif")
    (tmp_path / "index.csv").write_text(table)
    with pytest.raises(RawDataError) as refused:
        read_sequences(tmp_path, "frames")
    message = str(refused.value)
    assert named in message
    assert "\n" not in message
    assert "PATIENT-X" not in message


def test_the_real_ultrasound_set_is_read_whole():
    """124 sequences of 78 patients, 16 frames of 64 x 64 each, with the labels of the table."""
    folder = DATA / "ultrasound_sequences"
    sequences, described = read_sequences(folder)
    with (folder / "index.csv").open() as content:
        table = [(row["sequence"], row["patient"], row["label"]) for row in csv.DictReader(content)]
    assert [(s.id, s.patient, s.label) for s in sequences] == table
    assert {len(s.frames) for s in sequences} == {16}
    assert {frame.shape for s in sequences for frame in s.frames} == {(64, 64)}
    assert "124 sequences of 78 patients, 1984 frames" in described
