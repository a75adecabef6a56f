"""The encrypted dataset on disk: a manifest and memory-mapped shards (docs/format.md).

Public: shapes, lengths, splits, class names, domain, pseudonyms. Ciphertext: frames and labels. The checksums
find damage, not malice: whoever may write the folder may write new checksums.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from fedpp.cipher.params import DomainCard
from fedpp.config import SPLITS, Dtype
from fedpp.errors import DatasetError, DomainMismatchError

FORMAT = 1
MANIFEST = "manifest.json"
SHARD_BYTES = 64 * 2**20  # of frames: what a writer holds in memory

Rows = NDArray[np.floating]


@dataclass(frozen=True)
class SequenceRecord:
    """What is public of one sequence: pseudonyms, its raw number of frames, and its split."""

    id: str
    patient: str
    length: int
    split: str


@dataclass(frozen=True)
class Shard:
    """One file of sequences `first .. first + count - 1`, all frames or all labels."""

    file: str
    first: int
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DatasetManifest:
    """Everything but the ciphertext; `classes` is empty for an unlabelled dataset."""

    format: int
    domain: str  # fingerprint of the domain's card
    epoch: int
    scheme: str
    n: int
    dtype: Dtype
    frames: int
    height: int
    width: int
    channels: int
    classes: tuple[str, ...]
    sequences: tuple[SequenceRecord, ...]
    frame_shards: tuple[Shard, ...]
    label_shards: tuple[Shard, ...]

    @property
    def fingerprint(self) -> str:
        """Return 64 hex digits that identify this dataset, its shards included."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the manifest file's text: the fields, and the fingerprint for the reader to check."""
        return json.dumps({**asdict(self), "fingerprint": self.fingerprint}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a manifest; raise `DatasetError` for another format or a damaged one."""
        try:
            values: dict[str, Any] = json.loads(text)
            if values["format"] != FORMAT:
                raise DatasetError(
                    f"the dataset has format {values['format']!r}, this program reads {FORMAT}: ingest again"
                )
            fingerprint = values.pop("fingerprint")
            manifest = cls(
                **{
                    **values,
                    "classes": tuple(values["classes"]),
                    "sequences": tuple(SequenceRecord(**record) for record in values["sequences"]),
                    "frame_shards": tuple(Shard(**shard) for shard in values["frame_shards"]),
                    "label_shards": tuple(Shard(**shard) for shard in values["label_shards"]),
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DatasetError("the dataset's manifest is damaged: restore it, or ingest again") from None
        shards = (*manifest.frame_shards, *manifest.label_shards)
        if any(Path(shard.file).name != shard.file for shard in shards):
            raise DatasetError("the dataset's manifest names a file outside its folder: ingest again")
        if manifest.fingerprint != fingerprint:
            raise DatasetError("the dataset's manifest was changed: restore it, or ingest again")
        return manifest


class EncryptedDataset:
    """A dataset opened for reading; rows are read from memory-mapped shards when they are asked for."""

    def __init__(self, path: Path, manifest: DatasetManifest) -> None:
        self.path, self.manifest = path, manifest
        self._mapped: dict[str, Rows] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the manifest and check that every shard is there with its size; `verify` reads the bytes."""
        try:
            manifest = DatasetManifest.from_json((path / MANIFEST).read_text())
        except OSError as error:
            raise DatasetError(f"cannot read an encrypted dataset at {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise DatasetError(f"{path / MANIFEST} is no text: restore it, or ingest again") from None
        for shard in (*manifest.frame_shards, *manifest.label_shards):
            file = path / shard.file
            size = file.stat().st_size if file.is_file() else None
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size} bytes"
                raise DatasetError(f"shard {file} {found}, expected {shard.bytes} bytes: restore it")
        return cls(path, manifest)

    def __len__(self) -> int:
        return len(self.manifest.sequences)

    def require_domain(self, domain: str) -> None:
        """Raise `DomainMismatchError` if this is not a dataset of the domain with this fingerprint."""
        if self.manifest.domain != domain:
            raise DomainMismatchError(
                f"the dataset belongs to domain {self.manifest.domain[:16]}, the key to {domain[:16]}: "
                "ingest again under this domain, or take the other key"
            )

    def verify(self) -> None:
        """Read every shard and compare its checksum; raise `DatasetError` that names a damaged one."""
        for shard in (*self.manifest.frame_shards, *self.manifest.label_shards):
            with (self.path / shard.file).open("rb") as file:
                digest = _digest(file)
            if digest != shard.sha256:
                raise DatasetError(f"shard {self.path / shard.file} is damaged: its checksum differs; restore it")

    def indices(self, split: str) -> NDArray[np.int64]:
        """Return the positions of a split's sequences."""
        return np.array([i for i, s in enumerate(self.manifest.sequences) if s.split == split], dtype=np.int64)

    def frames(self, indices: NDArray[np.integer]) -> Rows:
        """Return rows `[k, frames, height, width, channels, n]`."""
        m = self.manifest
        return self._read(m.frame_shards, indices, (m.frames, m.height, m.width, m.channels, m.n))

    def labels(self, indices: NDArray[np.integer]) -> Rows:
        """Return one-hot rows `[k, classes, n]`."""
        m = self.manifest
        if not m.classes:
            raise DatasetError(f"the dataset at {self.path} has no labels: ingest it with labels")
        return self._read(m.label_shards, indices, (len(m.classes), m.n))

    def _read(self, shards: tuple[Shard, ...], indices: NDArray[np.integer], shape: tuple[int, ...]) -> Rows:
        rows = np.empty((len(indices), *shape), dtype=self.manifest.dtype)
        ends = np.cumsum([shard.count for shard in shards])
        for position, index in enumerate(indices):
            shard = shards[int(np.searchsorted(ends, index, side="right"))]
            rows[position] = self._map(shard, shape)[int(index) - shard.first]
        return rows

    def _map(self, shard: Shard, shape: tuple[int, ...]) -> Rows:
        if shard.file not in self._mapped:
            file = self.path / shard.file
            try:
                rows = cast("Rows", np.load(file, mmap_mode="r", allow_pickle=False))
            except (ValueError, OSError, EOFError):
                raise DatasetError(f"shard {file} is damaged: it is not an array; restore it") from None
            if rows.shape != (shard.count, *shape) or rows.dtype != self.manifest.dtype:
                raise DatasetError(f"shard {file} is damaged: it is {rows.dtype} of shape {rows.shape}; restore it")
            self._mapped[shard.file] = rows
        return self._mapped[shard.file]


def require_new(path: Path) -> None:
    """Raise `DatasetError` if a dataset cannot be written to `path` because something is there."""
    if path.exists():
        raise DatasetError(f"{path} is there already: choose another folder, datasets are not overwritten")


class DatasetWriter:
    """A new dataset under a temporary name, renamed when it is complete and removed if it cannot be."""

    def __init__(
        self,
        path: Path,
        card: DomainCard,
        *,
        dtype: Dtype,
        frames: int,
        height: int,
        width: int,
        channels: int,
        classes: tuple[str, ...],
    ) -> None:
        require_new(path)
        self._path, self._temporary = path, path.with_name(f".{path.name}.partial")
        self._fields: Mapping[str, Any] = {
            "format": FORMAT,
            "domain": card.fingerprint,
            "epoch": card.epoch,
            "scheme": card.scheme,
            "n": card.n,
            "dtype": dtype,
            "frames": frames,
            "height": height,
            "width": width,
            "channels": channels,
            "classes": classes,
        }
        self._shape = (frames, height, width, channels, card.n)
        self._label_shape = (len(classes), card.n)
        self._limit = max(1, SHARD_BYTES // (int(np.prod(self._shape)) * np.dtype(dtype).itemsize))
        self._little_endian = np.dtype(dtype).newbyteorder("<")
        self._records: list[SequenceRecord] = []
        self._frames: list[Rows] = []
        self._labels: list[Rows] = []
        self._shards: dict[str, list[Shard]] = {"frames": [], "labels": []}

    def __enter__(self) -> Self:
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        return self

    def add(self, record: SequenceRecord, frames: Rows, labels: Rows | None) -> None:
        """Add one sequence: rows `[frames, height, width, channels, n]`, one-hot rows `[classes, n]` or None."""
        labelled = bool(self._label_shape[0])
        if frames.shape != self._shape:
            raise DatasetError(f"a sequence of shape {frames.shape} does not fit a dataset of {self._shape}")
        if (labels is not None) != labelled:
            raise DatasetError("labels are for all sequences of a dataset with classes, and for none without")
        if labels is not None and labels.shape != self._label_shape:
            raise DatasetError(f"labels of shape {labels.shape} do not fit a dataset of {self._label_shape}")
        if record.split not in SPLITS:
            raise DatasetError(f"a split must be one of {', '.join(SPLITS)}, got {record.split!r}")
        self._records.append(record)
        self._frames.append(frames)
        if labels is not None:
            self._labels.append(labels)
        if len(self._frames) == self._limit:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _flush(self) -> None:
        for kind, rows in (("frames", self._frames), ("labels", self._labels)):
            if rows:
                shards = self._shards[kind]
                file = self._temporary / f"{kind}-{len(shards):05d}.npy"
                np.save(file, np.stack(rows).astype(self._little_endian, copy=False), allow_pickle=False)
                first = sum(shard.count for shard in shards)
                with file.open("rb") as content:
                    digest = _digest(content)
                shards.append(Shard(file.name, first, len(rows), file.stat().st_size, digest))
                rows.clear()

    def _finish(self) -> None:
        self._flush()
        if not self._records:
            raise DatasetError(f"nothing was written to {self._path}: there is no sequence")
        manifest = DatasetManifest(
            **self._fields,
            sequences=tuple(self._records),
            frame_shards=tuple(self._shards["frames"]),
            label_shards=tuple(self._shards["labels"]),
        )
        (self._temporary / MANIFEST).write_text(manifest.to_json())
        self._temporary.rename(self._path)


def _digest(file: Any) -> str:
    digest = sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()
