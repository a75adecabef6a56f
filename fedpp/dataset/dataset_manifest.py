"""Dataset manifest: the description of an encrypted dataset's files and sequences.

The format is documented in docs/reference/dataset_format.md.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from fedpp.config.hyperparameters import Dtype
from fedpp.config.task import Gaps, Task
from fedpp.dataset.at_rest import AtRestKey, DatasetSealer
from fedpp.errors import DatasetError, DomainMismatchError

FORMAT = 3
MANIFEST = "manifest.json"
TABLE = "sequences.npy"
# A row of the table: pseudonyms in hex, the raw number of frames, and a number of SPLITS.
ROW = np.dtype([("id", "S32"), ("patient", "S32"), ("length", "<u4"), ("split", "u1")])

Kind = Literal["frames", "labels", "gaps"]
Rows = NDArray[np.floating]


@dataclass(frozen=True)
class SequenceRecord:
    """Public facts of one sequence: pseudonyms (32 hex digits), its raw number of frames, and its split."""

    id: str
    patient: str
    length: int
    split: str


@dataclass(frozen=True)
class File:
    """One file of the dataset: its name, size and checksum."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard(File):
    """A file of records of one kind, of the sequences `first .. first + count - 1`."""

    kind: Kind
    first: int
    count: int


@dataclass(frozen=True)
class DatasetManifest:
    """Description of a dataset's files; `classes` is empty without labels, `at_rest` is a salt if it is sealed.

    With `multi_label` the classes are findings, each present, absent or unknown; `patch` is the side of the patches
    that `more-frame` mixes, or 0 for rows of pixels and for the scheme `more`.
    """

    format: int
    domain: str  # fingerprint of the domain's card
    key_epoch: int
    scheme: str
    n: int
    dtype: Dtype
    frames: int
    height: int
    width: int
    channels: int
    classes: tuple[str, ...]
    multi_label: bool
    gaps: Gaps
    patch: int
    at_rest: str | None
    sequences: File
    shards: tuple[Shard, ...]

    @property
    def task(self) -> Task:
        """Return the shape and labels of the sequences."""
        sizes = (self.frames, self.height, self.width, self.channels)
        return Task(*sizes, self.classes, self.gaps != "none", self.multi_label, self.patch)

    @property
    def fingerprint(self) -> str:
        """Return 64 hex digits that identify this dataset and every byte of its files."""
        return sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """Return the bytes that fingerprint and tag are computed from."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    def to_json(self, seal: DatasetSealer | None) -> str:
        """Return the manifest file's text: the fields, and the fingerprint and tag that readers check."""
        checks = {"fingerprint": self.fingerprint, "tag": seal and seal.tag(self.canonical())}
        return json.dumps({**asdict(self), **checks}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, at_rest: AtRestKey | None = None) -> Self:
        """Read a manifest; raise `DatasetError` for another format, damage, or a tag of another key."""
        try:
            values: dict[str, Any] = json.loads(text)
            if values["format"] != FORMAT:
                raise DatasetError(
                    f"the dataset has format {values['format']!r}, this program reads {FORMAT}: ingest again"
                )
            fingerprint, tag = values.pop("fingerprint"), values.pop("tag")
            manifest = cls(
                **{
                    **values,
                    "classes": tuple(values["classes"]),
                    "sequences": File(**values["sequences"]),
                    "shards": tuple(Shard(**shard) for shard in values["shards"]),
                }
            )
            salt = bytes.fromhex(manifest.at_rest or "")
            outside = any(Path(file.file).name != file.file for file in (manifest.sequences, *manifest.shards))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DatasetError("the dataset's manifest is damaged: restore it, or ingest again") from None
        if outside:
            raise DatasetError("the dataset's manifest names a file outside its folder: ingest again")
        if manifest.fingerprint != fingerprint:
            raise DatasetError("the dataset's manifest was changed: restore it, or ingest again")
        if at_rest is not None and at_rest.domain != manifest.domain:
            raise mismatch(manifest.domain, at_rest.domain)
        if at_rest is not None and manifest.at_rest and at_rest.sealer(salt).tag(manifest.canonical()) != tag:
            raise DatasetError("the dataset's manifest was not sealed under this at-rest key: restore it")
        return manifest

    def shape(self, kind: Kind) -> tuple[int, ...]:
        """Return the shape of one record."""
        return {
            "frames": (self.frames, self.height, self.width, self.channels, self.n),
            "labels": (len(self.classes), 2, self.n) if self.multi_label else (len(self.classes), self.n),
            "gaps": (self.frames, self.n) if self.gaps == "encrypted" else (self.frames,),
        }[kind]


def mismatch(dataset: str, key: str) -> DomainMismatchError:
    """Return the error of a dataset and a key of different domains, by their fingerprints."""
    return DomainMismatchError(
        f"the dataset belongs to domain {dataset[:16]}, the key to {key[:16]}: "
        "use the other key; `fedpp-site reencrypt` the dataset if the key is of a later key epoch, or ingest again"
    )
