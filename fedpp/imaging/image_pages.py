"""Pages of image files that are frames: reduced copies, masks, thumbnails and other views are none.

Sources: TIFF 6.0, NewSubfileType and SubfileType; CIPA DC-007, the Multi-Picture Format (MPO).
"""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from fedpp.errors import UnusableFileError
from fedpp.imaging.reasons import Reason

_KIND, _OLD_KIND = 254, 255  # NewSubfileType and SubfileType
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


def _is_copy(image: Image.Image) -> bool:
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    return bool(tags.get(_KIND, 0) & (_REDUCED | _MASK)) or tags.get(_OLD_KIND) == _OLD_REDUCED


def _is_reduced(size: _Size, whole: _Size) -> bool:
    """Tell whether a size is another one divided by a whole number of at least 2, rounded down or up."""
    factor = round(whole[0] / size[0])
    return factor > 1 and all(part in (of // factor, -(-of // factor)) for part, of in zip(size, whole, strict=True))
