"""Breast histology in BreakHis' layout: file names like `SOB_B_TA-14-4659-40-001.png` hold all metadata.

Source: Spanhol et al., IEEE Transactions on Biomedical Engineering 63(7), 2016. A slide's images are ordered by
number. That is not time: the images were taken at one time from one piece of tissue.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

from fedpp.errors import ConfigError, RawDataError, UnusableFileError
from fedpp.imaging.images import is_image, read_image
from fedpp.imaging.readers.folders import files_below
from fedpp.imaging.readers.image_files import images_among
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence, Refuse, refuse

Series = Literal["magnification", "slide"]

TYPES = {
    "B_A": "adenosis",
    "B_F": "fibroadenoma",
    "B_PT": "phyllodes_tumor",
    "B_TA": "tubular_adenoma",
    "M_DC": "ductal_carcinoma",
    "M_LC": "lobular_carcinoma",
    "M_MC": "mucinous_carcinoma",
    "M_PC": "papillary_carcinoma",
}
_LABELS = {"B": "benign", "M": "malignant"}
_NAME = re.compile(r"SOB_([BM]_[A-Z]+)-([0-9]+-[0-9]+[A-Z]*)-([0-9]{1,9})-([0-9]{1,9})")


@dataclass(frozen=True, order=True)
class _Image:
    """Metadata of a file name; the order of fields sorts a sequence's images."""

    slide: str  # "14-4659"
    type: str  # a key of TYPES
    magnification: int
    number: int
    file: Path


def read_breakhis(root: Path, *, series: Series = "magnification", refuse: Refuse = refuse) -> list[ImageSequence]:
    """Return the sequences below `root`, images ordered by number, which is not an order of time.

    A sequence is a slide at one magnification, or a whole slide, one magnification after the other. The patient is
    the slide: a slide filed under two diagnoses is two sequences of one patient. Lettered sections of one case
    (14-21998AB, 14-21998CD) are patients of their own, as the source counts them. A file of an unknown type, or with
    the name of another file, goes to `refuse`, and is skipped if that returns. Raises `ConfigError` for an unknown
    series, `RawDataError` if there is no image.
    """
    if series not in get_args(Series):
        raise ConfigError(f"series must be one of {', '.join(get_args(Series))}, got {series!r}")
    by_slide = series == "slide"
    images = sorted(_images(root, refuse))
    groups = groupby(images, key=lambda image: (image.slide, image.type, 0 if by_slide else image.magnification))
    return [
        ImageSequence(
            TYPES[kind] if by_slide else f"{TYPES[kind]} {magnification}X",
            slide,
            _LABELS[kind[0]],
            FrameFiles([FrameFile(image.file, 1, read_image) for image in group]),
        )
        for (slide, kind, magnification), group in groups
    ]


def is_breakhis(files: Iterable[Path]) -> bool:
    """Tell whether any file is named as BreakHis names its images."""
    return any(_NAME.fullmatch(file.stem) and is_image(file) for file in files)


def slide_of(file: Path) -> str:
    """Return the slide, which is the patient, that a file's name tells; "" for another name."""
    name = _NAME.match(file.name)
    return name[2] if name else ""


def _images(root: Path, refuse: Refuse) -> list[_Image]:
    """Return the images below `root`; other files are ignored."""
    images: dict[tuple[str, str, int, int], _Image] = {}
    for file in images_among(files_below(root, refuse), refuse):
        name = _NAME.fullmatch(file.stem)
        if name is None:
            continue
        kind, slide = name.groups()[:2]
        magnification, number = map(int, name.groups()[2:])
        key = (kind, slide, magnification, number)
        if kind not in TYPES:
            unknown = f"{file} is of an unknown type: it must be one of {', '.join(TYPES)}"
            refuse(file, UnusableFileError(unknown, Reason.UNKNOWN_TYPE))
        elif key in images:
            repeated = f"{file} and {images[key].file} are the same image: remove one of them"
            refuse(file, UnusableFileError(repeated, Reason.REPEATED))
        else:
            images[key] = _Image(slide, kind, magnification, number, file)
    if not images:
        raise RawDataError(f"{root} holds no image named like SOB_B_TA-14-4659-40-001.png: choose BreakHis' folder")
    return list(images.values())
