"""Examination of raw data before ingest: every image is read once, and counted, compared and checked.

The result is for the secret zone: it names files and shows images. Patients are counted and never named.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.account import Account, Entry, Outcome
from fedpp.imaging.dicom.burned_in import suspicion
from fedpp.imaging.labels import MAX_CLASSES, label_names
from fedpp.imaging.readable import with_files
from fedpp.imaging.readers.dicom_folder import is_dicom
from fedpp.imaging.readers.layout import Choices, layout_of, missing_patients, read_sequences
from fedpp.imaging.readers.manifest_table import MANIFEST
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import Frame, FrameFile, FrameFiles, ImageSequence, Label
from fedpp.imaging.tables import NO_IMAGE, is_file, read_table
from fedpp.survey.duplicates import ImageIndex, Pair
from fedpp.survey.facts import (
    DuplicateFact,
    Facts,
    FileFact,
    GapFact,
    LabelFact,
    Survey,
    Thumbnails,
    lengths,
)
from fedpp.survey.issues import issues, listed, notes, number
from fedpp.texts import printable

CHOICES = Choices()
SHOWN = 24  # sequences with thumbnails
THUMBNAIL = 96  # pixels of the longer side
MAX_LABELS = 12  # lines of a terminal


def examine(raw: Path, layout: str = "auto", choices: Choices = CHOICES, *, progress: bool = False) -> Survey:
    """Read every image below `raw`, one at a time in memory, and return the survey.

    Images that may be near duplicates are read twice. Raises `RawDataError` for an unknown layout or a table that
    does not fit, but not for single files. The progress bar is shown on a terminal only.
    """
    examination = _Examination(raw, choices.findings)
    sequences: list[ImageSequence] = []
    in_two_splits = 0
    without_images: set[str] = set()
    try:
        layout = layout_of(raw, layout)
        sequences, recognised = read_sequences(raw, layout, choices, examination.account)
        without_images = missing_patients(raw, layout, sequences)
    except RawDataError as error:
        in_two_splits = _patients_in_two_splits(raw / MANIFEST) if layout in {"auto", "manifest"} else 0
        if isinstance(error, UnusableFileError):
            examination.account(error.path or raw, error)
        elif not in_two_splits and not examination.account.count(Outcome.LOST):
            raise
        why = error.reason if isinstance(error, UnusableFileError) else examination.relative(error)
        recognised = f"nothing was read: {why}"
    shown = set(_shown([sequence.label for sequence in sequences]))
    total = sum(len(_files(sequence)) for sequence in sequences)
    with tqdm(total=total, desc="examining", unit="file", disable=None if progress else True) as bar:
        for position, sequence in enumerate(sequences):
            examination.add(sequence, show=position in shown)
            bar.update(len(_files(sequence)))
    examination.account.missing = without_images
    return examination.survey(printable(recognised), layout, in_two_splits, len(without_images))


def summary(survey: Survey) -> str:
    """Return the survey as lines for a terminal or log, which name no file and no patient."""
    lines = [survey.recognised]
    read = f"{survey.frames} in {number(survey.sequences, 'sequence')} of {number(survey.patients, 'patient')}"
    facts = {"images": read}
    if survey.sizes:
        facts["sizes"] = listed([f"{size} ({count})" for size, count in survey.sizes.items()])
    if survey.lengths:
        facts["lengths"] = _lengths_as_text(survey)
    if survey.gaps:
        _, first, middle, third, high = survey.gaps.quartiles
        facts["gaps"] = f"days: quartiles {first:.4g}, {middle:.4g}, {third:.4g}, longest {high:.4g}"
    lines += [f"  {name:<9}{value}" for name, value in facts.items()]
    lines += _label_lines(survey)
    lines += survey.account.lines()
    lines += [f"note: {note}" for note in survey.notes]
    lines += [f"issue {issue.kind}: {issue.what}; {issue.advice}" for issue in survey.issues]
    return "\n".join(lines if survey.issues else [*lines, "no issues found"])


def _label_lines(survey: Survey) -> list[str]:
    """Return a line for each label; none where there are so many that they may name patients."""
    shown = MAX_LABELS if len(survey.labels) <= MAX_CLASSES else 0
    lines = []
    for fact in survey.labels[:shown]:
        visits = "" if survey.unlabelled_visits is None else f", {number(fact.visits, 'visit')}"
        counts = f"{number(fact.sequences, 'sequence')} of {number(fact.patients, 'patient')}{visits}"
        lines.append(f"  label {fact.label}: {counts}")
    if len(survey.labels) > shown:
        more = len(survey.labels) - shown
        lines.append(f"  and {more} more labels" if shown else f"  {more} different labels")
    return lines


class _Examination:
    """Collects the facts of files and sequences, one sequence after the other."""

    def __init__(self, raw: Path, findings: tuple[str, ...]) -> None:
        self._raw, self._findings = raw, findings
        self.account = Account(raw)
        self._facts: dict[Path, FileFact] = {}
        self._splits: dict[Path, str | None] = {}
        self._index = ImageIndex()
        self._patients: dict[str, int] = {}
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._sequences: list[ImageSequence] = []  # without what could not be read
        self._first_files: list[str] = []  # of each
        self._gaps: list[float] = []
        self._thumbnails: list[Thumbnails] = []

    def add(self, sequence: ImageSequence, *, show: bool) -> None:
        """Read the files of one sequence, and make thumbnails if `show`."""
        length, start = len(sequence.frames), 0
        wanted = {0, (length - 1) // 2, length - 1} if show else set()
        read: dict[FrameFile, int] = {}  # with the index of its first frame
        images: list[bytes] = []
        for file in _files(sequence):
            try:
                images += self._read(file, sequence, {index - start for index in wanted})
                read[file] = start
            except UnusableFileError as error:
                error.patient = sequence.patient
                self.account(file.path, error)
            start += file.count
        if read:
            self._keep(sequence, read, tuple(images))

    def _keep(self, sequence: ImageSequence, read: Mapping[FrameFile, int], images: tuple[bytes, ...]) -> None:
        kept = with_files(sequence, read)
        first_file = self.relative(next(iter(read)).path)
        self._sequences.append(kept)
        self._first_files.append(first_file)
        if (times := sequence.times) is not None:
            self._gaps += [times[after] - times[before] for before, after in pairwise(read.values())]
        if images:
            names = None if kept.label is None else ", ".join(label_names(kept.label, self._findings)) or "none"
            label = None if names is None else printable(names)
            self._thumbnails.append(Thumbnails(label, first_file, len(kept.frames), images))

    def survey(self, recognised: str, layout: str, in_two_splits: int, without_images: int) -> Survey:
        """Return the result with its issues and notes."""
        near, more = self._index.near()
        sequences = self._sequences
        self.account.close(sequences, layout)
        facts = Facts(
            sequences,
            self._first_files,
            LabelFact.of_all(sequences, self._findings),
            tuple(self._fact(path, entry) for path, entry in self.account.entries.items()),
            tuple(map(self._duplicate, (*self._index.same(), *near))),
            GapFact.of(self._gaps) if self._gaps else None,
            {f"{width} x {height}": count for (height, width), count in self._sizes.most_common()},
            in_two_splits,
            without_images,
            more,
            layout,
            self.account.issues(),
            self.account.reasons(Outcome.PASSED).get(Reason.UNNAMED, 0),
        )
        own_labels = [label for sequence in sequences for label in sequence.labels or ()]
        return Survey(
            raw=printable(str(self._raw)),
            recognised=recognised,
            patients=len({sequence.patient for sequence in sequences}),
            sequences=len(sequences),
            frames=sum(self._sizes.values()),
            labels=facts.labels,
            unlabelled=sum(sequence.label is None for sequence in sequences),
            unlabelled_visits=own_labels.count(None) if any(s.labels is not None for s in sequences) else None,
            sizes=facts.sizes,
            lengths=lengths(sequences),
            gaps=facts.gaps,
            duplicates=facts.duplicates,
            files=facts.files,
            issues=issues(facts),
            notes=notes(facts),
            thumbnails=tuple(self._thumbnails),
            account=self.account,
        )

    def _fact(self, path: Path, entry: Entry) -> FileFact:
        return self._facts.get(path) or FileFact(
            self.relative(path), entry.outcome, self.relative(entry.message) or entry.reason
        )

    def relative(self, named: object) -> str:
        """Return a path or message on one printable line, without the path of the raw folder."""
        text = str(named)
        if self._raw.is_dir() and self._raw != Path():
            text = text.replace(f"{self._raw}/", "")
        return printable(text)

    def _read(self, file: FrameFile, sequence: ImageSequence, wanted: set[int]) -> list[bytes]:
        """Read one file, and return thumbnails of its frames `wanted`; record nothing if it fails."""
        sizes: list[tuple[int, int]] = []
        blank = 0
        thumbnails = []

        def frames() -> Iterator[Frame]:
            nonlocal blank
            for position, frame in enumerate(file.read()):
                height, width = frame.shape
                sizes.append((height, width))
                blank += bool(frame.min() == frame.max())
                if position in wanted:
                    thumbnails.append(thumbnail(frame))
                yield frame

        dicom = is_dicom(file.path)
        suspected = (suspicion(file.path) if dicom else None) or ""
        self._index.add(file, self._patients.setdefault(sequence.patient, len(self._patients)), frames())
        self._facts[file.path] = FileFact(
            self.relative(file.path), Outcome.READ, "", len(sizes), *sizes[0], blank, dicom, suspected
        )
        self._splits[file.path] = sequence.split
        self._sizes.update(sizes)
        return thumbnails

    def _duplicate(self, pair: Pair) -> DuplicateFact:
        first, second = pair.first.path, pair.second.path
        return DuplicateFact(
            self.relative(first),
            self.relative(second),
            pair.images,
            pair.same,
            pair.correlation,
            pair.one_patient,
            one_split=self._splits[first] == self._splits[second],
        )


def _files(sequence: ImageSequence) -> tuple[FrameFile, ...]:
    if not isinstance(sequence.frames, FrameFiles):
        raise TypeError("only sequences as their reader returned them can be examined")
    return sequence.frames.files


def _shown(labels: Sequence[Label | None]) -> list[int]:
    """Choose sequences to show: one of each label, and the rest evenly."""
    firsts = sorted({label: position for position, label in reversed(list(enumerate(labels)))}.values())[:SHOWN]
    others = sorted(set(range(len(labels))) - set(firsts))
    places = np.linspace(0, len(others) - 1, min(len(others), SHOWN - len(firsts))).astype(int).tolist()
    return sorted([*firsts, *(others[place] for place in places)])


def thumbnail(frame: Frame, side: int = THUMBNAIL) -> bytes:
    """Return a PNG of at most `side` pixels, from black for the darkest pixel to white for the brightest."""
    low, high = float(frame.min()), float(frame.max())
    shown = Image.fromarray(((frame - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8))
    shown.thumbnail((side, side))
    buffer = BytesIO()
    shown.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _patients_in_two_splits(table: Path) -> int:
    """Return the number of patients that a manifest puts into several splits, 0 without a manifest."""
    if not is_file(table):
        return 0
    rows = read_table(table, ("patient",), NO_IMAGE, ("split",))
    splits = {(row["patient"], row.get("split", "")) for _, row in rows}
    return sum(count > 1 for count in Counter(patient for patient, _ in splits).values())


def _lengths_as_text(survey: Survey) -> str:
    shortest, longest = min(survey.lengths), max(survey.lengths)
    if shortest == longest:
        return f"{shortest} each"
    middle = int(np.median(np.repeat(list(survey.lengths), list(survey.lengths.values()))))
    return f"{shortest} to {longest}, median {middle}; {survey.lengths.get(1, 0)} of one image only"
