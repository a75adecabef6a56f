"""Image files of one sequence: which are read, whether their names say an order, and whether their greys fit."""

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from fedpp.errors import NoImageError, UnusableFileError
from fedpp.imaging.image_values import WHITE, Depth
from fedpp.imaging.images import header_of, is_image, is_unread_image, read_pages
from fedpp.imaging.natural_order import natural, order_is_a_guess
from fedpp.imaging.reasons import Doubt, Reason
from fedpp.imaging.sequence import FrameFile, Refuse

_MASKS = re.compile("(?:ground[ _-]?truth|mask|segmentation|annotation|label)s?", re.IGNORECASE)  # folders
_HINT = re.compile("mask|seg|truth|annotation|label", re.IGNORECASE)  # what may be a mask
_MASK = re.compile(r"(.+?)[ _-](?:mask|seg|segmentation)(?:[ _-]?[0-9]+)?", re.IGNORECASE)


def images_among(files: Iterable[Path], refuse: Refuse) -> list[Path]:
    """Return the images among files; one of a format that is not read, or the mask of another, goes to `refuse`.

    A mask is named after its image, such as x_mask.png, or is in a folder of masks beside that of the image.
    """
    files = list(files)
    masks = _masks([file for file in files if is_image(file)])
    images = []
    for file in files:
        if file in masks:
            refuse(file, NoImageError(f"{file} is the mask of an image beside it", Reason.NO_PICTURE))
        elif is_image(file):
            images.append(file)
        elif is_unread_image(file):
            message = f"{file} is of a format that is not read: convert it to PNG, TIFF or JPEG"
            refuse(file, UnusableFileError(message, Reason.NO_DECODER))
    return images


def _masks(images: Iterable[Path]) -> set[Path]:
    """Return those of the images that are masks of others."""
    images = list(images)
    if not any(_HINT.search(str(image)) for image in images):  # of hundreds of thousands, mostly
        return set()
    stems = {image: image.with_suffix("") for image in images}
    levels = {level for stem in stems.values() for level in _mask_levels(stem)}
    beside = {
        _in_any_folder(stem, level)
        for stem in stems.values()
        for level in levels - set(_mask_levels(stem))
        if level + 1 < len(stem.parts)
    }
    known = set(stems.values())
    return {image for image, stem in stems.items() if _is_mask(stem, known, beside)}


def _is_mask(stem: Path, known: AbstractSet[Path], beside: AbstractSet[Path]) -> bool:
    named = _MASK.fullmatch(stem.name)
    plain = stem.with_name(named[1]) if named else stem
    in_folder = (_in_any_folder(name, level) for level in _mask_levels(stem) for name in (stem, plain))
    return (named is not None and plain in known) or not beside.isdisjoint(in_folder)


def _mask_levels(stem: Path) -> list[int]:
    return [level for level, part in enumerate(stem.parts[:-1]) if _MASKS.fullmatch(part)]


def _in_any_folder(stem: Path, level: int) -> Path:
    """Return a path with the folder at this level left open, which is the same for an image and its mask."""
    return Path(*stem.parts[:level], "*", *stem.parts[level + 1 :])


def in_order(images: Iterable[Path]) -> list[Path]:
    """Return a folder's images in natural order of their names."""
    return sorted(images, key=lambda file: natural(file.name))


def doubts_of(images: Sequence[Path]) -> tuple[Doubt, ...]:
    """Return the doubt about the order of a folder's images, if there is one."""
    return (Doubt.ORDER,) if order_is_a_guess([file.stem for file in images]) else ()


def frame_files(images: Iterable[Path], refuse: Refuse) -> list[FrameFile]:
    """Return a sequence's images with their numbers of pages, in the order given.

    A file whose header cannot be read, or whose values are of another scale than the others', goes to `refuse`, and
    is skipped if that returns.
    """
    files: dict[FrameFile, Depth] = {}
    for image in images:
        try:
            pages, depth = header_of(image)
        except UnusableFileError as error:
            refuse(image, error)
        else:
            files[FrameFile(image, pages, read_pages)] = depth
    return of_one_scale(files, refuse)


def of_one_scale(files: dict[FrameFile, Depth], refuse: Refuse) -> list[FrameFile]:
    """Return a sequence's images but for those whose values are of another scale than the others', as above."""
    unfit = _of_another_scale(files)
    for file in unfit:
        message = f"{file.path} is of another depth than the images beside it, and its white is not known: convert it"
        refuse(file.path, UnusableFileError(message, Reason.DEPTH))
    return [file for file in files if file not in unfit]


def _of_another_scale(files: dict[FrameFile, Depth]) -> list[FrameFile]:
    """Return the files whose values cannot be compared with the others': most are made comparable by their depth.

    Floating-point values have none. Values of more than 8 bits that use less than half of them may be of fewer bits,
    such as 12 in 16; beside others of 8 bits this would be another contrast.
    """
    deep = [file for file, depth in files.items() if depth.bits > 8]
    floating = [file for file, depth in files.items() if depth.bits == 0]
    flat = len(files) - len(deep) - len(floating)
    unfit = floating if deep or flat else []
    return unfit + (deep if deep and flat and not any(map(_uses_half, deep)) else [])


def _uses_half(file: FrameFile) -> bool:
    try:
        return any(frame.max() > WHITE / 2 for frame in file.read())
    except UnusableFileError:
        return True  # it is refused where all files are decoded
