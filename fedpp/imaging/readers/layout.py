"""Layouts of raw images: recognise one, read its sequences, and describe them in one line."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from pathlib import Path

from fedpp.config.run_config import LAYOUTS
from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.labels import MAX_CLASSES, label_names
from fedpp.imaging.readers import nih_chestxray14
from fedpp.imaging.readers.breakhis import Series, read_breakhis
from fedpp.imaging.readers.chexpert import is_chexpert, read_chexpert
from fedpp.imaging.readers.class_folders import has_class_levels, read_class_folders
from fedpp.imaging.readers.dicom_folder import read_dicom
from fedpp.imaging.readers.frame_folders import INDEX, read_frame_folders, unlisted
from fedpp.imaging.readers.image_folders import read_image_folders
from fedpp.imaging.readers.manifest_table import MANIFEST, read_manifest
from fedpp.imaging.readers.mimic_cxr import read_mimic_cxr
from fedpp.imaging.readers.patient_labels import LABELS, without_images
from fedpp.imaging.readers.recognition import recognised
from fedpp.imaging.readers.studies import FINDINGS, Uncertain, Views, findings_of
from fedpp.imaging.sequence import FrameFiles, ImageSequence, Refuse, refuse
from fedpp.texts import counted, printable

_FINDINGS = tuple(dict.fromkeys((*FINDINGS, *nih_chestxray14.FINDINGS, *nih_chestxray14.ALIASES)))  # of any layout
_LAYOUTS_OF = {
    "target": ("chexpert", "mimic-cxr", "nih-chestxray14"),
    "uncertain": ("chexpert", "mimic-cxr"),
    "views": ("chexpert", "mimic-cxr"),
    "series": ("breakhis",),
}
Read = tuple[list[ImageSequence], str, str]  # sequences, how the layout was recognised, a remark or ""


@dataclass(frozen=True)
class Choices:
    """Options of single layouts: findings of X-rays, uncertain labels and views; BreakHis's series."""

    target: str = "Pleural Effusion"
    uncertain: Uncertain = "ignore"
    views: Views = "frontal"
    series: Series = "magnification"

    @property
    def findings(self) -> tuple[str, ...]:
        """Return the names of the chosen findings; several make the data multi-label."""
        return findings_of(self.target, _FINDINGS)

    def require(self, layout: str) -> None:
        """Raise `ConfigError` for a choice other than the default that a layout does not have."""
        for field in fields(self):
            value, its = getattr(self, field.name), _LAYOUTS_OF[field.name]
            if layout not in its and value != field.default:
                raise ConfigError(
                    f"{field.name} {value!r} is for layout {' or '.join(its)}, these data are read as {layout}: leave "
                    "it out, or choose another layout"
                )


def read_sequences(
    raw: Path, layout: str = "auto", choices: Choices = Choices(), refuse: Refuse = refuse
) -> tuple[list[ImageSequence], str]:
    """Return the sequences below `raw`, and one printable line that describes them.

    `layout` is one of `LAYOUTS`, or "auto": the first that recognises the folder. A file that cannot be used goes to
    `refuse`, and is skipped if that returns; pixels are not decoded. Raises `RawDataError` for a table or folder
    that cannot be read, or if no file remains, `ConfigError` for choices that the layout does not have.
    """
    layout = layout_of(raw, layout)
    if layout != "dicom" and not raw.is_dir():
        raise RawDataError(f"{raw} is not a folder, which layout {layout} needs")
    choices.require(layout)
    sequences, why, remark = _READERS[layout](raw, choices, refuse)
    findings = choices.findings
    counts = Counter(text for s in sequences for text in label_names(s.label, findings))
    patients = len({sequence.patient for sequence in sequences})
    frames = sum(len(sequence.frames) for sequence in sequences)
    read = f"{counted(len(sequences), 'sequence')} of {counted(patients, 'patient')}, {counted(frames, 'frame')}"
    return sequences, f"{why}: {read}, {_listed(counts)}{remark and f'; {remark}'}"


def _listed(counts: Counter[str]) -> str:
    """Return the labels with their counts; so many that they may name patients are counted only."""
    if len(counts) > MAX_CLASSES:
        return f"{len(counts)} different labels"
    labels = ", ".join(f"{printable(label)} {count}" for label, count in sorted(counts.items())[:8])
    return f"labels: {labels}" if labels else "without labels"


def layout_of(raw: Path, layout: str = "auto") -> str:
    """Return the layout of a folder or file; raise `RawDataError` if none is recognised."""
    if layout not in LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    _require_readable(raw)
    if layout != "auto":
        return layout
    return "dicom" if raw.is_file() else recognised(raw)


def missing_patients(raw: Path, layout: str, sequences: Sequence[ImageSequence]) -> set[str]:
    """Return the patients in a layout's table of labels of whom nothing was read."""
    return without_images(sequences, raw) if layout in {"dicom", "images"} and raw.is_dir() else set()


def _require_readable(raw: Path) -> None:
    """Raise a `RawDataError` that names the user's path, not a file that is only looked for in it."""
    try:
        if not raw.exists():
            raise RawDataError(f"{raw} does not exist: name a folder of images, or a DICOM file")
        if raw.is_dir():
            next(raw.iterdir(), None)
            (raw / INDEX).exists()
    except OSError as error:
        raise RawDataError(f"cannot read {raw}: {error.strerror}: check its name and its permissions") from None


def _frames(raw: Path, _: Choices, refuse: Refuse) -> Read:
    sequences = read_frame_folders(raw, refuse)
    others = unlisted(raw)
    ignored = f"{others} folders that it does not list were ignored" if others else ""
    return sequences, f"frame folders, listed by {INDEX}", ignored


def _manifest(raw: Path, _: Choices, refuse: Refuse) -> Read:
    sequences, splits = read_manifest(raw, refuse)
    if splits is None:
        return sequences, f"files listed by {MANIFEST}", ""
    assigned = [replace(sequence, split=splits[sequence.patient]) for sequence in sequences]
    return assigned, f"files listed by {MANIFEST}, with its splits", ""


def _chexpert(raw: Path, choices: Choices, refuse: Refuse) -> Read:
    sequences = read_chexpert(
        raw, target=choices.target, uncertain=choices.uncertain, views=choices.views, refuse=refuse
    )
    by = "the header of its table" if is_chexpert(raw) else "the names of its images"
    return sequences, f"CheXpert, by {by}", _by_image(sequences, choices)


def _mimic_cxr(raw: Path, choices: Choices, refuse: Refuse) -> Read:
    sequences, remark = read_mimic_cxr(
        raw, target=choices.target, uncertain=choices.uncertain, views=choices.views, refuse=refuse
    )
    return sequences, "MIMIC-CXR-JPG, by the names of its folders", f"{_by_image(sequences, choices)}; {remark}"


def _nih_chestxray14(raw: Path, choices: Choices, refuse: Refuse) -> Read:
    sequences, remark = nih_chestxray14.read_nih_chestxray14(raw, target=choices.target, refuse=refuse)
    remarks = "; ".join(filter(None, (_by_image(sequences, choices), remark)))
    return sequences, "NIH ChestX-ray14, by the header of its table", remarks


def _by_image(sequences: Sequence[ImageSequence], choices: Choices) -> str:
    """Return how many images have each state of each finding."""
    labels = [label for s in sequences for label in s.labels or () if label is not None]
    by_finding = [labels] if len(choices.findings) == 1 else zip(*labels, strict=True)
    counts = [Counter(state for state in states if state is not None) for states in by_finding]
    counted = [", ".join(f"{state} in {count}" for state, count in sorted(states.items())) for states in counts]
    by_name = zip_longest(choices.findings, counted)  # nothing was counted if none is known
    names = {choices.findings[0]: ""} if len(choices.findings) == 1 else {}  # of which the labels are the name already
    return "; ".join(f"{names.get(name, f'{name} ')}by image: {states or 'no label'}" for name, states in by_name)


def _dicom(raw: Path, _: Choices, refuse: Refuse) -> Read:
    sequences, images, others = read_dicom(raw, refuse)
    kind = "DICOM file" if raw.is_file() else "DICOM folder, by the mark in its files"
    labels = f", labels from {LABELS}" if sequences[0].label is not None else ""
    ignored = f"{others} DICOM files without a picture, or copies of one, were ignored" if others else ""
    remarks = "; ".join(filter(None, (ignored, _unread_classes(raw, sequences))))
    return sequences, f"{kind}, {counted(images, 'image file')}{labels}", remarks


def _unread_classes(raw: Path, sequences: Sequence[ImageSequence]) -> str:
    """Return a remark on folders of unlabelled DICOM files that are named as classes, "" without such folders."""
    if raw.is_file() or any(sequence.label is not None for sequence in sequences):
        return ""
    frames = [sequence.frames for sequence in sequences]
    files = [file.path for of in frames if isinstance(of, FrameFiles) for file in of.files]
    named = has_class_levels(raw, files)
    return f"folders are named as classes, which are no labels of DICOM files: write {LABELS}" if named else ""


def _breakhis(raw: Path, choices: Choices, refuse: Refuse) -> Read:
    order = "a slide at one magnification" if choices.series == "magnification" else "a whole slide"
    remark = f"a sequence is {order}, in an order that is not time"
    return read_breakhis(raw, series=choices.series, refuse=refuse), "BreakHis, by the names of its files", remark


def _class_folders(raw: Path, _: Choices, refuse: Refuse) -> Read:
    sequences, remark = read_class_folders(raw, refuse)
    return sequences, "folders of classes, by their names", remark


def _images(raw: Path, _: Choices, refuse: Refuse) -> Read:
    return read_image_folders(raw, refuse), "folders of images, one a patient", ""


_READERS: dict[str, Callable[[Path, Choices, Refuse], Read]] = {
    "frames": _frames,
    "manifest": _manifest,
    "chexpert": _chexpert,
    "mimic-cxr": _mimic_cxr,
    "nih-chestxray14": _nih_chestxray14,
    "dicom": _dicom,
    "breakhis": _breakhis,
    "class-folders": _class_folders,
    "images": _images,
}
