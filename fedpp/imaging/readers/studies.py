"""Studies of chest X-rays with findings: what CheXpert, MIMIC-CXR-JPG and ChestX-ray14 have in common."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal, get_args

from fedpp.errors import ConfigError, NoImageError, RawDataError
from fedpp.imaging.images import read_image
from fedpp.imaging.label_texts import is_no_label
from fedpp.imaging.labels import label_of
from fedpp.imaging.readers.folders import files_in
from fedpp.imaging.reasons import Doubt, Reason
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence, Label, Refuse, last_known

Uncertain = Literal["ones", "zeros", "ignore"]
Views = Literal["frontal", "first", "all"]

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
_TABLE = re.compile(r"[^.].*\.(csv|tsv)(\.gz)?", re.IGNORECASE | re.DOTALL)
_UNCERTAIN = {"ones": "1", "zeros": "0", "ignore": None}


@dataclass(frozen=True, order=True)
class View:
    """One image of a study; the order of fields sorts a patient's images."""

    study: tuple[float, ...]  # place of the study among the patient's
    number: int  # place in the study
    file: Path
    frontal: bool = field(compare=False)
    label: Label | None = field(compare=False)
    time: float | None = field(default=None, compare=False)  # days since a fixed day
    ordered: bool = field(default=True, compare=False)  # studies are known to be in the order of time


def tables_in(folder: Path) -> list[Path]:
    """Return the files of a folder that are tables by their names; none for one that cannot be listed."""
    return [file for file in files_in(folder, lambda *_: None) if _TABLE.fullmatch(file.name)]


def findings_of(target: str, known: Iterable[str] = FINDINGS) -> tuple[str, ...]:
    """Return the findings of a target: one name, several with commas, or "competition" for CheXpert's five.

    Raises `ConfigError` for a name that is not `known`, or that occurs twice.
    """
    findings = COMPETITION if target == "competition" else tuple(name.strip() for name in target.split(","))
    for name in findings:
        if name not in known:
            raise ConfigError(f"target must be one of {', '.join(known)}, got {name!r}")
    if len(set(findings)) < len(findings):
        raise ConfigError(f"target names a finding twice: {target!r}")
    return findings


def require_choices(uncertain: str, views: str) -> None:
    """Raise `ConfigError` for a choice that is not known."""
    for option, value, known in (("uncertain", uncertain, get_args(Uncertain)), ("views", views, get_args(Views))):
        if value not in known:
            raise ConfigError(f"{option} must be one of {', '.join(known)}, got {value!r}")


def label_in(where: str, row: Mapping[str, str], findings: tuple[str, ...], uncertain: Uncertain) -> Label | None:
    """Return the label in a table's row, which states 1, 0, -1 or nothing (or NaN and the like) for each finding."""
    states = tuple(_state(where, finding, row[finding], _UNCERTAIN[uncertain]) for finding in findings)
    return label_of(states, findings)


def _state(where: str, finding: str, text: str, uncertain: str | None) -> str | None:
    states = {1.0: "1", 0.0: "0", -1.0: uncertain}
    try:
        return states[float(text.replace(",", "."))] if text and not is_no_label(text) else None
    except (ValueError, KeyError):
        raise RawDataError(f"{where}: {finding} must be 1, 0, -1 or empty") from None


def sequences_of(root: Path, patients: Mapping[str, list[View]], views: Views, refuse: Refuse) -> list[ImageSequence]:
    """Return one sequence for each patient with a wanted view: of each study its first frontal one, first one, or all.

    The views of a patient without a frontal one go to `refuse`, and are excluded if that returns. Raises
    `RawDataError` if nothing remains.
    """
    if not patients:
        raise RawDataError(f"{root} holds no image that its tables name")
    sequences = []
    for patient, images in patients.items():
        if chosen := _chosen(images, views):
            sequences.append(_sequence(patient, chosen))
        for view in () if chosen else images:
            message = f"{view.file} is of a patient without a frontal view: the views first or all have it"
            refuse(view.file, NoImageError(message, Reason.NOT_FRONTAL))
    if not sequences:
        raise RawDataError(f"{root} holds no frontal view: choose the views first or all")
    return sequences


def _chosen(images: list[View], views: Views) -> list[View]:
    ordered = sorted(images)
    if views == "all":
        return ordered
    seen = [view for view in ordered if view.frontal or views == "first"]
    return [next(study) for _, study in groupby(seen, key=lambda view: view.study)]


def _sequence(patient: str, images: list[View]) -> ImageSequence:
    labels = tuple(view.label for view in images)
    times = tuple(view.time for view in images if view.time is not None)
    steps = [(before, after) for before, after in pairwise(images) if before.study != after.study]
    guessed = any(not after.ordered or after.time == before.time is not None for before, after in steps)
    return ImageSequence(
        "studies",
        patient,
        last_known(labels),
        FrameFiles([FrameFile(view.file, 1, read_image) for view in images]),
        labels,
        times if len(times) == len(images) else None,
        doubts=(Doubt.ORDER,) if guessed else (),
    )
