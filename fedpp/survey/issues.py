"""Judges what a survey has seen: findings, which `--strict` fails for, and notes, which may be as they should be."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from fedpp.imaging.labels import MAX_CLASSES
from fedpp.imaging.readers.breakhis import TYPES
from fedpp.imaging.readers.manifest_table import MANIFEST
from fedpp.imaging.readers.patient_labels import LABELS
from fedpp.imaging.sequence import ImageSequence
from fedpp.survey.facts import UNLISTED, DuplicateFact, FileFact, Finding, GapFact, LabelFact

FEWEST_PATIENTS = 3  # of a label: one for each split
NAMED = 8  # labels in one sentence

_SUBTYPES = frozenset(TYPES.values())


def findings(
    sequences: Sequence[ImageSequence],
    heads: Sequence[str],
    labels: Sequence[LabelFact],
    files: Sequence[FileFact],
    duplicates: Sequence[DuplicateFact],
    gaps: GapFact | None,
    torn: int,
    absent: int,
) -> tuple[Finding, ...]:
    """Return what may be wrong, the worst first.

    `heads` are the first files of the sequences; `torn` patients are in several splits by the data's table, which names
    `absent` patients of whom nothing was read.
    """
    found = (
        *_of_files(files),
        Finding(
            "two-splits",
            torn,
            f"{number(torn, 'patient')} in more than one split",
            f"choose one split for each in {MANIFEST}, or remove its column split",
        ),
        Finding(
            "no-image",
            absent,
            f"{number(absent, 'patient')} in {LABELS} of whom no image was read",
            "restore their folders, or remove their lines",
        ),
        *_of_duplicates(duplicates),
        *_of_labels(sequences, heads, labels),
        Finding(
            "backward-time",
            gaps.backward if gaps else 0,
            f"{number(gaps.backward if gaps else 0, 'image')} before the one that they should follow",
            "check the times",
        ),
    )
    return tuple(finding for finding in found if finding.count)


def notes(
    sequences: Sequence[ImageSequence],
    labels: Sequence[LabelFact],
    files: Sequence[FileFact],
    duplicates: Sequence[DuplicateFact],
    gaps: GapFact | None,
    sizes: int,
    *,
    more: bool,
) -> tuple[str, ...]:
    """Return what is worth knowing; `sizes` counts the different ones, `more` near duplicates may be unfound."""
    unlisted = sum(file.reason == UNLISTED for file in files)
    repeated = sum(pair.images for pair in duplicates if pair.one_patient)
    visits = sum(label is None for sequence in sequences for label in sequence.labels or ())
    singles = sum(len(sequence.frames) == 1 for sequence in sequences)
    together = gaps.classes["none"] - gaps.backward if gaps else 0
    untagged = sum(file.outcome == "read" and not file.dicom for file in files)
    said = {
        "no sequence has a label": bool(sequences) and not labels,
        "all labels are the same: ingest needs the names of all classes (--classes)": len(labels) == 1,
        f"{number(visits, 'visit')} without a label of their own": visits,
        f"{number(singles, 'sequence')} of one image only": singles,
        f"images are of {sizes} sizes: ingest brings all to one, and does not keep their proportions": sizes > 1,
        f"{number(together, 'image')} of the same time as the one before": together,
        f"{number(repeated, 'image')} repeated in another file of the same patient": repeated,
        f"{number(unlisted, 'image file')} in no sequence": unlisted,
        f"{number(untagged, 'file')} with no tags that could tell of text burnt into the image: look at some": untagged,
        "so many images look alike that only the closest pairs were compared": more,
    }
    return tuple(note for note, holds in said.items() if holds)


def _of_files(files: Sequence[FileFact]) -> Iterator[Finding]:
    refused = sum(file.outcome == "refused" for file in files)
    suspicious = sum(bool(file.suspicion) for file in files)
    blank = sum(file.blank for file in files)
    yield Finding(
        "unreadable",
        refused,
        f"{number(refused, 'file')} that cannot be used",
        "restore or remove them, or ingest with --skip-unreadable",
    )
    yield Finding(
        "burned-in-text",
        suspicious,
        f"{number(suspicious, 'file')} that may show text burnt into the image, by their tags",
        "look at them, black the text out, or set BurnedInAnnotation to NO where there is none",
    )
    yield Finding(
        "blank-image",
        blank,
        f"{number(blank, 'image')} of one single value, without anything to see",
        "find out what they should show, or remove them",
    )


def _of_duplicates(duplicates: Sequence[DuplicateFact]) -> Iterator[Finding]:
    same = [pair for pair in duplicates if pair.same and not pair.one_patient]
    near = [pair for pair in duplicates if not pair.same and not pair.one_patient]
    leaks = sum(not pair.one_split for pair in same)
    yield Finding(
        "same-image-in-two-splits",
        leaks,
        f"{number(leaks, 'pair')} of files of different splits that share an image, pixel by pixel",
        "keep one of each, or the test is on what was trained with",
    )
    yield Finding(
        "same-image",
        len(same),
        f"{number(len(same), 'pair')} of files of different patients that share an image, pixel by pixel",
        "find out whose they are, and keep one of each",
    )
    yield Finding(
        "near-duplicate",
        len(near),
        f"{number(len(near), 'pair')} of files of different patients with images that are nearly the same",
        "look at them side by side: are they one patient's?",
    )


def _of_labels(
    sequences: Sequence[ImageSequence], heads: Sequence[str], labels: Sequence[LabelFact]
) -> Iterator[Finding]:
    many = len(labels) if len(labels) > MAX_CLASSES else 0
    missing = [head for head, s in zip(heads, sequences, strict=True) if s.label is None and labels]
    rare = [label for label in labels if label.sequences and label.patients < FEWEST_PATIENTS and not many]
    torn = _patients_of_two_labels(sequences)
    yield Finding(
        "missing-label",
        len(missing),
        f"{number(len(missing), 'sequence')} without a label",
        "label them, or ingest with --drop-unlabelled",
        tuple(missing[:NAMED]),
    )
    yield Finding(
        "too-many-labels",
        many,
        f"{many} different labels",
        f"is it the right column? ingest takes no more than {MAX_CLASSES} unless the classes are named",
    )
    yield Finding(
        "rare-label",
        len(rare),
        f"{number(len(rare), 'label')} of fewer than {FEWEST_PATIENTS} patients, so not one for each split: "
        + listed([f"{label.label} ({label.patients})" for label in rare]),
        "gather more, or join labels (--negative)",
    )
    yield Finding(
        "two-labels",
        len(torn),
        f"{number(len(torn), 'patient')} under two labels or diagnoses",
        "is one of them wrong, or are these two patients?",
        tuple(head for head, s in zip(heads, sequences, strict=True) if s.patient in torn)[:NAMED],
    )


def _patients_of_two_labels(sequences: Iterable[ImageSequence]) -> set[str]:
    """Return the patients with sequences of different labels, or of BreakHis' different types of tumour."""
    diagnoses = {(s.patient, s.label, _subtype(s)) for s in sequences if s.label is not None}
    return {patient for patient, count in Counter(patient for patient, *_ in diagnoses).items() if count > 1}


def _subtype(sequence: ImageSequence) -> str | None:
    first = sequence.id.split(" ")[0]
    return first if first in _SUBTYPES else None


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def number(count: int, thing: str) -> str:
    """Return "1 file" or "2 files"."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
