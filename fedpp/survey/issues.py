"""Issues and notes of a survey: `--strict` fails for issues; notes may be as they should be."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fedpp.imaging.account import Outcome
from fedpp.imaging.labels import MAX_CLASSES
from fedpp.imaging.readers.breakhis import TYPES
from fedpp.imaging.readers.frame_folders import INDEX
from fedpp.imaging.readers.manifest_table import MANIFEST
from fedpp.imaging.readers.patient_labels import LABELS
from fedpp.imaging.sequence import ImageSequence
from fedpp.survey.facts import Facts, Issue

MIN_PATIENTS = 3  # of a label: one for each split
NAMED = 8  # labels in one sentence

_SUBTYPES = frozenset(TYPES.values())


# Of each kind of issue, the most severe first: what is counted, what is wrong with it, and what to do.
TEXTS = {
    "unreadable": ("file", "that cannot be used", "restore or remove them, or ingest with --max-lost"),
    "burned-in-text": (
        "file",
        "that may show text burnt into the image, by their tags",
        "look at them, black the text out, or set BurnedInAnnotation to NO where there is none",
    ),
    "blank-image": (
        "image",
        "of one single value, without anything to see",
        "find out what they should show, or remove them",
    ),
    "two-splits": (
        "patient",
        "in more than one split",
        f"choose one split for each in {MANIFEST}, or remove its column split",
    ),
    "no-image": (
        "patient",
        f"in {LABELS} of whom no image was read",
        "restore their folders, or remove their lines",
    ),
    "same-image-in-two-splits": (
        "pair",
        "of files of different splits that share an image, pixel by pixel",
        "keep one of each: otherwise the test uses training images",
    ),
    "same-image": (
        "pair",
        "of files of different patients that share an image, pixel by pixel",
        "find out whose they are, and keep one of each",
    ),
    "near-duplicate": (
        "pair",
        "of files of different patients with images that are nearly the same",
        "look at them side by side: are they one patient's?",
    ),
    "missing-label": ("sequence", "without a label", "label them, or ingest with --drop-unlabelled"),
    "too-many-labels": (
        "different label",
        "in the data",
        f"is it the right column? ingest takes no more than {MAX_CLASSES} unless the classes are named",
    ),
    "rare-label": (
        "label",
        f"of fewer than {MIN_PATIENTS} patients, so not one for each split: {{}}",
        "gather more, or join labels (--negative)",
    ),
    "two-labels": (
        "patient",
        "under two labels or diagnoses",
        "is one of them wrong, or are these two patients?",
    ),
    "alike-patients": (
        "patient",
        "with a name that differs from another's in case, blanks or Unicode form only",
        "are they one patient? then write the name in one form: a patient must be in one split",
    ),
    "two-issuers": (
        "sequence",
        "of a patient whose number has two issuers",
        "are these two patients of one number? then give each a number of its own",
    ),
    "two-birth-dates": (
        "sequence",
        "of a patient with two birth dates",
        "are these two patients of one number? then give each a number of its own",
    ),
    "guessed-order": ("sequence", "in an order that is a guess", "complete the dates or numbers of their images"),
    "backward-time": ("image", "before the one that they should follow", "check the times"),
}

# What fits a layout better.
FINDINGS_OF_TABLES = ("chexpert", "mimic-cxr", "nih-chestxray14")
LABELLING = {
    "frames": f"fill in the column label of {INDEX}",
    "manifest": f"fill in the column label of {MANIFEST}",
    **dict.fromkeys(("dicom", "images"), f"write their labels into {LABELS} (patient,label)"),
    **dict.fromkeys(("chexpert", "mimic-cxr"), "choose another --target or --uncertain"),
    "nih-chestxray14": "choose another --target",
}
ADVICE = {
    **{("rare-label", layout): "gather more, or choose another --target" for layout in FINDINGS_OF_TABLES},
    **{("missing-label", layout): f"{do}, or ingest with --drop-unlabelled" for layout, do in LABELLING.items()},
    ("guessed-order", "manifest"): f"fill in the column time of {MANIFEST}",
    ("guessed-order", "dicom"): "complete StudyDate, and InstanceNumber, in their files",
    ("guessed-order", "images"): f"number the images' names in the order of time, or write a {MANIFEST} with times",
    ("guessed-order", "frames"): "number the images' names in the order of time",
}


def advice_for(kind: str, layout: str) -> str:
    """Return what to do about a kind of issue in data of a layout."""
    return ADVICE.get((kind, layout), TEXTS[kind][2])


def unlabelled(layout: str) -> str:
    """Return the note on data of which no sequence has a label."""
    do = LABELLING.get(layout, "label them")
    return f"no sequence has a label, so no model can be trained on these data or tested on them: {do}"


# What ingest says of pictures, where a survey names pairs of files.
PICTURES = {
    "same-image-in-two-splits": (
        "picture",
        "of several patients in different splits, pixel by pixel: it leaks from one split into another",
        "keep one of each, survey names the files on its page",
    ),
    "same-image": (
        "picture",
        "of several patients, pixel by pixel",
        "find out whose they are, survey names the files on its page",
    ),
}


def issue_lines(counts: Mapping[str, int], layout: str) -> list[str]:
    """Return a line for each kind of issue that ingest found."""
    texts = {kind: (thing, what, advice_for(kind, layout)) for kind, (thing, what, _) in TEXTS.items()} | PICTURES
    return [
        f"issue {kind}: {number(counts[kind], thing)} {what}; {advice}"
        for kind, (thing, what, advice) in texts.items()
        if counts.get(kind)
    ]


def issues(facts: Facts) -> tuple[Issue, ...]:
    """Return what may be wrong, the most severe first."""
    sequences, labels, files = list(zip(facts.first_files, facts.sequences, strict=True)), facts.labels, facts.files
    duplicates = [pair for pair in facts.duplicates if not pair.one_patient]
    missing = [file for file, sequence in sequences if sequence.label is None and labels]
    rare = [label for label in labels if label.sequences and label.patients < MIN_PATIENTS]
    too_many = len(labels) > MAX_CLASSES
    contradicting = _patients_of_two_labels(facts.sequences)
    where = {
        "missing-label": missing,
        "two-labels": [file for file, sequence in sequences if sequence.patient in contradicting],
    }
    counts = {
        "unreadable": sum(file.outcome == Outcome.LOST for file in files),
        "burned-in-text": sum(bool(file.suspicion) for file in files),
        "blank-image": sum(file.blank for file in files),
        "two-splits": facts.patients_in_two_splits,
        "no-image": facts.patients_without_images,
        "same-image-in-two-splits": sum(pair.same and not pair.one_split for pair in duplicates),
        "same-image": sum(pair.same for pair in duplicates),
        "near-duplicate": sum(not pair.same for pair in duplicates),
        "missing-label": len(missing),
        "too-many-labels": len(labels) if too_many else 0,
        "rare-label": 0 if too_many else len(rare),
        "two-labels": len(contradicting),
        "backward-time": facts.gaps.backward if facts.gaps else 0,
        **{kind: facts.doubts.get(kind, 0) for kind in ("alike-patients", "two-issuers", "two-birth-dates")},
        "guessed-order": facts.doubts.get("guessed-order", 0),
    }
    names = listed([f"{label.label} ({label.patients})" for label in rare])
    return tuple(
        Issue(
            kind,
            counts[kind],
            f"{number(counts[kind], thing)} {what.format(names)}",
            advice_for(kind, facts.layout),
            tuple(where.get(kind, ())[:NAMED]),
        )
        for kind, (thing, what, _) in TEXTS.items()
        if counts[kind]
    )


def notes(facts: Facts) -> tuple[str, ...]:
    """Return observations that need no change of the data."""
    repeated = sum(pair.images for pair in facts.duplicates if pair.one_patient)
    visits = sum(label is None for sequence in facts.sequences for label in sequence.labels or ())
    singles = sum(len(sequence.frames) == 1 for sequence in facts.sequences)
    together = facts.gaps.classes["none"] - facts.gaps.backward if facts.gaps else 0
    untagged = sum(file.outcome == Outcome.READ and not file.dicom for file in facts.files)
    sizes = len(facts.sizes)
    observed = {
        unlabelled(facts.layout): bool(facts.sequences) and not facts.labels,
        "all labels are the same: ingest needs the names of all classes (--classes)": len(facts.labels) == 1,
        f"{number(visits, 'visit')} without a label of their own": visits,
        f"{number(singles, 'sequence')} of one image only": singles,
        f"images are of {sizes} sizes: ingest brings all to one, and does not keep their proportions": sizes > 1,
        f"{number(together, 'image')} of the same time as the one before": together,
        f"{number(repeated, 'image')} repeated in another file of the same patient": repeated,
        f"{number(facts.unnamed, 'image file')} in no sequence": facts.unnamed,
        f"{number(untagged, 'file')} with no tags that could report text burnt into the image: look at some": untagged,
        "so many images look alike that only the closest pairs were compared": facts.more_near_duplicates,
    }
    return tuple(note for note, holds in observed.items() if holds)


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
