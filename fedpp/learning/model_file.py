"""Model file: a trained encrypted network with its specification, key domain and weights as rows.

An uncompressed `.npz` without pickles: one array a weight, the texts `network` and `domain`, and `classes`, the
names of the logits in order.
"""

import zlib
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from fedpp.config.hyperparameters import Dtype
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import DomainMismatchError, ModelError
from fedpp.files import replace


@dataclass(frozen=True)
class EncryptedModel:
    """Trained network: rows `[*shape, n]` of each weight, under the key domain of this fingerprint."""

    network: ModelSpec
    domain: str
    classes: tuple[str, ...]
    rows: dict[str, NDArray[np.floating]]

    @property
    def dtype(self) -> Dtype:
        """Return the dtype of the rows."""
        return "float64" if next(iter(self.rows.values())).dtype == np.float64 else "float32"

    def require_fitting(self, domain: str, classes: tuple[str, ...]) -> None:
        """Raise an error for a model of another domain, or of other classes than a labelled dataset's."""
        if self.domain != domain:
            raise DomainMismatchError(
                f"the model belongs to domain {self.domain[:16]}, the key to {domain[:16]}: use the domain of the model"
            )
        if classes and classes != self.classes:
            option = "--target" if self.network.task.multi_label else "--classes"
            raise ModelError(
                f"the model's classes are {', '.join(self.classes)}, the dataset's {', '.join(classes)}: "
                f"ingest again with {option} {','.join(self.classes)}"
            )

    def content(self) -> bytes:
        """Return the file's content."""
        content = BytesIO()
        facts = {"network": self.network.to_json(), "domain": self.domain, "classes": list(self.classes)}
        arrays: dict[str, Any] = {**facts, **self.rows}
        np.savez(content, **arrays)
        return content.getvalue()

    def save(self, path: Path) -> None:
        """Write the file; an older one is replaced atomically."""
        replace(path, self.content())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a model file; raise `ModelError` if it is missing, damaged or does not fit its network."""
        try:
            arrays = _arrays(path)
            network = ModelSpec.from_json(str(arrays.pop("network")))
            domain = str(arrays.pop("domain"))
            classes = tuple(map(str, arrays.pop("classes")))
        except OSError as error:
            hint = f": name {path / 'model.npz'}" if (path / "model.npz").is_file() else ""
            raise ModelError(f"cannot read the model {path}: {error.strerror or error}{hint}") from None
        except (ValueError, KeyError, TypeError, EOFError, RuntimeError, BadZipFile, zlib.error):
            raise ModelError(f"{path} is not a model of fedpp: name the model.npz that training wrote") from None
        expected = {spec.name: spec.shape for spec in network.weights()}
        if {name: rows.shape[:-1] for name, rows in arrays.items()} != expected or len(classes) != len(
            network.task.classes
        ):
            raise ModelError(f"the weights in {path} do not fit its network: the file is damaged")
        return cls(network, domain, classes, arrays)


def _arrays(path: Path) -> dict[str, Any]:
    """Return the arrays of an .npz file; raise `ValueError` where a header announces more than the file holds.

    NumPy allocates whatever a header says.
    """
    with ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as member:
                major, _ = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
            if prod(shape) * dtype.itemsize > entry.compress_size:
                raise ValueError
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}
