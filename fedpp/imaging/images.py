"""Image files of common formats (PNG, JPEG, TIFF, BMP, GIF, WebP) as frames, grey or in colour."""

import re
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fedpp.errors import UnusableFileError
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import DecodedLater, Frame

# fmt: off
SUFFIXES = frozenset((
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".tif", ".tiff", ".btf", ".bmp", ".dib", ".gif",
    ".webp",
))
UNREAD_SUFFIXES = frozenset((  # of images, slides, volumes and films that are not read: a patient's, so never ignored
    ".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jpm", ".jxl", ".jxr", ".jls",
    ".svs", ".ndpi", ".ndpis", ".vms", ".vmu", ".scn", ".mrxs", ".bif", ".svslide", ".czi", ".lif", ".lsm", ".vsi",
    ".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".img.gz", ".mgz", ".mnc",
    ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".psd", ".xcf", ".exr",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".tga", ".pcx", ".ico", ".fits",
    ".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg", ".mjpeg",
))
# fmt: on
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")  # no other decoder of Pillow's, whatever a file's name
MAX_BYTES = 2**30  # of a file of several pages, which is kept in memory while read
MAX_PAGES = 5_000  # of a file: a header may claim any number, and Pillow takes quadratic time for a TIFF's
MAX_PIXELS = 64_000_000  # of a frame: a header may claim any size
MAX_SCANS = 50  # of a JPEG: each decodes all of its pixels; usual are 10 at most
JPEG_SCAN = b"\xff\xda"  # ITU-T T.81, table B.1: SOS, which does not occur within a scan
# what decoders raise on damaged files
DAMAGE = (
    Image.DecompressionBombError,
    struct.error,
    zlib.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def read_image(file: Path, _: int = 1, *, colour: bool = False) -> tuple[Frame]:
    """Return an image's first page only; raise `UnusableFileError` if it cannot be read."""
    with _named(file), Image.open(file, formats=FORMATS) as image:
        _check_scans(file, image)
        return (_values(file, image, colour=colour),)


def page_count(file: Path) -> int:
    """Return the number of an image's pages, from its headers only."""
    with _named(file), Image.open(file, formats=FORMATS) as image:
        _check_size(file, image)
        count = _page_count(image)
    if not 1 <= count <= MAX_PAGES:
        raise UnusableFileError(f"{file} claims {count} pages, more than {MAX_PAGES}: is it damaged?", Reason.TOO_LARGE)
    return count


def read_pages(file: Path, count: int, *, colour: bool = False) -> Sequence[Frame]:
    """Return an image's pages, each decoded on access; raise `UnusableFileError` if there are not `count`.

    A file of several pages is kept in memory; access in another order than theirs is slow.
    """
    if count == 1 and page_count(file) == 1:
        return read_image(file, colour=colour)
    with _named(file):
        if file.stat().st_size > MAX_BYTES:
            message = f"{file} has several pages and more than {MAX_BYTES} bytes: split it"
            raise UnusableFileError(message, Reason.TOO_LARGE)
        image = Image.open(BytesIO(file.read_bytes()), formats=FORMATS)
        held = _page_count(image)
    if held != count:
        message = f"{file} holds {held} pages, not the {count} of its header: is it damaged?"
        raise UnusableFileError(message, Reason.DAMAGED)

    def page(number: int) -> Frame:
        with _named(file):
            image.seek(number)
            return _values(file, image, colour=colour)

    return DecodedLater(count, page)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Turn Pillow's errors into an `UnusableFileError` that names the file, and suppress its warnings."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except DAMAGE as error:
        raise UnusableFileError(f"cannot read the image {file}: {_reason(error)}", Reason.DAMAGED) from None


def _reason(error: Exception) -> str:
    """Return the reason without the file's name, which Pillow and the system may repeat."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def is_image(file: Path) -> bool:
    """Tell by its name whether a file is an image; hidden metadata files of desktop systems are not."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def is_unread_image(file: Path) -> bool:
    """Tell by its name whether a file is an image, or several, of a format that is not read."""
    name = file.name.lower()
    return name.endswith(tuple(UNREAD_SUFFIXES)) and not name.startswith(".")


def natural(text: str) -> list[tuple[float, str]]:
    """Return a sort key by the numbers in a name: frame 2 before frame 10."""
    return [(_number(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _number(digits: str) -> float:
    return int(digits) if len(digits) < sys.int_info.default_max_str_digits else float("inf")


def _check_size(file: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        message = f"{file} is {image.width} x {image.height} pixels, more than {MAX_PIXELS}"
        raise UnusableFileError(message, Reason.TOO_LARGE)


def _check_scans(file: Path, image: Image.Image) -> None:
    if image.format == "JPEG" and file.read_bytes().count(JPEG_SCAN) > MAX_SCANS:
        raise UnusableFileError(f"{file} is a JPEG of more than {MAX_SCANS} scans: is it damaged?", Reason.DAMAGED)


def _page_count(image: Image.Image) -> int:
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    try:
        for page in range(MAX_PAGES + 1):  # no further, which could take hours
            image.seek(page)
    except EOFError:
        return page
    return MAX_PAGES + 1


def _values(file: Path, image: Image.Image, *, colour: bool) -> Frame:
    _check_size(file, image)  # of each page: pages of a TIFF differ in size
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")  # these are grey
    values = np.asarray(image if deep else image.convert("RGB" if colour else "L"), dtype=np.float64)
    if not np.isfinite(values).all():
        raise UnusableFileError(f"{file} holds pixels that are not finite", Reason.DAMAGED)
    return values
