"""Suspicion of burnt-in text: whether a DICOM image may show text in its pixels, such as a patient's name.

Only tags are read, not pixels. Attributes: DICOM PS3.3 C.7.6.1 (General Image), C.8.6.1 (SC Equipment).
"""

from pathlib import Path

import pydicom
from pydicom import uid

from fedpp.errors import UnusableFileError
from fedpp.imaging.dicom.dicom_file import DAMAGE, opened, quiet
from fedpp.imaging.reasons import Reason

MODALITIES = {  # of devices that write text on their images
    "ES": "endoscopy",
    "SC": "secondary capture",
    "US": "ultrasound",
    "XC": "external camera",
}
CAPTURES = {
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameSingleBitSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
}
CONVERSIONS = {
    "DF": "digitized film",
    "DI": "digital interface",
    "DV": "digitized video",
    "SD": "scanned document",
    "SI": "scanned image",
    "WSD": "workstation",
}
_TAGS = ("BurnedInAnnotation", "RecognizableVisualFeatures", "Modality", "SOPClassUID", "ConversionType")


def suspicion(file: Path) -> str | None:
    """Return why a DICOM image may contain text, or None if its tags give no reason.

    BurnedInAnnotation NO overrides a reason that follows from the kind of image. Raises `UnusableFileError` for a file
    that cannot be read.
    """
    with quiet():
        image = opened(file)
        try:
            burned, features, modality, kind, conversion = (_text(image, tag) for tag in _TAGS)
        except DAMAGE as error:
            message = f"{file} has a damaged tag on its kind of image: {type(error).__name__}"
            raise UnusableFileError(message, Reason.DAMAGED) from None
    if "YES" in {burned, features}:
        return f"{'BurnedInAnnotation' if burned == 'YES' else 'RecognizableVisualFeatures'} is YES"
    kinds = (
        f"Modality is {modality} ({MODALITIES[modality]})" if modality in MODALITIES else None,
        "it is a secondary capture" if kind in CAPTURES else None,
        f"ConversionType is {conversion} ({CONVERSIONS[conversion]})" if conversion in CONVERSIONS else None,
    )
    reason = next(filter(None, kinds), None)
    return f"{reason}, and BurnedInAnnotation does not say NO" if reason and burned != "NO" else None


def _text(image: pydicom.Dataset, tag: str) -> str:
    return str(image.get(tag) or "").strip().upper()
