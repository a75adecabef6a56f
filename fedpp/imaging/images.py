"""One image file of a common format (PNG, JPEG, TIFF, BMP, GIF) as grey frames."""

import re
import struct
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from fedpp.errors import RawDataError

from .sequence import Frame

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif"}
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF")  # and no other decoder of Pillow's, whatever a file is named
MOST_PAGES = 100_000  # of a file: a header may claim any number
MOST_PIXELS = 64_000_000  # of a frame: a header may claim any size
# what Pillow raises on damaged files
_DAMAGE = (struct.error, ArithmeticError, EOFError, LookupError, OSError, SyntaxError, TypeError, ValueError)


def read_image(file: Path, pages: int | None = None) -> tuple[Frame, ...]:
    """Return an image's frames, the first pages of a TIFF or GIF or all; raise `RawDataError` if it cannot be read."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise RawDataError(f"{file} is {image.width} x {image.height} pixels, more than {MOST_PIXELS}")
            frames = tuple(map(_grey, islice(ImageSequence.Iterator(image), pages)))
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise RawDataError(f"cannot read the image {file}: {' '.join(str(error).split())}") from None
    if not all(np.isfinite(frame).all() for frame in frames):
        raise RawDataError(f"{file} holds pixels that are not finite")
    return frames


def page_count(file: Path) -> int:
    """Return the number of an image's pages, from its headers alone."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            count = int(getattr(image, "n_frames", 1))
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise RawDataError(f"cannot read the image {file}: {' '.join(str(error).split())}") from None
    if not 1 <= count <= MOST_PAGES:
        raise RawDataError(f"{file} claims {count} pages, more than {MOST_PAGES}: is it damaged?")
    return count


def read_pages(file: Path, count: int) -> tuple[Frame, ...]:
    """Return an image's pages; raise `RawDataError` if there are fewer than its headers said."""
    frames = read_image(file, count)
    if len(frames) != count:
        raise RawDataError(f"{file} holds {len(frames)} pages, not the {count} of its header: is it damaged?")
    return frames


def is_image(file: Path) -> bool:
    """Tell by its name whether a file is an image; what desktops leave beside the files of others is none."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def natural(text: str) -> list[tuple[int, str]]:
    """Order by the numbers in a name: frame 2 before frame 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _grey(image: Image.Image) -> Frame:
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    return np.asarray(image if deep else image.convert("L"), dtype=np.float64)
