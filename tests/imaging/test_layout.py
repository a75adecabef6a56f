"""What `read_sequences` recognises."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.layout import read_sequences
from simulations.phantom import write_phantom


def test_auto_tells_the_layouts_apart(tmp_path: Path):
    """A table with a column "sequence" means frame folders, another table beside DICOM does not."""
    [dicom] = write_phantom(tmp_path, hospitals=1, patients=2, visits=2, size=16, seed=0)
    (dicom / "index.csv").write_text("file,modality\n")
    frames = tmp_path / "frames"
    (frames / "s").mkdir(parents=True)
    (frames / "unlisted").mkdir()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(frames / "s" / "1.png")
    (frames / "index.csv").write_text("sequence,patient,label\ns,p,ill\n")
    assert read_sequences(dicom, "auto")[1].startswith("DICOM folder")
    assert read_sequences(frames, "auto")[1] == (
        "frame folders, listed by index.csv: 1 sequences of 1 patients, 1 frames; "
        "1 folders that it does not list were ignored"
    )


def test_paths_that_hold_nothing_are_refused(tmp_path: Path):
    """A missing path, an empty folder, a folder of other things and a wrong table each give their line."""
    with pytest.raises(RawDataError, match="does not exist"):
        read_sequences(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RawDataError, match="is empty: it has neither"):
        read_sequences(tmp_path / "empty")
    with pytest.raises(RawDataError, match="holds no DICOM image"):
        read_sequences(tmp_path / "empty", "dicom")
    with pytest.raises(RawDataError, match=r"index.csv is missing"):
        read_sequences(tmp_path / "empty", "frames")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    with pytest.raises(RawDataError, match="has neither"):
        read_sequences(tmp_path / "other")
    with pytest.raises(RawDataError, match="is not DICOM"):
        read_sequences(tmp_path / "other" / "notes.txt")
    with pytest.raises(RawDataError, match="is not a folder"):
        read_sequences(tmp_path / "other" / "notes.txt", "frames")
    (tmp_path / "other" / "index.csv").write_text("patient,label\n")
    with pytest.raises(RawDataError, match="has no column sequence"):
        read_sequences(tmp_path / "other")
    with pytest.raises(ConfigError, match="got 'nifti'"):
        read_sequences(tmp_path, "nifti")
