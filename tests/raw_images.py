"""Tiny raw images for the tests of readers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedpp.errors import FedppError, RawDataError


def grey(pixel: int) -> Image.Image:
    """Return an image of 2 x 3 pixels of this value."""
    return Image.fromarray(np.full((2, 3), pixel, np.uint8))


def write_images(folder: Path, *names: str) -> None:
    """Write one image a name; the pixels of the first are 1, of the second 2, and so on."""
    for position, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        grey(position + 1).save(folder / name)


def values(frames: Sequence[np.ndarray]) -> list[float]:
    """Return the first pixel of each frame."""
    return [float(frame[0, 0]) for frame in frames]


@contextmanager
def refused_in_one_line(
    message: str, *, hidden: str, besides: str = "", error: type[FedppError] = RawDataError
) -> Iterator[None]:
    """Check that an error is one line that matches, and does not contain `hidden`, except within the text `besides`."""
    with pytest.raises(error, match=message) as refused:
        yield
    assert "\n" not in str(refused.value)
    assert hidden not in (str(refused.value).replace(besides, "") if besides else str(refused.value))
