"""Display values of a DICOM image as a viewer shows them, grey or in colour: 0 is black and 1 is white.

DICOM PS3.3 C.7.6.3 (pixels), C.11.1 (modality LUT), C.11.2 (VOI LUT and window). Enhanced images carry the
attributes of the last two in functional groups, per frame or shared.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from fedpp.imaging.dicom.dicom_codecs import stored_frame

Values = NDArray[np.float64]

_BAND = 2**20  # pixels
_LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601, as in DICOM's YBR_FULL


def display_frame(image: Dataset, number: int, *, colour: bool = False) -> Values:
    """Return a frame `[height, width]` within 0 .. 1, or `[height, width, 3]` of a colour image if `colour`.

    pydicom's errors pass through.
    """
    stored = stored_frame(image, number)  # YBR arrives as RGB
    bits = int(image.get("BitsStored") or 8 * stored.dtype.itemsize)
    if image.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, image)
        bits = 8 * stored.dtype.itemsize
    if stored.ndim == 3 and colour:
        return stored[..., :3] / (2.0**bits - 1)
    shown = np.empty(stored.shape[:2])
    rows = max(
        1, _BAND // stored.shape[1]
    )  # by bands: temporary arrays of a large frame would take many times its memory
    for top in range(0, len(stored), rows):
        band = stored[top : top + rows]
        shown[top : top + rows] = _luma(band, bits) if stored.ndim == 3 else _grey(image, number, band, bits)
    return shown


def _luma(band: NDArray[Any], bits: int) -> Values:
    luma: Values = sum(band[..., i] * (share / (2**bits - 1)) for i, share in enumerate(_LUMA))
    return luma


def _grey(image: Dataset, number: int, band: NDArray[Any], bits: int) -> Values:
    low = -(2 ** (bits - 1)) if band.dtype.kind == "i" else 0
    shown = _display(image, number, band.astype(np.float64), float(low), float(low + 2**bits - 1))
    return 1 - shown if str(image.PhotometricInterpretation) == "MONOCHROME1" else shown


def _display(image: Dataset, number: int, frame: Values, low: float, high: float) -> Values:
    """Apply modality LUT or rescale, then VOI LUT or window, or else the full range of the stored values."""
    modality = _group(image, number, "PixelValueTransformationSequence", "RescaleSlope")
    if image.get("ModalityLUTSequence"):
        table, depth = _table(image, image.ModalityLUTSequence[0])
        frame, low, high = _look_up(frame, table), 0.0, _top(table[1], depth)
    elif modality.get("RescaleSlope") is not None:
        slope, intercept = float(modality.RescaleSlope), float(modality.get("RescaleIntercept") or 0)
        frame, ends = frame * slope + intercept, (low * slope + intercept, high * slope + intercept)
        low, high = min(ends), max(ends)
    voi = _group(image, number, "FrameVOILUTSequence", "WindowCenter")
    if image.get("VOILUTSequence"):
        table, depth = _table(image, image.VOILUTSequence[0])
        return _look_up(frame, table) / _top(table[1], depth)
    window = _first(voi.get("WindowCenter")), _first(voi.get("WindowWidth"))
    if window[0] is not None and window[1] is not None and window[1] > 0:
        return _windowed(frame, window[0], window[1], str(voi.get("VOILUTFunction") or "LINEAR"))
    shown: Values = np.clip((frame - low) / (high - low), 0, 1) if high > low else np.zeros_like(frame)
    return shown


def _windowed(frame: Values, center: float, width: float, function: str) -> Values:
    if function == "SIGMOID":
        sigmoid: Values = 1 / (1 + np.exp(np.clip(-4 * (frame - center) / width, -700, 700)))
        return sigmoid
    if function == "LINEAR_EXACT":
        return np.clip((frame - center) / width + 0.5, 0, 1)
    return np.clip((frame - center + 0.5) / max(width - 1, 1e-6) + 0.5, 0, 1)


def _group(image: Dataset, number: int, sequence: str, keyword: str) -> Dataset:
    """Return the dataset with a frame's attribute: the image, or one of its functional groups."""
    if keyword in image:
        return image
    per_frame = image.get("PerFrameFunctionalGroupsSequence") or []
    shared = image.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[number : number + 1], *shared[:1]):
        if groups.get(sequence):
            found: Dataset = groups[sequence].value[0]
            return found
    return Dataset()


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value) if isinstance(value, int | float) else float(value[0])


def _table(image: Dataset, item: Dataset) -> tuple[tuple[int, Values], int]:
    """Return a lookup table as (first mapped value, entries), and its nominal depth in bits."""
    entries, first, depth = (int(value) for value in item.LUTDescriptor)
    entries = entries or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if image.original_encoding[1] else ">"
        data = np.frombuffer(data, "u1" if len(data) <= entries + 1 else f"{order}u2")
    return (first, np.asarray(data, dtype=np.float64)[:entries]), depth


def _look_up(frame: Values, table: tuple[int, Values]) -> Values:
    first, entries = table
    indices = np.clip(np.rint(frame) - first, 0, len(entries) - 1).astype(np.int64)
    looked_up: Values = entries[indices]
    return looked_up


def _top(entries: Values, depth: int) -> float:
    return max(float(2**depth - 1), float(entries.max()))
