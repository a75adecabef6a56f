"""All files that the installed pydicom brings with it: read as pydicom's own decode shows them, or refused."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels.processing import apply_color_lut, apply_voi_lut

from fedpp.errors import UnusableFileError
from fedpp.imaging.readers.dicom_folder import is_dicom, read_dicom

ROOT = Path(pydicom.__file__).parent / "data"
LUMA = (0.299, 0.587, 0.114)
READ = 86  # of these files, at least


def shown(image: pydicom.Dataset) -> np.ndarray:
    """Return the last frame as pydicom decodes it, in its window."""
    frame = image.pixel_array
    frame = frame[-1] if int(image.get("NumberOfFrames") or 1) > 1 else frame
    if image.PhotometricInterpretation == "PALETTE COLOR":
        frame = apply_color_lut(frame, image)
    if frame.ndim == 3:
        return frame[..., :3] @ np.array(LUMA)
    grey = apply_voi_lut(
        frame * float(image.get("RescaleSlope") or 1) + float(image.get("RescaleIntercept") or 0), image
    )
    return -grey if image.PhotometricInterpretation == "MONOCHROME1" else grey


@pytest.mark.slow
def test_files_of_pydicom_are_read_as_it_shows_them():
    """Each file is refused by its reason, or its last frame correlates with pydicom's decode but for rounding."""
    read, wrong = 0, []
    for file in filter(is_dicom, (path for path in sorted(ROOT.rglob("*")) if path.is_file())):
        try:
            ((sequence,), _, _) = read_dicom(file)
            ours = list(sequence.frames)[-1]
        except UnusableFileError:
            continue
        read += 1
        with warnings.catch_warnings(action="ignore"):
            try:
                theirs = shown(pydicom.dcmread(file))
            except (NotImplementedError, RuntimeError):  # pydicom has no decoder of its own for all
                continue
        if np.ptp(theirs) > 1e-9 and np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] < 0.9999:
            wrong.append(file.name)
    assert read >= READ
    assert wrong == []
