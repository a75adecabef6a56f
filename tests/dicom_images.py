"""Images for tests of DICOM: a ramp of 12 bits, with tags of any VR, written to a file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

SIDE = 32
RAMP = np.add.outer(3 * np.arange(SIDE), 7 * np.arange(SIDE)) * 13  # 0 .. 4030


def dicom_image(
    pixels: NDArray[np.generic] | None = None, syntax: str = ExplicitVRLittleEndian, **tags: object
) -> Dataset:
    """Make an image of 12 bits in 16, the ramp if no pixels are given; a tag is a value, or its VR and value."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    image.SOPClassUID = DigitalXRayImageStorageForPresentation
    image.SOPInstanceUID, image.PatientID = generate_uid(), "p"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    pixels = RAMP.astype(np.uint16) if pixels is None else pixels
    image.Rows, image.Columns = pixels.shape[:2]
    image.BitsAllocated, image.BitsStored, image.HighBit = 8 * pixels.dtype.itemsize, 12, 11
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.add_new("PixelData", "OB" if image.BitsAllocated == 8 else "OW", pixels.tobytes())
    for keyword, tag in tags.items():
        if isinstance(tag, tuple):
            image.add_new(keyword, *tag)
        elif tag is None:
            del image[keyword]
        else:
            setattr(image, keyword, tag)
    return image


def saved(image: Dataset, file: Path) -> Path:
    """Write an image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(file, enforce_file_format=True)
    return file
