"""BreakHis' histology: metadata in file names."""

import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import DATA
from raw_images import values, write_images

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.readers.breakhis import is_breakhis, read_breakhis
from fedpp.imaging.splits import SplitPlan

BREAKHIS = DATA / "breakhis_layout"


def test_the_real_patients_are_the_slides():
    """45 different <year>-<slide>: one less than the folders of slides, since 13412 has two, one a diagnosis."""
    folders = {file.parents[1] for file in BREAKHIS.rglob("*.png")}
    sequences = read_breakhis(BREAKHIS)
    assert len(folders) == 46
    assert len({sequence.patient for sequence in sequences}) == 45
    assert {s.id for s in sequences if s.patient == "14-13412"} == {
        "ductal_carcinoma 100X",
        "lobular_carcinoma 100X",
        "lobular_carcinoma 200X",
    }


def test_a_whole_slide_is_one_sequence_of_each_diagnosis():
    """With series="slide" there are 46 sequences, one a folder, and still all 493 images."""
    sequences = read_breakhis(BREAKHIS, series="slide")
    assert len(sequences) == 46
    assert sum(len(sequence.frames) for sequence in sequences) == 493
    assert {s.id for s in sequences if s.patient == "14-13412"} == {"ductal_carcinoma", "lobular_carcinoma"}


def test_a_slide_of_two_diagnoses_stays_in_one_split(tmp_path: Path):
    """Two sequences of different labels and one slide are one patient: no seed puts them into two splits."""
    write_images(tmp_path, "SOB_B_F-14-7-100-001.png", "SOB_M_DC-14-7-100-002.png")
    write_images(tmp_path, *(f"SOB_B_A-14-{slide}-100-001.png" for slide in range(10, 20)))
    sequences = read_breakhis(tmp_path)
    assert {(s.id, s.label) for s in sequences if s.patient == "14-7"} == {
        ("fibroadenoma 100X", "benign"),
        ("ductal_carcinoma 100X", "malignant"),
    }
    assert len(SplitPlan("stratified").assign(sequences, lambda text: sha256(text.encode()).hexdigest())) == 11


def test_images_are_in_the_order_of_magnification_and_number(tmp_path: Path):
    """40X comes before 100X and image 9 before image 010, wherever the files lie."""
    slide = "SOB_M_PC-15-190EF"
    write_images(tmp_path, f"{slide}-40-9.png", f"{slide}-40-010.png", f"{slide}-100-001.png", f"{slide}-100-002.PNG")
    (tmp_path / "a").mkdir()
    shutil.move(tmp_path / f"{slide}-100-002.PNG", tmp_path / "a")
    (sequence,) = read_breakhis(tmp_path, series="slide")
    assert values(sequence.frames) == [1, 2, 3, 4]
    near, far = read_breakhis(tmp_path)
    assert (near.id, values(near.frames)) == ("papillary_carcinoma 40X", [1, 2])
    assert (far.id, values(far.frames)) == ("papillary_carcinoma 100X", [3, 4])
    assert near.patient == far.patient == "15-190EF"


def test_other_files_are_passed_over(tmp_path: Path):
    """Notes, what a desktop leaves, and folders named like images are no images."""
    (tmp_path / "SOB_notes.txt").write_text("no image")
    assert not is_breakhis(tmp_path.rglob("*"))
    write_images(tmp_path, "SOB_M_LC-14-1-40-001.png", "other.png", "SOB_M_LC-14-1-40-002.png.png")
    (tmp_path / "._SOB_M_LC-14-1-40-001.png").write_bytes(b"left by a desktop")
    (tmp_path / "SOB_M_LC-14-1-40-003.png").mkdir()
    (sequence,) = read_breakhis(tmp_path)
    assert len(sequence.frames) == 1
    assert is_breakhis(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no image named like SOB_B_TA-14-4659-40-001.png"),
        (["SOB_B_DC-14-1-40-001.png"], "is of an unknown type: it must be one of B_A, B_F"),
        (["SOB_B_A-14-1-40-001.png", "SOB_B_A-14-1-40-001.PNG"], "are the same image"),
        (["a/SOB_B_A-14-1-40-001.png", "b/SOB_B_A-14-1-40-001.png"], "are the same image"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, names: list[str], message: str):
    """No image, a type that is none of its class, and an image that exists twice are refused."""
    write_images(tmp_path, *names)
    with pytest.raises(RawDataError, match=message) as refused:
        read_breakhis(tmp_path)
    assert "\n" not in str(refused.value)


def test_an_unknown_series_is_refused(tmp_path: Path):
    """The series that there are are named."""
    with pytest.raises(ConfigError, match="series must be one of magnification, slide, got 'time'"):
        read_breakhis(tmp_path, series="time")


def test_a_file_that_cannot_be_used_is_refused_and_skipped(tmp_path: Path):
    """An unknown type and a second file of one name go to `refuse`; if that returns, the others are read."""
    write_images(tmp_path / "a", "SOB_B_A-14-1-40-001.png", "SOB_B_XX-14-1-40-001.png")
    write_images(tmp_path / "b", "SOB_B_A-14-1-40-001.png", "SOB_B_A-14-1-40-002.png")
    refusals: list[Path] = []
    (sequence,) = read_breakhis(tmp_path, refuse=lambda path, _: refusals.append(path))
    assert values(sequence.frames) == [1, 2]
    assert refusals == [tmp_path / "a" / "SOB_B_XX-14-1-40-001.png", tmp_path / "b" / "SOB_B_A-14-1-40-001.png"]
    for file in tmp_path.rglob("SOB_B_A*"):
        file.unlink()
    with pytest.raises(RawDataError, match="holds no image named like"):
        read_breakhis(tmp_path, refuse=lambda *_: None)
