"""What is recognised, why, and what is said where nothing is."""

from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from PIL import Image

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.layout import read_sequences


def write_frames(folder: Path, header: str = "sequence,patient,label") -> None:
    (folder / "s").mkdir(parents=True)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / "s" / "0.png")
    (folder / "index.csv").write_text(f"{header}\ns,p,a\n")


def copy_dicom(folder: Path, name: str) -> Path:
    (folder / name).write_bytes((DATA / "dicom" / name).read_bytes())
    return folder / name


def test_frame_folders_are_recognised(tmp_path: Path):
    """An index with a column "sequence" makes frame folders, and a folder that it does not list is told."""
    write_frames(tmp_path)
    (tmp_path / "forgotten").mkdir()
    sequences, recognised = read_sequences(tmp_path)
    assert [s.id for s in sequences] == ["s"]
    assert recognised == (
        "frame folders, listed by index.csv: 1 sequences of 1 patients, 1 frames; "
        "1 folders that it does not list were ignored"
    )


def test_dicom_is_recognised_beside_another_index(tmp_path: Path):
    """DICOM files win over an index.csv that is no index of frame folders, with and without suffix."""
    copy_dicom(tmp_path, "CT_small.dcm").rename(tmp_path / "IM0001")
    (tmp_path / "index.csv").write_text("file,modality\nIM0001,CT\n")
    sequences, recognised = read_sequences(tmp_path)
    assert len(sequences) == 1
    assert recognised == (
        "DICOM folder, by the mark in its files: 1 image files, 1 sequences of 1 patients, 1 frames, without labels"
    )


def test_one_dicom_file_is_recognised():
    """The path of a file is read as DICOM."""
    sequences, recognised = read_sequences(DATA / "dicom" / "examples_ybr_color.dcm")
    assert len(sequences[0].frames) == 30
    assert recognised.startswith("DICOM file: 1 image files, 1 sequences of 1 patients, 30 frames")


def test_a_layout_that_is_named_is_not_guessed(tmp_path: Path):
    """With both kinds in a folder, `layout` decides."""
    write_frames(tmp_path)
    copy_dicom(tmp_path, "CT_small.dcm")
    assert read_sequences(tmp_path, "frames")[0][0].frames[0].shape == (2, 2)
    assert read_sequences(tmp_path, "dicom")[0][0].frames[0].shape == (128, 128)
    with pytest.raises(ConfigError, match="layout must be one of auto, frames, dicom, got 'nifti'"):
        read_sequences(tmp_path, "nifti")


@pytest.mark.parametrize("layout", ["auto", "frames", "dicom"])
def test_nothing_to_read_is_said(tmp_path: Path, layout: str):
    """An empty folder, a folder of other things, and a path that does not exist are refused by name."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("no image")
    for name in ("empty", "other", "absent"):
        with pytest.raises(RawDataError, match=str(tmp_path / name)):
            read_sequences(tmp_path / name, layout)


def test_an_index_without_its_column_is_named(tmp_path: Path):
    """An index.csv that lacks "sequence", with no DICOM about, is told what it lacks; so is one that is no text."""
    write_frames(tmp_path, header="folder,patient,label")
    with pytest.raises(RawDataError, match="has no column sequence: it has folder, patient, label"):
        read_sequences(tmp_path)
    (tmp_path / "index.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RawDataError, match="cannot read the index"):
        read_sequences(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    """A single image file is neither layout."""
    file = tmp_path / "0.png"
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(file)
    with pytest.raises(RawDataError, match="is no DICOM file"):
        read_sequences(file)
    with pytest.raises(RawDataError, match="is not a folder"):
        read_sequences(file, "frames")
