"""A look at raw data before anything is encrypted: what is there, and what may be wrong with it.

All of it is for the secret zone: it names files and shows images. Patients are counted and never named.
"""

from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fedpp.errors import NoImageError, RawDataError
from fedpp.imaging.dicom.burned_in import suspicion
from fedpp.imaging.images import is_image
from fedpp.imaging.labels import MAX_CLASSES, said
from fedpp.imaging.readable import keeping
from fedpp.imaging.readers.dicom_folder import is_dicom
from fedpp.imaging.readers.folders import files_below
from fedpp.imaging.readers.layout import Choices, absent_patients, layout_of, read_sequences
from fedpp.imaging.readers.manifest_table import MANIFEST
from fedpp.imaging.sequence import Frame, FrameFile, FrameFiles, ImageSequence, Label
from fedpp.imaging.tables import is_file, table_rows
from fedpp.survey.duplicates import Gallery, Pair
from fedpp.survey.facts import (
    UNLISTED,
    DuplicateFact,
    FileFact,
    GapFact,
    LabelFact,
    Outcome,
    Survey,
    Thumbnails,
    lengths,
    printable,
)
from fedpp.survey.issues import findings, listed, notes, number

CHOICES = Choices()
SHOWN = 24  # sequences with thumbnails
THUMBNAIL = 96  # pixels of the longer side
MAX_LABELS = 12  # lines of a terminal


def look(raw: Path, layout: str = "auto", choices: Choices = CHOICES, *, progress: bool = False) -> Survey:
    """Read every image below `raw`, one at a time in memory, and return what was seen.

    Images that may be near duplicates are read twice. Raises `RawDataError` where the layout is not recognised or a
    table does not fit, but not for single files. The bar is shown on a terminal only.
    """
    scan = _Scan(raw, choices.findings)
    sequences: list[ImageSequence] = []
    torn = absent = 0
    try:
        layout = layout_of(raw, layout)
        sequences, recognised = read_sequences(raw, layout, choices, scan.refuse)
        absent = absent_patients(raw, layout, sequences)
    except RawDataError as error:
        torn = _patients_in_two_splits(raw / MANIFEST) if layout in {"auto", "manifest"} else 0
        if not torn and not scan.refused():
            raise
        recognised = f"nothing was read: {scan.relative(error)}"
    shown = set(_shown([sequence.label for sequence in sequences]))
    total = sum(len(_files(sequence)) for sequence in sequences)
    with tqdm(total=total, desc="looking", unit="file", disable=None if progress else True) as bar:
        for position, sequence in enumerate(sequences):
            scan.look(sequence, show=position in shown)
            bar.update(len(_files(sequence)))
    scan.pass_over_the_rest()
    return scan.survey(printable(recognised), torn, absent)


def summary(survey: Survey) -> str:
    """Return what was seen as lines for a terminal, which end up in logs: files that were refused are named."""
    lines = [survey.recognised]
    read, refused, passed = (survey.count(outcome) for outcome in ("read", "refused", "passed over"))
    facts = {"files": f"{read} read, {refused} refused, {passed} passed over"}
    facts["images"] = (
        f"{survey.frames} in {number(survey.sequences, 'sequence')} of {number(survey.patients, 'patient')}"
    )
    if survey.sizes:
        facts["sizes"] = listed([f"{size} ({count})" for size, count in survey.sizes.items()])
    if survey.lengths:
        facts["lengths"] = _lengths_in_words(survey)
    if survey.gaps:
        _, first, middle, third, high = survey.gaps.quartiles
        facts["gaps"] = f"days: quartiles {first:.4g}, {middle:.4g}, {third:.4g}, longest {high:.4g}"
    lines += [f"  {name:<9}{value}" for name, value in facts.items()]
    shown = MAX_LABELS if len(survey.labels) <= MAX_CLASSES else 0  # so many are no labels: whose are they?
    for fact in survey.labels[:shown]:
        visits = "" if survey.unlabelled_visits is None else f", {number(fact.visits, 'visit')}"
        counts = f"{number(fact.sequences, 'sequence')} of {number(fact.patients, 'patient')}{visits}"
        lines.append(f"  label {fact.label}: {counts}")
    if len(survey.labels) > shown:
        lines.append(
            f"  {'and ' if shown else ''}{len(survey.labels) - shown} {'more' if shown else 'different'} labels"
        )
    lines += [f"  refused: {file.reason}" for file in survey.files if file.outcome == "refused"]
    lines += [f"note: {note}" for note in survey.notes]
    lines += [f"finding {finding.kind}: {finding.what}; {finding.advice}" for finding in survey.findings]
    return "\n".join([*lines, *([] if survey.findings else ["nothing was found that must be mended"])])


class _Scan:
    """What has been seen so far."""

    def __init__(self, raw: Path, findings: tuple[str, ...]) -> None:
        self._raw, self._findings = raw, findings
        self._facts: dict[Path, FileFact] = {}
        self._splits: dict[Path, str | None] = {}
        self._gallery = Gallery()
        self._patients: dict[str, int] = {}
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._seen: list[ImageSequence] = []  # without what could not be read
        self._heads: list[str] = []  # the first file of each
        self._gaps: list[float] = []
        self._thumbnails: list[Thumbnails] = []

    def refused(self) -> bool:
        """Tell whether a file could not be read."""
        return any(fact.outcome == "refused" for fact in self._facts.values())

    def refuse(self, file: Path, error: RawDataError) -> None:
        """Note a file that cannot be used, and go on."""
        outcome: Outcome = "passed over" if isinstance(error, NoImageError) else "refused"
        self._facts[file] = FileFact(self.relative(file), outcome, self.relative(error))

    def look(self, sequence: ImageSequence, *, show: bool) -> None:
        """Read the files of one sequence."""
        length, start = len(sequence.frames), 0
        wanted = {0, (length - 1) // 2, length - 1} if show else set()
        read: list[FrameFile] = []
        mask: list[bool] = []  # of the frames that could be read
        firsts: list[int] = []  # of each file that could be read
        images: list[bytes] = []
        for file in _files(sequence):
            try:
                images += self._looked(file, sequence, {index - start for index in wanted})
            except RawDataError as error:
                self.refuse(file.path, error)
                mask += [False] * file.count
            else:
                read.append(file)
                firsts.append(start)
                mask += [True] * file.count
            start += file.count
        if not read:
            return
        seen = keeping(sequence, read, mask)
        self._seen.append(seen)
        self._heads.append(self.relative(read[0].path))
        if sequence.times is not None:
            self._gaps += [sequence.times[after] - sequence.times[before] for before, after in pairwise(firsts)]
        if images:
            label = None if seen.label is None else printable(", ".join(said(seen.label, self._findings)) or "none")
            self._thumbnails.append(Thumbnails(label, self._heads[-1], sum(mask), tuple(images)))

    def pass_over_the_rest(self) -> None:
        """Note the files of the folder that are in no sequence."""
        for file in files_below(self._raw, self._refuse_the_rest) if self._raw.is_dir() else ():
            if file in self._facts:
                continue
            try:
                reason = UNLISTED if is_image(file) or is_dicom(file) else "no image, by its name"
            except RawDataError as error:
                self.refuse(file, error)
            else:
                self._facts[file] = FileFact(self.relative(file), "passed over", reason)

    def _refuse_the_rest(self, what: Path, error: RawDataError) -> None:
        """Note what cannot be looked at, but for a link through which a table names files that were read."""
        if not any(what in path.parents for path in self._facts):
            self.refuse(what, error)

    def survey(self, recognised: str, torn: int, absent: int) -> Survey:
        """Return all of it, with what may be wrong."""
        near, more = self._gallery.near()
        duplicates = tuple(map(self._duplicate, (*self._gallery.same(), *near)))
        labels = LabelFact.of_all(self._seen, self._findings)
        files = tuple(self._facts[path] for path in sorted(self._facts))
        gaps = GapFact.of(self._gaps) if self._gaps else None
        own = [label for sequence in self._seen for label in sequence.labels or ()]
        return Survey(
            raw=printable(str(self._raw)),
            recognised=recognised,
            patients=len({sequence.patient for sequence in self._seen}),
            sequences=len(self._seen),
            frames=sum(self._sizes.values()),
            labels=labels,
            unlabelled=sum(sequence.label is None for sequence in self._seen),
            unlabelled_visits=own.count(None) if any(s.labels is not None for s in self._seen) else None,
            sizes={f"{width} x {height}": count for (height, width), count in self._sizes.most_common()},
            lengths=lengths(self._seen),
            gaps=gaps,
            duplicates=duplicates,
            files=files,
            findings=findings(self._seen, self._heads, labels, files, duplicates, gaps, torn, absent),
            notes=notes(self._seen, labels, files, duplicates, gaps, len(self._sizes), more=more),
            thumbnails=tuple(self._thumbnails),
        )

    def relative(self, named: object) -> str:
        """Return a path or message for people, on one line and without the raw folder's own path."""
        text = str(named)
        if self._raw.is_dir() and self._raw != Path():
            text = text.replace(f"{self._raw}/", "")
        return printable(text)

    def _looked(self, file: FrameFile, sequence: ImageSequence, wanted: set[int]) -> list[bytes]:
        """Look at one file, and return thumbnails of its frames of these numbers; note nothing if it fails."""
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
                    thumbnails.append(_thumbnail(frame))
                yield frame

        dicom = is_dicom(file.path)
        suspected = (suspicion(file.path) if dicom else None) or ""
        self._gallery.add(file, self._patients.setdefault(sequence.patient, len(self._patients)), frames())
        self._facts[file.path] = FileFact(
            self.relative(file.path), "read", "", len(sizes), *sizes[0], blank, dicom, suspected
        )
        self._splits[file.path] = sequence.split
        self._sizes.update(sizes)
        return thumbnails

    def _duplicate(self, pair: Pair) -> DuplicateFact:
        first, second = pair.first.path, pair.second.path
        one_split = self._splits[first] == self._splits[second]
        return DuplicateFact(
            self.relative(first),
            self.relative(second),
            pair.images,
            pair.same,
            pair.correlation,
            pair.one_patient,
            one_split,
        )


def _files(sequence: ImageSequence) -> tuple[FrameFile, ...]:
    if not isinstance(sequence.frames, FrameFiles):
        raise TypeError("only sequences as their reader gave them can be looked at")
    return sequence.frames.files


def _shown(labels: list[Label | None]) -> list[int]:
    """Choose sequences to show: one of each label, and the rest evenly."""
    firsts = sorted({label: position for position, label in reversed(list(enumerate(labels)))}.values())[:SHOWN]
    others = sorted(set(range(len(labels))) - set(firsts))
    places = np.linspace(0, len(others) - 1, min(len(others), SHOWN - len(firsts))).astype(int).tolist()
    return sorted([*firsts, *(others[place] for place in places)])


def _thumbnail(frame: Frame) -> bytes:
    """Return a PNG, from black for the darkest pixel to white for the brightest."""
    low, high = float(frame.min()), float(frame.max())
    shown = Image.fromarray(((frame - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8))
    shown.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = BytesIO()
    shown.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _patients_in_two_splits(table: Path) -> int:
    """Return how many patients a manifest puts into more than one split, 0 without one; its reader refuses it then."""
    if not is_file(table):
        return 0
    rows = table_rows(table, ("patient",))
    splits = {(row["patient"], row.get("split", "")) for _, row in rows}
    return sum(count > 1 for count in Counter(patient for patient, _ in splits).values())


def _lengths_in_words(survey: Survey) -> str:
    shortest, longest = min(survey.lengths), max(survey.lengths)
    if shortest == longest:
        return f"{shortest} each"
    middle = int(np.median(np.repeat(list(survey.lengths), list(survey.lengths.values()))))
    return f"{shortest} to {longest}, median {middle}; {survey.lengths.get(1, 0)} of one image only"
