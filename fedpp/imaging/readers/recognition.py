"""Recognition of layouts: by tables first, then by the names of files and folders; what only resembles one is refused.

Folders are patients only where nothing else is likely: a folder `train` or `benign` that counts as one patient would
void the split by patient and drop all labels.
"""

from collections.abc import Callable
from pathlib import Path

from fedpp.errors import RawDataError
from fedpp.imaging.images import is_image
from fedpp.imaging.readers.breakhis import is_breakhis
from fedpp.imaging.readers.chexpert import is_chexpert, named_as_chexpert
from fedpp.imaging.readers.class_folders import has_class_levels, require_patients
from fedpp.imaging.readers.dicom_folder import is_dicom
from fedpp.imaging.readers.file_types import is_named_as_table
from fedpp.imaging.readers.folder_names import resemblance
from fedpp.imaging.readers.folders import files_below
from fedpp.imaging.readers.frame_folders import COLUMNS, INDEX
from fedpp.imaging.readers.manifest_table import MANIFEST
from fedpp.imaging.readers.mimic_cxr import is_mimic_cxr
from fedpp.imaging.readers.nih_chestxray14 import is_nih_chestxray14, named_as_nih
from fedpp.imaging.readers.patient_labels import LABELS
from fedpp.imaging.tables import header, is_file


def recognised(raw: Path) -> str:
    """Return the layout of a folder; raise `RawDataError` if none is recognised, or it only looks like one."""
    return _Folder(raw).layout()


class _Folder:
    """A folder whose files are listed once, when a layout needs their names."""

    def __init__(self, raw: Path) -> None:
        self._raw = raw
        self._closed: list[RawDataError] = []  # what cannot be opened may be of any layout; its reader reports it again
        self._files: list[Path] | None = None

    @property
    def files(self) -> list[Path]:
        if self._files is None:
            self._files = files_below(self._raw, lambda _, error: self._closed.append(error))
        return self._files

    @property
    def images(self) -> list[Path]:
        return [file for file in self.files if is_image(file)]

    def layout(self) -> str:
        raw = self._raw
        recognisers: list[tuple[str, Callable[[], bool]]] = [
            ("frames", lambda: COLUMNS[0] in header(raw / INDEX, COLUMNS)),  # other tables may have that name
            ("manifest", (raw / MANIFEST).is_file),
            ("chexpert", lambda: is_chexpert(raw)),
            ("nih-chestxray14", lambda: is_nih_chestxray14(raw)),
            ("mimic-cxr", lambda: is_mimic_cxr(raw, self.images)),
            ("dicom", lambda: any(map(self._is_dicom, self.files))),
            ("breakhis", lambda: is_breakhis(self.files)),
            ("frames", (raw / INDEX).exists),  # its reader reports what the table lacks
            ("chexpert", self._named_as_chexpert),
            ("class-folders", self._is_class_folders),
            ("images", self._is_image_folders),
        ]
        for layout, recognises in recognisers:
            if recognises():
                return layout
        if self._closed:
            raise self._closed[0]
        found = "has no" if any(raw.iterdir()) else "is empty: it has no"
        raise RawDataError(f"{raw} {found} {INDEX}, {MANIFEST}, table of CheXpert, DICOM file or image")

    def _is_dicom(self, file: Path) -> bool:
        try:
            return is_dicom(file)
        except RawDataError as error:
            self._closed.append(error)
            return False

    def _named_as_chexpert(self) -> bool:
        """Tell whether images are named as CheXpert's, whose reader reports what the tables lack."""
        if not self.images:
            return False
        _refuse_tables_below(self._raw)
        return named_as_chexpert(self.images)

    def _is_class_folders(self) -> bool:
        """Tell whether folders are classes; raise `RawDataError` where nothing tells the patients."""
        if is_file(self._raw / LABELS) or not has_class_levels(self._raw, self.images):
            return False
        require_patients(self._raw, self.images)
        return True

    def _is_image_folders(self) -> bool:
        """Tell whether there are images; raise `RawDataError` where the folders are hardly patients."""
        raw, images = self._raw, self.images
        if named_as_nih(images):
            raise RawDataError(
                f"{raw} looks like NIH ChestX-ray14 by the names of its images, but has no table that can be read with "
                "its columns: restore Data_Entry_2017.csv, or say --layout images if each folder is a patient"
            )
        if is_file(raw / LABELS):
            return bool(images)
        like = resemblance(raw, images)
        if like:
            raise RawDataError(
                f"{raw} looks like {like}: say --layout class-folders if folders are classes, --layout images if each "
                "is a patient, or write a manifest.csv"
            )
        unread = [file.name for file in self.files if file.parent == raw and is_named_as_table(file.name)]
        if images and unread:
            raise RawDataError(
                f"{raw} has {', '.join(unread)}, of which no layout knows the columns: make it labels.csv or "
                "manifest.csv, or say --layout images if there is nothing in it"
            )
        return bool(images)


def _refuse_tables_below(raw: Path) -> None:
    """Raise `RawDataError` if the folders below have layouts of their own, and so are no patients."""
    for folder in sorted(path for path in raw.iterdir() if path.is_dir()):
        if table := _table_of_its_own(folder):  # the folder's name may be a patient's
            raise RawDataError(f"{raw} is one folder too high: a folder in it has {table} of its own, name that folder")


def _table_of_its_own(folder: Path) -> str | None:
    """Return the table by which a folder has a layout, or None."""
    if COLUMNS[0] in header(folder / INDEX, COLUMNS):
        return INDEX
    if is_file(folder / MANIFEST):
        return MANIFEST
    return "a table of findings" if is_chexpert(folder) or is_nih_chestxray14(folder) else None
