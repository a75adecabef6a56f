"""Patient of a file that is not read, as far as its path or its header tells: for the account, in the secret zone."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import pydicom

from fedpp.imaging.dicom.dicom_file import DAMAGE, quiet
from fedpp.imaging.dicom.dicom_tags import text
from fedpp.imaging.readers import breakhis, chexpert, class_folders, mimic_cxr, nih_chestxray14
from fedpp.imaging.tables import is_file, is_folder


def patient_finder(root: Path, layout: str, known: Mapping[Path, str]) -> Callable[[Path], str]:
    """Return the function from a file or folder below `root` to its patient, or to "" if nothing tells it.

    `known` are files and folders of the layout with the patients that its reader named.
    """
    if layout == "class-folders":
        return class_folders.patient_finder(root, [path for path in known if is_file(path)])
    if layout in {"frames", "manifest"}:
        return partial(_by_folder, _folders(known))
    return partial(_PATIENTS[layout], root) if layout in _PATIENTS else lambda _: ""


def _folders(known: Mapping[Path, str]) -> dict[Path, set[str]]:
    folders: dict[Path, set[str]] = {}
    for path, patient in known.items():
        folders.setdefault(path if is_folder(path) else path.parent, set()).add(patient)
    return folders


def _by_folder(folders: Mapping[Path, set[str]], path: Path) -> str:
    patients = folders.get(path.parent, set())
    return next(iter(patients)) if len(patients) == 1 else ""


def _first_folder(root: Path, path: Path) -> str:
    if root not in path.parents:
        return ""
    first, *below = path.relative_to(root).parts
    return first if below or is_folder(path) else ""


def _tag(_: Path, path: Path) -> str:
    with quiet(), suppress(*DAMAGE):  # also for what may not be opened
        if path.is_file():
            tags = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=["PatientID"])
            return text(tags, "PatientID")
    return ""


_PATIENTS: dict[str, Callable[[Path, Path], str]] = {
    "breakhis": lambda _, path: breakhis.slide_of(path),
    "chexpert": lambda _, path: chexpert.patient_in(path),
    "dicom": _tag,
    "images": _first_folder,
    "mimic-cxr": lambda _, path: mimic_cxr.subject_in(path),
    "nih-chestxray14": lambda _, path: nih_chestxray14.patient_named(path),
}
