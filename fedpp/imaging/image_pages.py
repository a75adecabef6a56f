"""Pages of image files that are frames: reduced copies, masks, thumbnails and other views are none.

Sources: TIFF 6.0, NewSubfileType and SubfileType; CIPA DC-007, the Multi-Picture Format (MPO).
"""

import re
from collections.abc import Iterator
from math import prod
from os import SEEK_END
from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import COMPRESSION, STRIPBYTECOUNTS, STRIPOFFSETS, TiffImageFile

from fedpp.errors import UnusableFileError
from fedpp.imaging.reasons import Reason

_KIND, _OLD_KIND, _DESCRIPTION = 254, 255, 270  # NewSubfileType, SubfileType and ImageDescription
_REDUCED, _MASK, _OLD_REDUCED = 1, 4, 2

_Size = tuple[int, int]


def check_count(file: Path, count: int, most: int) -> None:
    """Raise `UnusableFileError` for a file that claims no page, or more than `most`."""
    if not 1 <= count <= most:
        raise UnusableFileError(f"{file} claims {count} pages, more than {most}: is it damaged?", Reason.TOO_LARGE)


def tiff_pages(file: Path, image: Image.Image, most: int) -> list[int]:
    """Return the numbers of a TIFF's pages that are no reduced copies and no masks, leaving its last page open."""
    sizes = dict(_full_sizes(file, image, most))
    if not sizes:
        message = f"{file} holds nothing but reduced copies or masks in its row of pages: convert it to a plain TIFF"
        raise UnusableFileError(message, Reason.NO_DECODER)
    if (stored := _stack(image)) > len(sizes):
        message = f"{file} is a stack of {stored} pictures in {len(sizes)} pages (by its ImageDescription)"
        raise UnusableFileError(f"{message}: save each picture as a page", Reason.NO_DECODER)
    first, *others = sizes.values()
    if any(_is_reduced(size, first) for size in others):
        message = f"{file} holds pages that are smaller by a whole factor, as of a pyramid, and not marked as such"
        raise UnusableFileError(f"{message}: save its picture alone", Reason.NO_DECODER)
    return list(sizes)


def mpo_pages(file: Path, image: Image.Image) -> list[int]:
    """Return the first picture's number; raise `UnusableFileError` if another one is as large, and so no thumbnail."""
    size = image.size
    for number in range(1, int(getattr(image, "n_frames", 1))):
        try:
            image.seek(number)
        except (OSError, SyntaxError, ValueError):  # what follows the first picture may have been taken away
            break
        if image.size >= size:
            message = f"{file} holds several pictures of one size (MPO): save each as a JPEG of its own"
            raise UnusableFileError(message, Reason.NO_DECODER)
    return [0]


def _full_sizes(file: Path, image: Image.Image, most: int) -> Iterator[tuple[int, _Size]]:
    """Yield number and size of each page that is no reduced copy and no mask."""
    try:
        for page in range(most + 1):  # no further, which could take hours
            image.seek(page)
            if not _is_copy(image):
                yield page, image.size
    except EOFError:
        return
    check_count(file, most + 1, most)


def _stack(image: Image.Image) -> int:
    """Return the number of pictures in a stack that ImageJ or tifffile stored as one page, 0 for another image.

    Pillow sees the first picture alone. One that was taken out of a stack may keep its description, so that the file
    must be long enough.
    """
    image.seek(0)
    if not isinstance(image, TiffImageFile) or image.fp is None:
        return 0
    tags = image.tag_v2
    count = _described(str(tags.get(_DESCRIPTION, "")), image.width * image.height * len(image.getbands()))
    starts, lengths = tags.get(STRIPOFFSETS, ()), tags.get(STRIPBYTECOUNTS, ())
    if tags.get(COMPRESSION, 1) != 1 or not (starts and lengths):
        return 0
    return count if min(starts) + count * sum(lengths) <= image.fp.seek(0, SEEK_END) else 0


def _described(text: str, pixels: int) -> int:
    """Return the number of pictures, each of so many pixels, in the description of ImageJ or of tifffile."""
    if text.startswith("ImageJ=") and (images := re.search(r"^images=([0-9]{1,9})$", text, re.MULTILINE)):
        return int(images[1])
    shape = re.match(r'\{"shape": \[([0-9]{1,9}(?:, [0-9]{1,9})*)\]', text)
    return prod(map(int, shape[1].split(", "))) // pixels if shape else 0


def _is_copy(image: Image.Image) -> bool:
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    return bool(tags.get(_KIND, 0) & (_REDUCED | _MASK)) or tags.get(_OLD_KIND) == _OLD_REDUCED


def _is_reduced(size: _Size, whole: _Size) -> bool:
    """Tell whether a size is another one divided by a whole number of at least 2, rounded down or up."""
    factor = round(whole[0] / size[0])
    return factor > 1 and all(part in (of // factor, -(-of // factor)) for part, of in zip(size, whole, strict=True))
