"""Display values of a DICOM image as a viewer shows them, grey or in colour: 0 is black and 1 is white.

DICOM PS3.3 C.7.6.3 (pixels), C.11.1 (modality LUT), C.11.2 (VOI LUT and window). Enhanced images carry the
attributes of the last two in functional groups, per frame or shared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from fedpp.imaging.dicom.dicom_codecs import stored_frame
from fedpp.imaging.dicom.dicom_luts import Lut, lut, palette
from fedpp.imaging.dicom.dicom_tags import TagError, first_number, numbers
from fedpp.imaging.reasons import Reason

Values = NDArray[np.float64]
Transform = Callable[[Values], Values]

_BAND = 2**20  # pixels
_LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601, as in DICOM's YBR_FULL
_GREY = ("MONOCHROME1", "MONOCHROME2")
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def display_frame(image: Dataset, number: int, *, colour: bool = False) -> Values:
    """Return a frame `[height, width]` within 0 .. 1, or `[height, width, 3]` of a colour image if `colour`.

    pydicom's errors pass through. Raises `TagError` for tags that do not say how the values are shown, or that make
    one grey of pixels that differ.
    """
    stored = stored_frame(image, number)  # YBR arrives as RGB
    bits = int(image.get("BitsStored") or 8 * stored.dtype.itemsize)
    interpretation = str(image.PhotometricInterpretation).strip()
    coloured = stored
    if interpretation == "PALETTE COLOR" and stored.ndim == 2:
        coloured, bits = palette(image, stored)
    if coloured.ndim == 2:
        shown = _by_bands(stored, _grey(image, number, stored, bits))
    else:
        shown = coloured / (2.0**bits - 1) if colour else _by_bands(coloured, partial(_luma, bits=bits))
    if shown.min() == shown.max() and stored.min() != stored.max():
        raise TagError("its tags (rescale, window, lookup table) make one grey value of pixels that differ")
    return shown


def _by_bands(stored: NDArray[Any], show: Callable[[NDArray[Any]], Values]) -> Values:
    """Apply a function to bands of a frame: temporary arrays of a large one would take many times its memory."""
    shown = np.empty(stored.shape[:2])
    rows = max(1, _BAND // stored.shape[1])
    for top in range(0, len(stored), rows):
        shown[top : top + rows] = show(stored[top : top + rows])
    return shown


def _luma(band: NDArray[Any], *, bits: int) -> Values:
    luma: Values = sum(band[..., i] * (share / (2**bits - 1)) for i, share in enumerate(_LUMA))
    return luma


def _grey(image: Dataset, number: int, stored: NDArray[Any], bits: int) -> Callable[[NDArray[Any]], Values]:
    """Return the function from a frame's stored values to what is shown."""
    interpretation = str(image.PhotometricInterpretation).strip()
    if interpretation not in _GREY:
        raise TagError("its PhotometricInterpretation is not that of a grey image", Reason.NO_DECODER)
    low = -(2.0 ** (bits - 1)) if stored.dtype.kind == "i" else 0.0
    display = _display(image, number, low, low + 2.0**bits - 1)

    def show(band: NDArray[Any]) -> Values:
        shown = display(band.astype(np.float64))
        return 1 - shown if interpretation == "MONOCHROME1" else shown

    return show


def _display(image: Dataset, number: int, low: float, high: float) -> Transform:
    """Return modality LUT or rescale, followed by VOI LUT or window, or else by the full range."""
    table = image.get("ModalityLUTSequence")
    modality = _looked_up(lut(image, table[0], low, high)) if table else _rescaled(image, number, low, high)
    voi = _voi(image, number, modality.low, modality.high)
    return modality.full if voi is None else lambda frame: voi(modality.apply(frame))


@dataclass(frozen=True)
class _Modality:
    """A modality transform: its function, the range of its results, and the function to shares of that range."""

    apply: Transform
    low: float
    high: float
    full: Transform


def _looked_up(table: Lut) -> _Modality:
    return _Modality(table.look_up, 0.0, table.top, lambda frame: table.look_up(frame) / table.top)


def _rescaled(image: Dataset, number: int, low: float, high: float) -> _Modality:
    """Return the rescale of a frame; raise `TagError` for a slope or intercept that leaves no numbers."""
    tags = _group(image, number, "PixelValueTransformationSequence", "RescaleSlope")
    slope, intercept = first_number(tags, "RescaleSlope"), first_number(tags, "RescaleIntercept") or 0.0
    slope = 1.0 if slope is None else slope
    ends = low * slope + intercept, high * slope + intercept
    if slope == 0:
        raise TagError("RescaleSlope is 0, which leaves one value for all pixels")
    if not np.isfinite(ends).all():
        raise TagError("RescaleSlope and RescaleIntercept make values that are not finite")
    start, span = (low, high - low) if slope > 0 else (high, low - high)
    return _Modality(
        lambda frame: frame * slope + intercept, min(ends), max(ends), lambda frame: (frame - start) / span
    )


def _voi(image: Dataset, number: int, low: float, high: float) -> Transform | None:
    """Return a frame's VOI LUT or its first window, None if it has neither; the range is that of the input."""
    if image.get("VOILUTSequence"):
        table = lut(image, image.VOILUTSequence[0], low, high)
        return lambda frame: table.look_up(frame) / table.top
    tags = _group(image, number, "FrameVOILUTSequence", "WindowCenter")
    for center, width in zip(numbers(tags, "WindowCenter"), numbers(tags, "WindowWidth"), strict=False):
        if center is not None and width is not None and width > 0:
            return partial(_windowed, center=center, width=width, function=_function(tags))
    return None


def _function(tags: Dataset) -> str:
    function = str(tags.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in _FUNCTIONS:
        raise TagError(f"VOILUTFunction is none of {', '.join(_FUNCTIONS)}")
    return function


def _windowed(frame: Values, *, center: float, width: float, function: str) -> Values:
    if function == "SIGMOID":
        sigmoid: Values = 1 / (1 + np.exp(np.clip(-4 * (frame - center) / width, -700, 700)))
        return sigmoid
    if function == "LINEAR_EXACT" or width < 1:  # LINEAR is of whole numbers: its width is 1 at least
        return np.clip((frame - center) / width + 0.5, 0, 1)
    return np.clip((frame - center + 0.5) / max(width - 1, 1e-6) + 0.5, 0, 1)


def _group(image: Dataset, number: int, sequence: str, keyword: str) -> Dataset:
    """Return the dataset with a frame's attribute: one of its functional groups, or else the image."""
    per_frame = image.get("PerFrameFunctionalGroupsSequence") or []
    shared = image.get("SharedFunctionalGroupsSequence") or []
    if per_frame and len(per_frame) != int(image.get("NumberOfFrames") or 1):
        raise TagError("PerFrameFunctionalGroupsSequence has another number of items than the image has frames")
    for groups in (*per_frame[number : number + 1], *shared[:1]):
        found = groups.get(sequence)
        if found and keyword in found[0]:
            tags: Dataset = found[0]
            return tags
    return image
