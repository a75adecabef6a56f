"""Folders of images without any table: errors of files that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_images import refused_in_one_line, write_images
from unprivileged import unprivileged

from fedpp.errors import RawDataError
from fedpp.imaging.images import read_image
from fedpp.imaging.readers.image_folders import read_image_folders
from fedpp.imaging.readers.patient_labels import without_images


def test_a_damaged_header_is_refused_and_skipped(tmp_path: Path):
    """A file without the header of an image goes to `refuse`; if that returns, the others are read."""
    for patient in ("p", "q"):
        (tmp_path / patient).mkdir()
        (tmp_path / patient / "2.png").write_text("no image")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "p" / "1.png")
    with pytest.raises(RawDataError) as refused:
        read_image_folders(tmp_path)
    assert str(refused.value) == (
        f"cannot read the image {tmp_path / 'p' / '2.png'}: it is no PNG, JPEG, TIFF, BMP, GIF or WEBP"
    )
    refusals: list[str] = []
    (sequence,) = read_image_folders(tmp_path, lambda path, error: refusals.append(path.parent.name + str(error)[:21]))
    assert (sequence.patient, len(sequence.frames)) == ("p", 1)
    assert refusals == ["pcannot read the image", "qcannot read the image"]
    (tmp_path / "p" / "1.png").unlink()
    with pytest.raises(RawDataError, match="holds no image that can be read"):
        read_image_folders(tmp_path, lambda *_: None)


def test_a_file_that_may_not_be_read_is_named_once():
    """The system's reason is given without its number and without a second file name."""
    with unprivileged(locked=0o000) as file, pytest.raises(RawDataError) as refused:
        read_image(file)
    assert str(refused.value) == f"cannot read the image {file}: Permission denied"


def test_a_patient_that_the_table_leaves_out_has_no_label(tmp_path: Path):
    """Who is not in labels.csv, or has an empty label there, is read without one; a table of strangers is refused."""
    for patient in ("p", "q", "r"):
        (tmp_path / patient).mkdir()
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / patient / "1.png")
    (tmp_path / "labels.csv").write_text("patient,label\np,ill\nr,\n")
    assert {s.patient: s.label for s in read_image_folders(tmp_path)} == {"p": "ill", "q": None, "r": None}
    (tmp_path / "labels.csv").write_text("patient,label\np,ill\nP,well\n,well\n")
    with pytest.raises(RawDataError, match="line 4: patient must not be empty"):
        read_image_folders(tmp_path)
    (tmp_path / "labels.csv").write_text("patient,label\nx,ill\n")
    with pytest.raises(RawDataError, match="gives no label to any of the patients"):
        read_image_folders(tmp_path)


@pytest.mark.parametrize(
    "name", ["Labels.csv", "labels.CSV", "label.csv", "labels.csv.gz", "labels.tsv", "labels.xlsx"]
)
def test_labels_under_another_name_are_not_passed_over(tmp_path: Path, name: str):
    """Without labels.csv, a table that is named almost so holds the labels: the data are not read without them."""
    write_images(tmp_path / "secret", "1.png")
    (tmp_path / name).write_text("patient,label\nsecret,ill\n")
    with refused_in_one_line(f"has {name}, but labels are read from labels.csv alone", hidden="secret"):
        read_image_folders(tmp_path)
    (tmp_path / "labels.csv").write_text("patient,label\nsecret,well\n")
    assert [sequence.label for sequence in read_image_folders(tmp_path)] == ["well"]


def test_a_patient_is_found_in_another_unicode_form(tmp_path: Path):
    """A name that one system composes and another does not is one name, in the count of missing patients, too."""
    names = ("Mu\u0308ller", "M\u00e1ria")
    for name in names:
        write_images(tmp_path / name, "1.png")
    (tmp_path / "labels.csv").write_text(
        "patient,label\nM\u00fcller,ill\nMa\u0301ria,well\nGo\u0308k,ill\n", encoding="utf-8"
    )
    sequences = read_image_folders(tmp_path)
    assert {s.patient: s.label for s in sequences} == dict(zip(names, ("ill", "well"), strict=True))
    assert without_images(sequences, tmp_path) == {"G\u00f6k"}
