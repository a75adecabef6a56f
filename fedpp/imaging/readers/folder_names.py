"""Names of folders that are hardly patients: splits, classes, parts of a set, one folder above all patients."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from fedpp.imaging.readers.class_folders import NUMBERED, SPLITS, is_class

MANY, FEW = 25, 12  # images in each of a few folders, which then may be classes
_CONTAINERS = "data dataset files frames image images img imgs jpg jpeg pictures png raw"
_WORDS = """
    annotation annotations augmented axial baseline batch bi birads category center centre chunk class clinic cluster
    cohort contrast coronal cropped date day device dose eye exam examination female fold follow followup frontal grade
    group
    hospital institution item label labels lateral left level magnification male mask masks men month original originals
    part patch phase post postop pre preop preprocessed processed rads right roi rois round sagittal scan scanner score
    segmentation segmentations sequence series session set site split stage study subset timepoint type ultrasound up
    vendor version view visit week women xray year
"""
_PARTS = frozenset(_WORDS.split())  # of a set, alone or with a number or a letter
_ABBREVIATIONS = "ap cr ct dx lat mg mr mri nm oct pa pet us xr"  # alone: with a number, perhaps patients
_DATE = re.compile(r"(?:19[5-9]|20[0-4])\d(?:[-._ ]?(?:0[1-9]|1[0-2])(?:[-._ ]?(?:0[1-9]|[12]\d|3[01]))?)?")


def resemblance(root: Path, files: Iterable[Path]) -> str | None:
    """Return what folders look like whose names are no patients, None for what may be patients.

    Names are not quoted, since some may be patients' after all.
    """
    folders = [file.parent.relative_to(root).parts for file in files]
    if not folders or not all(folders):
        return None
    top = Counter(names[0] for names in folders)
    kinds = {
        "splits (train, test), not patients": all(name.lower() in SPLITS for name in top),
        "classes, though not all of their names are known": any(map(is_class, top)) or _are_grades(top),
        "one folder of all images, not a patient": _hold_all(folders, top),
        "parts of a set (years, folds, visits, sides or the like), not patients": all(map(_is_part, top)),
        "classes or patients: a few folders of many images each, without numbers in their names": _are_large(top),
    }
    return next((kind for kind, there in kinds.items() if there), None)


def _are_grades(names: Collection[str]) -> bool:
    """Return whether names are a few numbers from 0 on."""
    return 1 < len(names) <= FEW and set(names) == set(map(str, range(len(names))))


def _hold_all(folders: Sequence[tuple[str, ...]], top: Collection[str]) -> bool:
    """Return whether a name is that of a folder of images, or one without a number has several numbered ones below."""
    if not set(_CONTAINERS.split()).isdisjoint(name.lower().rstrip("0123456789_- ") for name in top):
        return True
    below = {names[1] for names in folders if len(names) > 1}
    numbered = len(below) > 1 and all(NUMBERED.fullmatch(name) and not _is_part(name) for name in below)
    return len(top) == 1 and numbered and not re.search("[0-9]", "".join(top))


def _is_part(name: str) -> bool:
    """Return whether a name is that of a part of a set, such as visit2, or a date."""
    words = [word for word in re.findall(r"[^\W\d_]+", name.lower()) if len(word) > 1]
    worded = bool(words) and _PARTS.issuperset(words)
    return worded or name.lower() in _ABBREVIATIONS.split() or _DATE.fullmatch(name) is not None


def _are_large(top: Counter[str]) -> bool:
    return 1 < len(top) <= FEW and min(top.values()) >= MANY and not any(map(NUMBERED.fullmatch, top))
