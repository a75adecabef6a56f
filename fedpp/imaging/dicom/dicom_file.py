"""DICOM files: recognise one by its content, open it by its header, within bounds, without output on the terminal.

A header may claim any size: nothing is inflated or allocated before the claim is checked.
"""

import logging
import os
import struct
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
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from fedpp.errors import UnusableFileError
from fedpp.imaging import images
from fedpp.imaging.images import MAX_PIXELS
from fedpp.imaging.reasons import Reason
from fedpp.texts import counted

DEFERRED = 4096  # bytes: larger values, such as pixels, are read on access
MAX_INFLATED = 2**28  # bytes of a deflated file, which pydicom inflates as a whole
_MARK_OFFSET, _MARK = 128, b"DICM"  # DICOM PS3.10, 7.1
_START = 4096  # bytes in which a dataset's first elements are looked for
_CHUNK = 2**16
_UNDEFINED = 2**32 - 1  # a length: the value ends at a delimiter
_MIN_STREAM = 8  # bytes of a compressed frame: the tag and length of its item

# what pydicom raises on damaged files, in its parser, its conversion of values and its pixel decoders
DAMAGE = (BytesLengthException, InvalidDicomError, StopIteration, *images.DAMAGE)


def is_dicom_content(file: Path) -> bool:
    """Tell whether a file has DICOM's mark, or begins as a dataset does that was stored without a header.

    Raises `UnusableFileError` for a file that cannot be opened.
    """
    try:
        with file.open("rb") as content:
            start = content.read(_START)
    except OSError as error:
        message = f"cannot read the file {file}: {error.strerror}: check its permissions"
        raise UnusableFileError(message, Reason.CLOSED) from None
    return has_mark(start) or _starts_dataset(start)


def has_mark(start: bytes) -> bool:
    """Tell whether a file's first bytes have DICOM's mark."""
    return start[_MARK_OFFSET:].startswith(_MARK)


def opened(file: Path) -> pydicom.Dataset:
    """Return a file's dataset without its large values; raise `UnusableFileError` if it cannot be read."""
    try:
        with file.open("rb") as content:
            size = _size(file, content)
        image = pydicom.dcmread(file, defer_size=DEFERRED)
    except DAMAGE as error:
        message = f"{file} is not readable as DICOM: {type(error).__name__}"
        raise UnusableFileError(message, Reason.DAMAGED) from None
    if any(_end(element) > size for element in image.values()):
        message = f"{file} holds fewer bytes than its tags say: get the whole file again"
        raise UnusableFileError(message, Reason.DAMAGED)
    return image


def require_syntax(image: pydicom.Dataset, file: Path) -> None:
    """Raise `UnusableFileError` for an image whose header does not say how its pixels are stored."""
    if not image.file_meta.get("TransferSyntaxUID"):
        message = f"{file} names no transfer syntax (TransferSyntaxUID), so its pixels cannot be read: export it again"
        raise UnusableFileError(message, Reason.NO_HEADER)


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
        message = f"{file} announces {counted(count, 'frame')} and holds fewer pixels: get the whole file again"
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


def _size(file: Path, content: BinaryIO) -> int:
    """Return the size of a file's dataset and header, inflated if it is deflated.

    Raises `UnusableFileError` for a file without DICOM's header, of a transfer syntax that is not the standard's, or
    that is too large when it is inflated.
    """
    start = content.read(_START)
    if not has_mark(start):
        raise _unmarked(file, start)
    content.seek(_MARK_OFFSET + len(_MARK))
    meta = read_dataset(
        content, is_implicit_VR=False, is_little_endian=True, stop_when=_after_meta, defer_size=DEFERRED
    )
    syntax = UID(str(meta.get("TransferSyntaxUID") or ""))
    if syntax and syntax.type != "Transfer Syntax":
        named = f" {syntax}" if syntax.is_valid else ""
        message = f"{file} is of a private or unknown transfer syntax{named}: export it in one of the standard's"
        raise UnusableFileError(message, Reason.NO_DECODER)
    deflated = syntax == DeflatedExplicitVRLittleEndian
    return _inflated(file, content) if deflated else os.fstat(content.fileno()).st_size


def _unmarked(file: Path, start: bytes) -> UnusableFileError:
    if not _starts_dataset(start):
        message = f"{file} is no DICOM file: its header lacks the mark DICM"
        return UnusableFileError(message, Reason.DAMAGED)
    message = f"{file} is DICOM without its header (preamble, DICM, transfer syntax): export it as a DICOM file"
    return UnusableFileError(message, Reason.NO_HEADER)


def _starts_dataset(start: bytes) -> bool:
    """Tell whether bytes begin as DICOM does without its preamble: with the mark, or with two elements in order."""
    return start.startswith(_MARK) or any(_starts_elements(start, order) for order in ("<", ">"))


def _starts_elements(start: bytes, order: str) -> bool:
    """Tell whether bytes begin with two elements of the groups 2 or 8, in either VR encoding: DICOM PS3.5, 7.1."""
    tags: list[tuple[int, int]] = []
    position = 0
    while len(tags) < 2 and position + 12 <= len(start):
        group, element, long = struct.unpack_from(f"{order}HHI", start, position)
        vr, short = start[position + 4 : position + 6].decode("latin-1"), start[position + 6 : position + 8]
        tags.append((group, element))
        if vr in VR.__members__:
            is_long = vr in EXPLICIT_VR_LENGTH_32
            after = position + 8
            length = (
                struct.unpack_from(f"{order}I", start, after)[0] if is_long else struct.unpack(f"{order}H", short)[0]
            )
            position = after + 4 * is_long + length
        else:
            position += 8 + long
    return len(tags) == 2 and tags[0] < tags[1] and all(group in {2, 8} for group, _ in tags)


def _inflated(file: Path, content: BinaryIO) -> int:
    """Return the inflated size of a deflated file; raise `UnusableFileError` if it is too large."""
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
