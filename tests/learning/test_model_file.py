"""A model file is read within its own size: what its headers announce is not allocated before it is there."""

import tracemalloc
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from conftest import TINY

from fedpp.errors import ModelError
from fedpp.learning.model_file import EncryptedModel


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the file of a tiny model."""
    rows = {spec.name: np.zeros((*spec.shape, 2)) for spec in TINY.weights()}
    EncryptedModel(TINY, "e" * 64, ("no", "yes"), rows).save(tmp_path / "model.npz")
    return tmp_path / "model.npz"


def entry(shape: tuple[int, ...], values: np.ndarray) -> bytes:
    """Return an array's entry whose header announces another shape."""
    content = BytesIO()
    header = {"descr": values.dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, header)
    return content.getvalue() + values.tobytes()


def replaced(file: Path, name: str, content: bytes) -> None:
    """Replace one entry of a model file."""
    with ZipFile(file) as archive:
        entries = {of.filename: archive.read(of) for of in archive.infolist()}
    with ZipFile(file, "w") as archive:
        for of, old in entries.items():
            archive.writestr(of, content if of == name else old)


@pytest.mark.parametrize("shape", [(2**29,), (2**40, 2**20)])
def test_a_header_of_gigabytes_allocates_nothing(model: Path, shape: tuple[int, ...]):
    """An array of 8 bytes that is announced as 4 GB or more makes the file no model, and takes no memory."""
    replaced(model, f"{TINY.weights()[0].name}.npy", entry(shape, np.zeros(1)))
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="is not a model of fedpp"):
            EncryptedModel.load(model)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_compressed_file_is_no_model(model: Path):
    """Models are written uncompressed: a small file that unpacks to gigabytes is refused unread."""
    with ZipFile(model) as archive:
        entries = {of.filename: archive.read(of) for of in archive.infolist()}
    with ZipFile(model, "w", ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match="is not a model of fedpp"):
        EncryptedModel.load(model)


def test_a_folder_of_a_training_is_named(model: Path):
    """The error for a training's folder names the model file in it."""
    with pytest.raises(ModelError, match=f"Is a directory: name {model}$"):
        EncryptedModel.load(model.parent)
