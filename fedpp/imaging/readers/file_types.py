"""Types of files by their names: images, tables, archives, and what systems make for themselves."""

from pathlib import Path

from fedpp.imaging.images import SUFFIXES, UNREAD_SUFFIXES
from fedpp.imaging.readers.dicom_folder import DICOM_SUFFIXES
from fedpp.imaging.reasons import Reason

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", *_COMPRESSED)
_TEXTS = (".csv", ".tsv")
_TABLES = (*_TEXTS, *(f"{text}.gz" for text in _TEXTS), ".xls", ".xlsx", ".ods")
_STATISTICS = (".parquet", ".sav", ".dta", ".rdata", ".rds")  # tables of statistics programs


def is_named_as_image(name: str) -> bool:
    """Return whether a name is that of an image, perhaps a compressed one."""
    name = name.lower()
    plain = next((name.removesuffix(suffix) for suffix in _COMPRESSED if name.endswith(suffix)), name)
    return plain.endswith((*SUFFIXES, *UNREAD_SUFFIXES, *DICOM_SUFFIXES))


def is_named_as_table(name: str) -> bool:
    """Return whether a name is that of a table, of whatever program."""
    return name.lower().endswith((*_TABLES, *_STATISTICS))


def reason_unread(file: Path) -> Reason:
    """Return why a file that is no image is passed over."""
    if is_named_as_table(file.name):
        return Reason.UNREAD_TABLE
    return Reason.ARCHIVE if file.name.lower().endswith(_ARCHIVES) else Reason.OTHER
