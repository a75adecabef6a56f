"""Account of raw data: what became of each file below a folder, so that nothing is passed over in silence.

Counts and reasons may be shown anywhere. Names of files and patients are for the secret zone, as `write` writes them.
"""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedpp.errors import ConfigError, NoImageError, RawDataError, UnusableFileError
from fedpp.files import create_exclusively
from fedpp.imaging.images import begins_as_image
from fedpp.imaging.readers.dicom_folder import is_dicom
from fedpp.imaging.readers.file_types import is_named_as_image, reason_unread
from fedpp.imaging.readers.folders import everything_below, is_hidden, leads_inside
from fedpp.imaging.readers.layout import Choices, layout_of, read_sequences
from fedpp.imaging.readers.own_tables import BY_TABLE, own_tables
from fedpp.imaging.readers.patient_of_file import patient_finder
from fedpp.imaging.reasons import UNREADABLE, Doubt, Reason
from fedpp.imaging.sequence import FrameFiles, ImageSequence
from fedpp.texts import counted, look_alike, printable

CHOICES = Choices()
COLUMNS = ("outcome", "reason", "path", "patient", "message")
DOUBTS = {"two-issuers": Doubt.ISSUERS, "two-birth-dates": Doubt.BIRTH_DATES, "guessed-order": Doubt.ORDER}

_NO_IMAGE = frozenset((Reason.HIDDEN, Reason.NO_FILE, Reason.UNREAD_TABLE, Reason.ARCHIVE, Reason.OTHER))


class Outcome(StrEnum):
    """What became of a file."""

    READ = "read"
    TABLE = "read as a table"
    LOST = "lost"
    PASSED = "passed over"


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one file or folder; all but outcome and reason are for the secret zone."""

    outcome: Outcome
    reason: str = ""
    message: str = ""
    patient: str = ""


class Account:
    """Outcome of each file below a folder, and the handler of the files that a reader cannot use.

    A file that cannot be used is lost, unless its error says that it holds no image of its own.
    """

    def __init__(self, raw: Path) -> None:
        """Start without entries; `raw` is the folder that is read, or one file."""
        self._raw = raw
        self._entries: dict[Path, Entry] = {}
        self._doubts: Counter[Doubt] = Counter()
        self._issues: Counter[str] = Counter()
        self.missing: set[str] = set()  # patients whom a table of labels names, and of whom nothing was read

    def __call__(self, path: Path, error: UnusableFileError) -> None:
        """Record what a reader cannot use; the first error of a path counts, unless only a later one loses it."""
        outcome = Outcome.PASSED if isinstance(error, NoImageError) else Outcome.LOST
        known = self._entries.get(path)
        if known is None or (known.outcome != Outcome.LOST and outcome == Outcome.LOST):
            patient = error.patient or (known.patient if known else "")
            self._entries[path] = Entry(outcome, error.reason, str(error), patient)

    @property
    def entries(self) -> dict[Path, Entry]:
        """Return what became of each path, in their order."""
        return dict(sorted(self._entries.items()))

    def close(self, sequences: Sequence[ImageSequence], layout: str) -> None:
        """Record the files of the sequences as read, and then every other file below the folder.

        Without any sequence, the images are those of data that were refused.
        """
        self._issues["alike-patients"] = _alike({sequence.patient for sequence in sequences})
        for sequence in sequences:
            self._doubts.update(set(sequence.doubts))
            for path in _files(sequence):
                self._entries.setdefault(path, Entry(Outcome.READ, patient=sequence.patient))
        known = {path: entry.patient for path, entry in self._entries.items() if entry.patient}
        patient_of = patient_finder(self._raw, layout, known)
        for path, entry in self._entries.items():
            if not entry.patient:
                self._entries[path] = replace(entry, patient=patient_of(path))
        folders = {path.parent for path, entry in self._entries.items() if entry.outcome == Outcome.READ}
        if not self._raw.is_dir():
            return
        tables = {path: Entry(Outcome.TABLE) for path in own_tables(self._raw, layout)}
        self._entries = tables | self._entries
        for path in everything_below(self._raw, self):
            if path not in self._entries:
                entry = self._other(path, layout, folders)
                patient = "" if entry.reason in _NO_IMAGE else patient_of(path)
                self._entries[path] = replace(entry, patient=patient)
        for folder in self._without_image() if layout not in BY_TABLE else ():
            message = f"{folder} holds no image: is it a patient's?"
            self._entries[folder] = Entry(Outcome.PASSED, Reason.EMPTY, message, patient_of(folder))

    def leave_out(self, before: Iterable[ImageSequence], after: Iterable[ImageSequence]) -> None:
        """Record the files that only the sequences before a choice of the user had."""
        kept = {path for sequence in after for path in _files(sequence)}
        for sequence in before:
            for path in _files(sequence):
                if path not in kept and self._entries[path].outcome == Outcome.READ:
                    message = f"{path} is in no sequence that the options choose"
                    self._entries[path] = Entry(Outcome.PASSED, Reason.LEFT_OUT, message, sequence.patient)

    def count(self, outcome: Outcome) -> int:
        """Return the number of files of an outcome."""
        return sum(entry.outcome == outcome for entry in self._entries.values())

    def reasons(self, outcome: Outcome) -> dict[str, int]:
        """Return the number of files of an outcome by reason, the most frequent first."""
        found = Counter(entry.reason for entry in self._entries.values() if entry.outcome == outcome)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def doubts(self) -> dict[str, int]:
        """Return the number of sequences of each doubt that is no issue."""
        others = (doubt for doubt in Doubt if doubt not in DOUBTS.values())
        return {str(doubt): self._doubts[doubt] for doubt in others if self._doubts[doubt]}

    def add_issues(self, counts: Mapping[str, int]) -> None:
        """Add what was found otherwise, by kind of issue."""
        self._issues.update(counts)

    def issues(self) -> dict[str, int]:
        """Return the number of sequences with a doubt, and of what else was found, by kind of issue."""
        counts = {**self._issues, **{kind: self._doubts[doubt] for kind, doubt in DOUBTS.items()}}
        return {kind: count for kind, count in counts.items() if count}

    def counts(self) -> dict[str, Any]:
        """Return the account as JSON values, without the name of any file or patient."""
        return {
            "read": self.count(Outcome.READ),
            "tables": self.count(Outcome.TABLE),
            "lost": self.reasons(Outcome.LOST),
            "passed_over": self.reasons(Outcome.PASSED),
            "doubts": self.doubts(),
            "issues": self.issues(),
        }

    def lines(self) -> list[str]:
        """Return the account as lines for a terminal, without the name of any file or patient."""
        read, lost, passed = (self.count(outcome) for outcome in (Outcome.READ, Outcome.LOST, Outcome.PASSED))
        tables = self.count(Outcome.TABLE)
        read_too = f" and {counted(tables, 'table')}" if tables else ""
        parts = {"lost": self.reasons(Outcome.LOST), "passed over": self.reasons(Outcome.PASSED)}
        parts["sequences"] = self.doubts()
        return [
            f"account: {counted(read, 'file')}{read_too} read, {lost} lost, {passed} passed over",
            *[f"  {name}: {_listed(reasons)}" for name, reasons in parts.items() if reasons],
        ]

    def require(self, most: int, *, skip_unreadable: bool) -> None:
        """Raise `RawDataError` if more than `most` files are lost.

        With `skip_unreadable`, those whose content cannot be read are not counted.
        """
        lost = self.reasons(Outcome.LOST)
        counts = {reason: n for reason, n in lost.items() if not (skip_unreadable and reason in UNREADABLE)}
        if (total := sum(counts.values())) > most:
            skipping = "--skip-unreadable or " if counts.keys() <= UNREADABLE else ""
            raise RawDataError(
                f"{counted(total, 'file')} would be lost ({_listed(counts)}), --max-lost is {most}: --account "
                f"FILE names them; restore or remove them, or leave them out by {skipping}--max-lost {total}"
            )

    def write(self, path: Path) -> None:
        """Write a line for each file, and each missing patient, for the secret zone: mode 0600, and never over a file.

        Raises `ConfigError` for a path that exists.
        """
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for file, entry in self.entries.items():
            named = (self._relative(file), entry.patient, entry.message)
            table.writerow((entry.outcome, entry.reason, *map(_cell, named)))
        for patient in sorted(self.missing):
            table.writerow(("no file", "patient of a table, of whom nothing was read", "", _cell(patient), ""))
        try:
            create_exclusively(path, text.getvalue().encode())
        except OSError as error:
            require_new(path)
            raise ConfigError(f"cannot write {path}: {error.strerror}: choose another --account") from None

    def _without_image(self) -> list[Path]:
        """Return the folders in the folder that is read in which no file is an image."""
        images = [path for path, entry in self._entries.items() if entry.reason not in _NO_IMAGE]
        full = {above for path in images for above in (path, *path.parents)}
        folders = [path for path in self._raw.iterdir() if path.is_dir() and not path.is_symlink()]
        return [path for path in folders if path not in full and not is_hidden(path.name)]

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._raw).as_posix() if self._raw in path.parents else str(path)

    def _other(self, path: Path, layout: str, folders: set[Path]) -> Entry:
        """Return what became of a file that no sequence uses, and no reader refused."""
        try:
            outcome, reason = self._kind(path, layout, folders)
        except UnusableFileError as error:
            return Entry(Outcome.LOST, error.reason, str(error))
        return Entry(outcome, reason, f"{path} was not used: {reason}" if reason else "")

    def _kind(self, path: Path, layout: str, folders: set[Path]) -> tuple[Outcome, str]:
        if path.is_symlink() and (path.is_dir() or not path.exists()):
            return self._link(path, layout, folders)
        if any(map(is_hidden, path.relative_to(self._raw).parts)):
            return Outcome.PASSED, Reason.HIDDEN
        if not path.is_file():
            return Outcome.PASSED, Reason.NO_FILE
        if is_named_as_image(path.name) or is_dicom(path) or begins_as_image(path):
            # in a folder that a table names, all images are meant
            unnamed = layout in BY_TABLE and (layout != "frames" or folders.isdisjoint(path.parents))
            lost = Reason.OTHER_FORM if folders else Reason.REFUSED
            return (Outcome.PASSED, Reason.UNNAMED) if unnamed else (Outcome.LOST, lost)
        return Outcome.PASSED, reason_unread(path)

    def _link(self, path: Path, layout: str, folders: set[Path]) -> tuple[Outcome, str]:
        if not path.exists():
            return Outcome.LOST, Reason.DANGLING
        used = any(path in (folder, *folder.parents) for folder in folders)
        if used or layout in BY_TABLE or leads_inside(path, self._raw):
            return Outcome.PASSED, Reason.LINK_INSIDE
        return Outcome.LOST, Reason.LINK


def require_new(path: Path | None) -> None:
    """Raise `ConfigError` before work starts if the file of an account exists."""
    if path is not None and os.path.lexists(path):
        raise ConfigError(f"{path} exists: choose another name for the account")


def read_accounted(raw: Path, layout: str = "auto", choices: Choices = CHOICES) -> tuple[list[ImageSequence], str]:
    """Return the sequences below `raw`, and a line that describes them and counts what was passed over.

    Raises `RawDataError` if a file is lost.
    """
    account = Account(raw)
    layout = layout_of(raw, layout)
    sequences, recognised = read_sequences(raw, layout, choices, account)
    account.close(sequences, layout)
    account.require(0, skip_unreadable=False)
    passed = _listed(account.reasons(Outcome.PASSED))
    return sequences, f"{recognised}; passed over: {passed}" if passed else recognised


def _files(sequence: ImageSequence) -> list[Path]:
    return [file.path for file in sequence.frames.files] if isinstance(sequence.frames, FrameFiles) else []


def _alike(patients: Iterable[str]) -> int:
    """Return the number of patients whose names differ from another's in case, blanks or Unicode form only."""
    forms = Counter(map(look_alike, patients))
    return sum(count for count in forms.values() if count > 1)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def _cell(text: str) -> str:
    """Return a printable cell that no spreadsheet takes for a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown
