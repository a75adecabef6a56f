"""Tiny raw images for the tests of readers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedpp.errors import RawDataError
from fedpp.imaging.readers.chexpert import COLUMNS
from fedpp.imaging.readers.studies import FINDINGS


def grey(pixel: int) -> Image.Image:
    """Return an image of 2 x 3 pixels of this value."""
    return Image.fromarray(np.full((2, 3), pixel, np.uint8))


def write_images(folder: Path, *names: str) -> None:
    """Write one image a name; the pixels of the first are 1, of the second 2, and so on to 255."""
    for position, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        grey(position % 255 + 1).save(folder / name)


def write_table(root: Path, layout: str, *rows: tuple[str, str]) -> None:
    """Write the table of a layout, if it has one, of files and their patients; of frames the file's folder is named."""
    tables = {
        "frames": ("index.csv", "sequence,patient,label", "{folder},{patient},a"),
        "manifest": ("manifest.csv", "path,patient,time,label", "{file},{patient},1,a"),
        "chexpert": ("train.csv", ",".join(COLUMNS), "{file},Frontal" + len(FINDINGS) * ","),
    }
    if layout in tables:
        name, header, row = tables[layout]
        cells = [{"file": file, "folder": file.partition("/")[0], "patient": patient} for file, patient in rows]
        lines = dict.fromkeys(row.format(**of_row) for of_row in cells)
        (root / name).write_text("\n".join((header, *lines)))


def values(frames: Sequence[np.ndarray]) -> list[float]:
    """Return the first pixel of each frame."""
    return [float(frame[0, 0]) for frame in frames]


@contextmanager
def refused_in_one_line(message: str, *, hidden: str, besides: str = "") -> Iterator[None]:
    """Check that a `RawDataError` is one line that matches, without `hidden` outside of the text `besides`."""
    with pytest.raises(RawDataError, match=message) as refused:
        yield
    assert "\n" not in str(refused.value)
    assert hidden not in (str(refused.value).replace(besides, "") if besides else str(refused.value))
