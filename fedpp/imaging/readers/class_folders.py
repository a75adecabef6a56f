"""Folders of classes: `benign/` and `malignant/` with images, or the same below `train/`, `validation/` and `test/`.

A folder's name is the label. The patient is a folder above or below that of the class, or the first part of a file's
name, such as patient12 or person_7; where neither is there, each image counts as a patient of its own.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unicodedata import normalize

from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.readers.folders import files_below
from fedpp.imaging.readers.image_files import doubts_of, frame_files, images_among, in_order
from fedpp.imaging.sequence import FrameFiles, ImageSequence, Refuse, naming, refuse
from fedpp.imaging.splits import UNDIVIDED
from fedpp.texts import counted, look_alike

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Words of which one stands in the name of each class. A patient's name is none of them: labels are public.
_WORDS = """
    abnormal abscess aca adenocarcinoma adenoma adenosis affected aneurysm atelectasis atypia bacteria bacterial
    benign bleeding calcification cancer cancerous carcinoma cardiomegaly cataract cirrhosis cnv colitis
    consolidation control controls covid cyst demented dementia diabetic disease diseased dme drusen dysplasia
    edema effusion embolism emphysema fibroadenoma fibrosis fracture fractured glaucoma glioma haemorrhage healthy
    hemorrhage hernia hyperplasia infected infiltration inflammation ischaemia ischemia ischemic keratosis lesion
    lymphoma malignancy malignant melanoma meningioma metastasis mild moderate myopia negative neoplasm nevus
    nodule nondemented noncancer nontumor normal notumor opacities opacity pathological pathology pituitary
    pleural pneumonia pneumothorax polyp polyps positive proliferative regular retinopathy sarcoma scc severe sick
    stenosis stone stroke tb tuberculosis tumor tumour ulcer uninfected unaffected viral virus
    hgg lgg neg pos bösartig boesartig gesund gutartig krank
"""
WORDS = frozenset(_WORDS.split())
_COVID = re.compile(r"covid[ _-]?(19)?")
_PATIENT = re.compile(r"((?:patient|person|subject|subj|sub|pat|pt|case)[ _-]?[0-9]+)(?![0-9])", re.IGNORECASE)
NUMBERED = re.compile(r"[a-z]{0,8}[ _-]?[0-9]+", re.IGNORECASE)  # name of a patient's folder


@dataclass(frozen=True)
class _Levels:
    """Which folder of a path names what: places in the parts of a path below the root."""

    label: int
    split: int | None
    patient: int | None


@dataclass(frozen=True)
class _Image:
    """An image by what its path says."""

    file: Path
    label: str
    split: str | None
    patient: str
    alone: bool = False  # a patient of its own, since nothing names one


def read_class_folders(root: Path, refuse: Refuse = refuse) -> tuple[list[ImageSequence], str]:
    """Return a sequence for each patient and class, with the patient's split if there are such folders, and a remark.

    Images are ordered by the numbers in their names. Folders whose names are no known classes are
    classes, too, if they are the first below the root, or below its splits. A mask beside its image, and a file whose
    header cannot be read, go to `refuse`, and are skipped if that returns. Raises `RawDataError` for images outside of
    folders of classes, and for a patient in two splits.
    """
    unread: list[tuple[Path, UnusableFileError]] = []
    files = images_among(files_below(root, record := lambda *refused: unread.append(refused)), record)
    levels = _levels(_parts(root, files), known=True) or _levels(_parts(root, files), known=False)
    refuse = naming(patient_finder(root, files), refuse)
    for path, error in unread:
        refuse(path, error)
    if not files:
        raise RawDataError(f"{root} holds no image")
    if levels is None:
        raise RawDataError(f"{root} has no folder for each class with all images in them: write a manifest.csv")
    images = _images(root, levels, files)
    names = {image.label for image in images}
    if len(set(map(look_alike, names))) < len(names):
        raise RawDataError(
            f"{root} has folders of classes whose names differ in case or blanks only: give them one name"
        )
    splits = _splits(root, images)
    groups: dict[tuple[str, str], list[Path]] = {}
    for image in images:
        groups.setdefault((image.patient, image.label), []).append(image.file)
    sequences = []
    for (patient, label), group in sorted(groups.items()):
        if kept := FrameFiles(frame_files(in_order(group), refuse)):
            split, doubts = splits.get(patient), doubts_of(group)
            sequences.append(ImageSequence(label, patient, label, kept, split=split, doubts=doubts))
    if not sequences:
        raise RawDataError(f"{root} holds no image that can be read")
    return sequences, _remark(images, splits)


def require_patients(root: Path, files: Iterable[Path]) -> None:
    """Raise `RawDataError` if the names in folders of classes do not tell the patient of each image."""
    files = list(files)
    levels = _levels(_parts(root, files), known=True)
    alone = sum(image.alone for image in _images(root, levels, files)) if levels else 0
    if alone:
        raise RawDataError(
            f"{root} looks like folders of classes, but {alone} of {len(files)} images name no patient: if no two "
            "images are of one patient, say --layout class-folders, which counts each image as a patient; else write "
            "a manifest.csv, or images of one patient are both in training and in test"
        )


def has_class_levels(root: Path, files: Iterable[Path]) -> bool:
    """Tell whether all images are in folders of which two or more have names of classes, and none another name."""
    return _levels(_parts(root, files), known=True) is not None


def patient_finder(root: Path, files: Iterable[Path]) -> Callable[[Path], str]:
    """Return the function from a path to the patient that its folder or name tells, or to ""; `files` are images."""
    parts = _parts(root, files)
    return partial(_patient, root, _levels(parts, known=True) or _levels(parts, known=False))


def _parts(root: Path, files: Iterable[Path]) -> list[tuple[str, ...]]:
    return [file.parent.relative_to(root).parts for file in files]


def _levels(parts: Sequence[tuple[str, ...]], *, known: bool) -> _Levels | None:
    """Return the levels of folders, of which those of classes have `known` names; None if there are no such folders."""
    names = [{part[level] for part in parts} for level in range(min(map(len, parts), default=0))]
    level, split = 0, None
    for level, found in enumerate(names):
        if split is None and all(name.lower() in SPLITS for name in found):
            split = level
        elif len(found) > 1:
            break
    for label, patient in ((level, None), (level + 1, level)):
        if label < len(names) and _are_classes(names[label]) and label != split:
            numbered = label + 1 < len(names) and all(map(NUMBERED.fullmatch, names[label + 1]))
            return _Levels(label, split, label + 1 if patient is None and numbered else patient)
    return None if known or level >= len(names) or level == split else _Levels(level, split, None)


def _are_classes(names: Collection[str]) -> bool:
    return len(names) > 1 and (all(map(is_class, names)) or {name.lower() for name in names} == {"yes", "no"})


def is_class(name: str) -> bool:
    """Return whether a folder's name is that of a known class."""
    words = _COVID.sub("covid ", normalize("NFC", name.lower()))
    return not re.search("[0-9]", words) and not WORDS.isdisjoint(re.findall(r"[^\W\d_]+", words))


def _images(root: Path, levels: _Levels, files: Iterable[Path]) -> list[_Image]:
    """Return the images; raise `RawDataError` where folders below the classes may be patients, or may not."""
    images = [_image(root, levels, file) for file in files]
    below = all(len(part) > levels.label + 1 for part in _parts(root, (image.file for image in images)))
    if levels.patient is None and below and any(image.alone for image in images):
        raise RawDataError(
            f"{root} has folders below those of classes whose names have no number, so they may be patients or not: "
            "write a manifest.csv"
        )
    return images


def _image(root: Path, levels: _Levels, file: Path) -> _Image:
    parts = file.relative_to(root).parts
    split = None if levels.split is None else SPLITS[parts[levels.split].lower()]
    named = _PATIENT.match(file.stem)
    if levels.patient is not None:
        return _Image(file, parts[levels.label], split, parts[levels.patient])
    patient = re.sub("[ _-]", "", named[1].casefold()) if named else "/".join(parts)
    return _Image(file, parts[levels.label], split, patient, alone=named is None)


def _patient(root: Path, levels: _Levels | None, path: Path) -> str:
    """Return the patient of a file or folder that is not read, "" if nothing names one."""
    try:
        image = _image(root, levels, path) if levels else None
    except LookupError:  # a folder above those of patients, or of another split
        return ""
    return image.patient if image and not image.alone else ""


def _splits(root: Path, images: Iterable[_Image]) -> dict[str, str]:
    """Return the split of each patient, {} for one split or none: the plan then divides them."""
    found = {image.split for image in images}
    if len(found) < 2:
        return {}
    splits: dict[str, str] = {}
    divided = set()
    for image in images:
        split = UNDIVIDED if image.split == "train" and "validation" not in found else str(image.split)
        if splits.setdefault(image.patient, split) != split:
            divided.add(image.patient)
    if divided:
        raise RawDataError(
            f"{root} has {counted(len(divided), 'patient')} in two of its splits: move all images of one into one"
        )
    return splits


def _remark(images: Sequence[_Image], splits: Mapping[str, str]) -> str:
    alone = sum(image.alone for image in images)
    remarks = [
        "with its splits" if splits else "",
        "images of a patient are in the order of their names" if alone < len(images) else "",
        f"{counted(alone, 'image')} without a patient in the name, each taken as a patient: the split is by image"
        if alone
        else "",
    ]
    return ", ".join(filter(None, remarks))
