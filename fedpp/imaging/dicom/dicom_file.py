"""DICOM files: open one by its header, within bounds, and without output on the terminal.

A header may claim any size: nothing is inflated or allocated before the claim is checked.
"""

import logging
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from fedpp.errors import UnusableFileError
from fedpp.imaging import images
from fedpp.imaging.images import MAX_PIXELS
from fedpp.imaging.reasons import Reason

DEFERRED = 4096  # bytes: larger values, such as pixels, are read on access
MAX_INFLATED = 2**28  # bytes of a deflated file, which pydicom inflates as a whole
_MARK_OFFSET, _MARK = 128, b"DICM"  # DICOM PS3.10, 7.1
_CHUNK = 2**16
_UNDEFINED = 2**32 - 1  # a length: the value ends at a delimiter
_MIN_STREAM = 8  # bytes of a compressed frame: the tag and length of its item

# what pydicom raises on damaged files, in its parser, its conversion of values and its pixel decoders
DAMAGE = (BytesLengthException, InvalidDicomError, StopIteration, *images.DAMAGE)


def has_mark(file: Path) -> bool:
    """Tell whether a file has DICOM's mark; raise `UnusableFileError` for one that cannot be opened."""
    try:
        with file.open("rb") as content:
            content.seek(_MARK_OFFSET)
            return content.read(len(_MARK)) == _MARK
    except OSError as error:
        message = f"cannot read the file {file}: {error.strerror}: check its permissions"
        raise UnusableFileError(message, Reason.CLOSED) from None


def opened(file: Path) -> pydicom.Dataset:
    """Return a file's dataset without its large values; raise `UnusableFileError` if it cannot be read."""
    try:
        with file.open("rb") as content:
            size = _inflated(file, content) or os.fstat(content.fileno()).st_size
        image = pydicom.dcmread(file, defer_size=DEFERRED)
    except InvalidDicomError:
        message = f"{file} is no DICOM file: its header lacks the mark DICM"
        raise UnusableFileError(message, Reason.DAMAGED) from None
    except DAMAGE as error:
        message = f"{file} is not readable as DICOM: {type(error).__name__}"
        raise UnusableFileError(message, Reason.DAMAGED) from None
    if any(_end(element) > size for element in image.values()):
        message = f"{file} holds fewer bytes than its tags say: get the whole file again"
        raise UnusableFileError(message, Reason.DAMAGED)
    return image


def frames_announced(image: pydicom.Dataset, file: Path) -> int:
    """Return an image's number of frames after checking that it and the frame size are plausible.

    Raises `UnusableFileError` if they are not, and pydicom's errors for damaged tags.
    """
    count = max(1, int(image.get("NumberOfFrames") or 1))
    height, width = int(image.get("Rows") or 0), int(image.get("Columns") or 0)
    if height * width > MAX_PIXELS:
        message = f"{file} claims {width} x {height} pixels a frame, more than {MAX_PIXELS}"
        raise UnusableFileError(message, Reason.TOO_LARGE)
    min_bytes = _MIN_STREAM
    if not image.file_meta.TransferSyntaxUID.is_encapsulated:
        min_bytes = height * width * int(image.get("BitsAllocated") or 0) // 8
    pixels = image.get_item("PixelData", keep_deferred=True)
    held = pixels.length if isinstance(pixels, RawDataElement) else _UNDEFINED
    if count > 1 and count * min_bytes > (file.stat().st_size if held == _UNDEFINED else held):
        message = f"{file} announces {count} frames and holds fewer pixels: get the whole file again"
        raise UnusableFileError(message, Reason.DAMAGED)
    return count


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress pydicom's warnings, which quote tags."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _inflated(file: Path, content: BinaryIO) -> int:
    """Return the inflated size of a deflated file, 0 for another; raise `UnusableFileError` if it is too large."""
    content.seek(_MARK_OFFSET)
    if content.read(len(_MARK)) != _MARK:
        return 0
    meta = read_dataset(
        content, is_implicit_VR=False, is_little_endian=True, stop_when=_after_meta, defer_size=DEFERRED
    )
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return 0
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), content.tell()
    while not inflater.eof and (chunk := content.read(_CHUNK)):
        while chunk and not inflater.eof:
            size += len(inflater.decompress(chunk, _CHUNK))
            chunk = inflater.unconsumed_tail
            if size > MAX_INFLATED:
                message = f"{file} becomes more than {MAX_INFLATED} bytes when it is inflated: split it"
                raise UnusableFileError(message, Reason.TOO_LARGE)
    return size


def _after_meta(tag: BaseTag, *_: object) -> bool:
    return tag.group != 2


def _end(element: object) -> int:
    """Return the end of a value that is still in its file, 0 if it has been read."""
    if not isinstance(element, RawDataElement) or element.value is not None or element.length == _UNDEFINED:
        return 0
    return element.value_tell + element.length
