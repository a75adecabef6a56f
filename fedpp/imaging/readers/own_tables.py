"""Tables that each layout reads, to tell them from other tables beside the images."""

from pathlib import Path

from fedpp.imaging.readers import mimic_cxr, nih_chestxray14
from fedpp.imaging.readers.frame_folders import INDEX
from fedpp.imaging.readers.manifest_table import MANIFEST
from fedpp.imaging.readers.patient_labels import LABELS
from fedpp.imaging.readers.studies import FINDINGS, tables_in
from fedpp.imaging.tables import header

_NAMES = {"frames": {INDEX}, "manifest": {MANIFEST}, "dicom": {LABELS}, "images": {LABELS}}
_NAMES["nih-chestxray14"] = set(nih_chestxray14.LISTS)
_COLUMNS = {  # of other names' tables: those looked for, and how many of them a table has that is read
    "chexpert": (FINDINGS, 1),
    "mimic-cxr": (mimic_cxr.STUDY[:1], 1),
    "nih-chestxray14": (nih_chestxray14.COLUMNS, len(nih_chestxray14.COLUMNS)),
}
# Layouts whose tables name the images; in others, every image below the folder is meant.
BY_TABLE = frozenset(("frames", "manifest", *_COLUMNS))


def own_tables(root: Path, layout: str) -> set[Path]:
    """Return the tables in the folder `root` that a layout reads."""
    named = {file for name in _NAMES.get(layout, ()) if (file := root / name).is_file()}
    columns, most = _COLUMNS.get(layout, ((), 1))
    return named | {file for file in tables_in(root) if len(header(file, columns)) >= most}
