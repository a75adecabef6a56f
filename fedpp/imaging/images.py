"""Image files of common formats (PNG, JPEG, TIFF, BMP, GIF, WebP) as frames, grey or in colour."""

import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from fedpp.errors import UnusableFileError
from fedpp.imaging.image_pages import check_count, mpo_pages, tiff_pages
from fedpp.imaging.image_values import Depth, depth_of, grey_or_colour
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import DecodedLater, Frame
from fedpp.imaging.whole_files import is_whole

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
    ".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".tga", ".pcx", ".fits",
    ".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg", ".mjpeg", ".3gp", ".asf", ".flv", ".m2ts",
    ".mts", ".vob", ".e2e", ".fda", ".vol",
))
# fmt: on
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")  # no other decoder of Pillow's, whatever a file's name
MAX_BYTES = 2**30  # of a file, which is kept in memory while read
MAX_PAGES = 5_000  # of a file: a header may claim any number, and Pillow takes quadratic time for a TIFF's
MAX_PIXELS = 64_000_000  # of a frame: a header may claim any size
MAX_SCANS = 50  # of a JPEG: each decodes all of its pixels; usual are 10 at most
JPEG_SCAN = b"\xff\xda"  # ITU-T T.81, table B.1: SOS, which does not occur within a scan
_BITS, _COMPRESSION, _SAMPLES, _PLANES, _SLICES = 258, 259, 277, 284, 32997  # tags of TIFF
_LEFT_OUT = (6, 34925)  # TIFF's compressions whose decoders do not say that data are damaged: old JPEG, LZMA
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
    """Return the image of a file of one; raise `UnusableFileError` if it cannot be read, or holds several."""
    (frame,) = read_pages(file, 1, colour=colour)
    return (frame,)


def page_count(file: Path) -> int:
    """Return the number of an image's pages, from its headers only; reduced copies and thumbnails are none."""
    return header_of(file)[0]


def header_of(file: Path) -> tuple[int, Depth]:
    """Return the number of an image's pages, and the depth of the first one's grey values."""
    with _named(file), Image.open(file, formats=FORMATS) as image:
        _check_size(file, image)
        pages = _pages(file, image)
        image.seek(pages[0])
        return len(pages), depth_of(image)


def read_pages(file: Path, count: int, *, colour: bool = False) -> Sequence[Frame]:
    """Return an image's pages, each decoded on access; raise `UnusableFileError` if there are not `count`.

    The file is kept in memory; access in another order than that of its pages is slow.
    """
    with _named(file):
        if file.stat().st_size > MAX_BYTES:
            raise UnusableFileError(f"{file} has more than {MAX_BYTES} bytes: split it", Reason.TOO_LARGE)
        content = file.read_bytes()
        image = Image.open(BytesIO(content), formats=FORMATS)
        _check_size(file, image)
        pages = _pages(file, image)
        if len(pages) != count:
            message = f"{file} holds {len(pages)} pages, not the {count} of its header or of its layout: is it damaged?"
            raise UnusableFileError(message, Reason.DAMAGED)
        image.seek(pages[0])
        _check_whole(file, image, content)

    def page(number: int) -> Frame:
        with _named(file):
            image.seek(pages[number])
            if number > 0 and image.format == "TIFF":  # whose pages have streams of their own
                _check_whole(file, image, content)
            return _values(file, image, colour=colour)

    return [page(0)] if count == 1 else DecodedLater(count, page)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Turn Pillow's errors into an `UnusableFileError` that names the file, and suppress its warnings."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except UnusableFileError:
        raise
    except UnidentifiedImageError:
        forms = ", ".join(FORMATS[:-1])
        if begins_as_image(file):
            message = (
                f"cannot read the image {file}: it is damaged, or of a form of {forms} or {FORMATS[-1]} not decoded"
            )
            raise UnusableFileError(message, Reason.NO_DECODER) from None
        message = f"cannot read the image {file}: it is no {forms} or {FORMATS[-1]}"
        raise UnusableFileError(message, Reason.DAMAGED) from None
    except DAMAGE as error:
        raise UnusableFileError(f"cannot read the image {file}: {_reason(error)}", Reason.DAMAGED) from None


def begins_as_image(file: Path) -> bool:
    """Return whether a file has an image's first bytes, whatever its name; those of a BMP are too short to count."""
    try:
        with file.open("rb") as opened:
            first = opened.read(16)
    except OSError as error:
        message = f"cannot read the file {file}: {error.strerror}: check its permissions"
        raise UnusableFileError(message, Reason.CLOSED) from None
    Image.init()  # all formats, which takes time once
    checks = [Image.OPEN[form][1] for form in FORMATS if form != "BMP"]
    return any(accepts is not None and accepts(first) for accepts in checks)


def _reason(error: Exception) -> str:
    """Return the reason without the file's name, which Pillow and the system may repeat."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def is_image(file: Path) -> bool:
    """Tell by its name whether a file is an image; hidden metadata files of desktop systems are not."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def is_unread_image(file: Path) -> bool:
    """Tell by its name whether a file is an image, or several, of a format that is not read."""
    name = file.name.lower()
    return name.endswith(tuple(UNREAD_SUFFIXES)) and not name.startswith(".")


def _check_size(file: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        message = f"{file} is {image.width} x {image.height} pixels, more than {MAX_PIXELS}"
        raise UnusableFileError(message, Reason.TOO_LARGE)
    if image.width * image.height < 1:
        raise UnusableFileError(f"{file} is an image without pixels: is it damaged?", Reason.DAMAGED)


def _check_whole(file: Path, image: Image.Image, content: bytes) -> None:
    """Raise `UnusableFileError` for a page that was cut where Pillow does not notice, or would not."""
    if image.format in {"JPEG", "MPO"} and content.count(JPEG_SCAN) > MAX_SCANS:
        raise UnusableFileError(f"{file} is a JPEG of more than {MAX_SCANS} scans: is it damaged?", Reason.DAMAGED)
    if isinstance(image, TiffImageFile) and (form := _form_left_out(image)):
        raise UnusableFileError(f"{file} is {form}: save it as LZW, by pixels, little-endian", Reason.NO_DECODER)
    if not is_whole(content, image):
        message = f"cannot read the image {file}: it was cut or damaged, get the whole file again"
        raise UnusableFileError(message, Reason.DAMAGED)


def _form_left_out(image: TiffImageFile) -> str:
    """Return the form of a TIFF's page that decoders get wrong without a word, or ""."""
    tags = image.tag_v2
    compression = tags.get(_COMPRESSION, 1)
    apart = compression == 1 and tags.get(_SAMPLES, 1) > 1 and tags.get(_PLANES, 1) > 1
    forms = {
        "compressed as old JPEG or LZMA": compression in _LEFT_OUT,
        "of planes of more than 8 bits": apart and max(tags.get(_BITS, (1,))) > 8,
        "compressed and big-endian": compression != 1 and tags.prefix == b"MM" and image.mode in {"I", "F"},
        "a volume": tags.get(_SLICES, 1) > 1,
    }
    return next((form for form, there in forms.items() if there), "")


def _pages(file: Path, image: Image.Image) -> Sequence[int]:
    """Return the numbers of an image's pages but for thumbnails, and for a PNG's image that is not in its film."""
    if image.format == "TIFF":
        return tiff_pages(file, image, MAX_PAGES)
    count = int(getattr(image, "n_frames", 1))
    check_count(file, count, MAX_PAGES)
    if image.format == "MPO":
        return mpo_pages(file, image)
    return range(count)[bool(image.info.get("default_image")) and count > 1 :]


def _values(file: Path, image: Image.Image, *, colour: bool) -> Frame:
    _check_size(file, image)  # of each page: pages of a TIFF differ in size
    values = grey_or_colour(image, colour=colour)
    if not np.isfinite(values).all():
        raise UnusableFileError(f"{file} holds pixels that are not finite", Reason.DAMAGED)
    return values
