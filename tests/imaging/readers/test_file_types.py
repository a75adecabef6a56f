"""Types of files by their names: recognition and the account use one list."""

from pathlib import Path

import pytest
from raw_images import write_images

from fedpp.errors import RawDataError
from fedpp.imaging.account import read_accounted
from fedpp.imaging.readers.file_types import is_named_as_image
from fedpp.imaging.readers.layout import layout_of
from fedpp.imaging.reasons import Reason

TABLES = ["a.csv", "A.TSV", "a.csv.gz", "a.xlsx", "a.ods", "a.parquet", "a.sav", "a.rds", "a.dta"]
OTHERS = {"a.tar.gz": Reason.ARCHIVE, "notes.gz": Reason.ARCHIVE, "a.zip": Reason.ARCHIVE, "a.txt": Reason.OTHER}
IMAGES = ["a.nii.gz", "a.dcm", "a.PNG.gz", "a.heic"]


@pytest.mark.parametrize("name", [*TABLES, *OTHERS, *IMAGES])
def test_a_file_beside_folders_of_patients_is_of_one_type(tmp_path: Path, name: str) -> None:
    """A table may hold the labels and is refused, an archive is passed over, an image is lost."""
    write_images(tmp_path, "p/1.png")
    (tmp_path / name).write_bytes(b"anything")
    assert is_named_as_image(name) == (name in IMAGES)
    if name in TABLES:
        with pytest.raises(RawDataError, match="of which no layout knows the columns"):
            layout_of(tmp_path)
    elif name in OTHERS:
        assert read_accounted(tmp_path, "images")[1].endswith(f"; passed over: 1 {OTHERS[name]}")
    else:
        with pytest.raises(RawDataError, match="1 file would be lost"):
            read_accounted(tmp_path, "images")
