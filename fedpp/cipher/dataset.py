"""The encrypted dataset on disk: a manifest, a table of sequences, and shards (docs/format.md).

Public: shapes, lengths, splits, class names, domain, pseudonyms, time gaps if so chosen. Ciphertext: frames, labels,
and time gaps otherwise. Checksums find damage; malice is found only in a dataset that is sealed at rest.
"""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import file_digest, sha256
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np
from numpy.typing import NDArray

from fedpp.cipher.at_rest import TAG_BYTES, AtRestKey, Seal
from fedpp.cipher.params import DomainCard
from fedpp.config import SPLITS, Dtype, Gaps
from fedpp.errors import DatasetError, DomainMismatchError

FORMAT = 2
MANIFEST = "manifest.json"
TABLE = "sequences.npy"
SHARD_BYTES = 64 * 2**20  # of frames: what a writer holds in memory
# A row of the table: pseudonyms in hex, the raw number of frames, and a number of SPLITS.
ROW = np.dtype([("id", "S32"), ("patient", "S32"), ("length", "<u4"), ("split", "u1")])

Kind = Literal["frames", "labels", "gaps"]
Rows = NDArray[np.floating]
Content = bytes | bytearray | memoryview


@dataclass(frozen=True)
class SequenceRecord:
    """What is public of one sequence: pseudonyms (32 hex digits), its raw number of frames, and its split."""

    id: str
    patient: str
    length: int
    split: str


@dataclass(frozen=True)
class File:
    """One file of the dataset, whole: its name, size and checksum."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard(File):
    """A file of records of one kind, those of sequences `first .. first + count - 1`."""

    kind: Kind
    first: int
    count: int


@dataclass(frozen=True)
class DatasetManifest:
    """What the dataset's files mean; `classes` is empty for an unlabelled dataset, `at_rest` a salt if it is sealed."""

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
    gaps: Gaps
    at_rest: str | None
    sequences: File
    shards: tuple[Shard, ...]

    @property
    def fingerprint(self) -> str:
        """Return 64 hex digits that identify this dataset, every byte of its files included."""
        return sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """Return the bytes that fingerprint and tag are made of."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    def to_json(self, seal: Seal | None) -> str:
        """Return the manifest file's text: the fields, and the fingerprint and tag for the reader to check."""
        checks = {"fingerprint": self.fingerprint, "tag": seal and seal.tag(self.canonical())}
        return json.dumps({**asdict(self), **checks}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, at_rest: AtRestKey | None = None) -> Self:
        """Read a manifest; raise `DatasetError` for another format, a damaged one, or one that the key did not tag."""
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
            raise _mismatch(manifest.domain, at_rest.domain)
        if at_rest is not None and manifest.at_rest and at_rest.seal(salt).tag(manifest.canonical()) != tag:
            raise DatasetError("the dataset's manifest was not sealed under this at-rest key: restore it")
        return manifest

    def shape(self, kind: Kind) -> tuple[int, ...]:
        """Return the shape of one record."""
        return {
            "frames": (self.frames, self.height, self.width, self.channels, self.n),
            "labels": (len(self.classes), self.n),
            "gaps": (self.frames, self.n) if self.gaps == "encrypted" else (self.frames,),
        }[kind]


class EncryptedDataset:
    """A dataset opened for reading; what is asked for is read from the shards, and nothing is kept."""

    def __init__(self, path: Path, manifest: DatasetManifest, sequences: NDArray[np.void], seal: Seal | None) -> None:
        self.path, self.manifest, self.sequences = path, manifest, sequences
        self._seal = seal
        self._shards: dict[Kind, tuple[Shard, ...]] = {
            kind: tuple(shard for shard in manifest.shards if shard.kind == kind)
            for kind in ("frames", "labels", "gaps")
        }
        self._headers: dict[str, int] = {}  # bytes before the records of a shard that was looked at

    @classmethod
    def open(cls, path: Path, at_rest: AtRestKey | None = None) -> Self:
        """Read manifest and table, and check that every shard is there with its size; `verify` reads all bytes.

        A dataset that is sealed at rest can be opened without its key, but no frames, labels or gaps be read.
        """
        try:
            manifest = DatasetManifest.from_json((path / MANIFEST).read_text(), at_rest)
        except OSError as error:
            raise DatasetError(f"cannot read an encrypted dataset at {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise DatasetError(f"{path / MANIFEST} is no text: restore it, or ingest again") from None
        for file in (manifest.sequences, *manifest.shards):
            found = path / file.file
            size = found.stat().st_size if found.is_file() else None
            if size != file.bytes:
                is_ = "is missing" if size is None else f"has {size} bytes"
                raise DatasetError(f"{found} {is_}, expected {file.bytes} bytes: restore it")
        seal = at_rest.seal(bytes.fromhex(manifest.at_rest)) if at_rest and manifest.at_rest else None
        return cls(path, manifest, _table(path, manifest.sequences), seal)

    def __len__(self) -> int:
        return len(self.sequences)

    def require_domain(self, domain: str) -> None:
        """Raise `DomainMismatchError` if this is not a dataset of the domain with this fingerprint."""
        if self.manifest.domain != domain:
            raise _mismatch(self.manifest.domain, domain)

    def verify(self) -> None:
        """Read every shard and compare its checksum; raise `DatasetError` that names a damaged one."""
        for shard in self.manifest.shards:
            _check(self.path, shard)

    def indices(self, split: str) -> NDArray[np.int64]:
        """Return the positions of a split's sequences."""
        return np.flatnonzero(self.sequences["split"] == SPLITS.index(split))

    def ids(self, indices: NDArray[np.integer]) -> list[str]:
        """Return the pseudonyms of sequences."""
        return [name.decode() for name in self.sequences["id"][indices]]

    def counts(self) -> dict[str, int]:
        """Return the number of sequences in each split."""
        return {split: len(self.indices(split)) for split in SPLITS}

    def patients(self) -> dict[str, int]:
        """Return the number of patients in each split."""
        return {split: len(np.unique(self.sequences["patient"][self.indices(split)])) for split in SPLITS}

    def frames(self, indices: NDArray[np.integer]) -> Rows:
        """Return rows `[k, frames, height, width, channels, n]`; those of padding are zero."""
        return self._read("frames", indices)

    def labels(self, indices: NDArray[np.integer]) -> Rows:
        """Return one-hot rows `[k, classes, n]`."""
        if not self.manifest.classes:
            raise DatasetError(f"the dataset at {self.path} has no labels: ingest it with labels")
        return self._read("labels", indices)

    def valid(self, indices: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return `[k, frames]`: which frames are of the sequence, and not padding after its end."""
        valid: NDArray[np.bool_] = np.arange(self.manifest.frames) < self.sequences["length"][indices][:, None]
        return valid

    def gaps(self, indices: NDArray[np.integer]) -> Rows:
        """Return the time since the frame before: rows `[k, frames, n]`, or public numbers `[k, frames]`."""
        if self.manifest.gaps == "none":
            raise DatasetError(f"the dataset at {self.path} has no time gaps: ingest it with --gaps")
        return self._read("gaps", indices)

    def _read(self, kind: Kind, indices: NDArray[np.integer]) -> Rows:
        if self.manifest.at_rest and self._seal is None:
            raise DatasetError(f"the dataset at {self.path} is sealed at rest: give the domain's at-rest key")
        if len(indices) and not 0 <= int(np.min(indices)) <= int(np.max(indices)) < len(self):
            raise IndexError(f"sequences are 0 to {len(self) - 1}, asked for {np.min(indices)} to {np.max(indices)}")
        shape = self.manifest.shape(kind)
        rows = np.empty((len(indices), *shape), dtype=np.dtype(self.manifest.dtype).newbyteorder("<"))
        shards = self._shards[kind]
        numbers = np.searchsorted([shard.first + shard.count for shard in shards], indices, side="right")
        for number in np.unique(numbers):
            shard = shards[int(number)]
            try:
                with (self.path / shard.file).open("rb", buffering=0) as file:
                    start = self._start(shard, shape, file)
                    for position in np.flatnonzero(numbers == number):
                        self._read_record(file, shard, start, int(indices[position]), rows[position, ...])
            except OSError as error:
                raise DatasetError(f"cannot read shard {self.path / shard.file}: {error.strerror}") from None
        return rows.astype(self.manifest.dtype, copy=False)

    def _read_record(self, file: BinaryIO, shard: Shard, start: int, index: int, row: Rows) -> None:
        buffer = row.reshape(-1).view(np.uint8)  # a view: records are contiguous
        size = len(buffer) + (TAG_BYTES if self._seal else 0)
        file.seek(start + (index - shard.first) * size)
        if self._seal is None:
            whole = file.readinto(buffer) == size  # type: ignore[attr-defined]
        else:
            record = self._seal.open(shard.kind, index, file.read(size))
            whole = record is not None
            buffer[:] = np.frombuffer(record, np.uint8) if record else 0
        if not whole:
            raise DatasetError(f"shard {self.path / shard.file} is damaged: a record cannot be read; restore it")

    def _start(self, shard: Shard, shape: tuple[int, ...], file: BinaryIO) -> int:
        if shard.file not in self._headers:
            self._headers[shard.file] = 0 if self.manifest.at_rest else self._check_header(shard, shape, file)
        return self._headers[shard.file]

    def _check_header(self, shard: Shard, shape: tuple[int, ...], file: BinaryIO) -> int:
        """Return the size of a shard's header, which must announce what the manifest does."""
        try:
            np.lib.format.read_magic(file)
            found, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError:
            raise DatasetError(f"shard {self.path / shard.file} is damaged: it is not an array; restore it") from None
        if found != (shard.count, *shape) or dtype != np.dtype(self.manifest.dtype) or fortran_order:
            raise DatasetError(f"shard {self.path / shard.file} is damaged: it is {dtype} of shape {found}; restore it")
        return file.tell()


def _mismatch(dataset: str, key: str) -> DomainMismatchError:
    return DomainMismatchError(
        f"the dataset belongs to domain {dataset[:16]}, the key to {key[:16]}: "
        "ingest again under this domain, or take the other key"
    )


def require_new(path: Path) -> None:
    """Raise `DatasetError` if a dataset cannot be written to `path` because something is there."""
    if path.exists():
        raise DatasetError(f"{path} is there already: choose another folder, datasets are not overwritten")


class DatasetWriter:
    """A new dataset under a temporary name, renamed when it is complete and removed if it cannot be.

    What a killed writer left is removed by the next one; two writers of one path do not meet.
    """

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
        gaps: Gaps = "none",
        at_rest: AtRestKey | None = None,
    ) -> None:
        require_new(path)
        self._path, self._temporary = path, path.with_name(f".{path.name}.partial")
        salt = secrets.token_bytes(16) if at_rest else None
        self._seal = at_rest.seal(salt) if at_rest and salt else None
        self._manifest = DatasetManifest(
            FORMAT,
            card.fingerprint,
            card.epoch,
            card.scheme,
            card.n,
            dtype,
            frames,
            height,
            width,
            channels,
            classes,
            gaps,
            salt.hex() if salt else None,
            File(TABLE, 0, ""),
            (),
        )
        self._kinds: list[Kind] = ["frames"]
        self._kinds += ["labels"] if classes else []
        self._kinds += ["gaps"] if gaps != "none" else []
        little_endian = np.dtype(dtype).newbyteorder("<")
        shape = self._manifest.shape("frames")
        self._limit = max(1, SHARD_BYTES // (int(np.prod(shape)) * little_endian.itemsize))
        self._waiting: Mapping[Kind, Rows] = {
            kind: np.empty((self._limit, *self._manifest.shape(kind)), little_endian) for kind in self._kinds
        }
        self._written, self._count = 0, 0  # sequences in shards, and in memory
        self._table = bytearray()
        self._shards: list[Shard] = []

    def __enter__(self) -> Self:
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._temporary, self._path)
        for left in self._temporary.iterdir():
            left.unlink()
        return self

    def add(self, record: SequenceRecord, frames: Rows, label: Rows | None = None, gaps: Rows | None = None) -> None:
        """Add one sequence: rows `[frames, height, width, channels, n]` of its frames, of fewer if it is shorter.

        `label` is its one-hot rows `[classes, n]`, `gaps` its rows `[frames, n]` or public numbers `[frames]`; each
        is for all sequences of a dataset or for none. Frames and gaps beyond those given are zero.
        """
        m = self._manifest
        valid = min(record.length, m.frames)
        if frames.shape != (valid, *m.shape("frames")[1:]):
            raise DatasetError(f"a sequence of shape {frames.shape} does not fit a dataset of {m.shape('frames')}")
        if (label is not None) != bool(m.classes):
            raise DatasetError("labels are for all sequences of a dataset with classes, and for none without")
        if label is not None and label.shape != m.shape("labels"):
            raise DatasetError(f"labels of shape {label.shape} do not fit a dataset of {m.shape('labels')}")
        if (gaps is not None) != (m.gaps != "none") or (
            gaps is not None and gaps.shape != (valid, *m.shape("gaps")[1:])
        ):
            raise DatasetError(f"time gaps must be of all sequences of a dataset that has them, {m.gaps} here")
        if record.split not in SPLITS:
            raise DatasetError(f"a split must be one of {', '.join(SPLITS)}, got {record.split!r}")
        row = (record.id.encode(), record.patient.encode(), record.length, SPLITS.index(record.split))
        self._table += np.array(row, ROW).tobytes()
        given: Mapping[Kind, Rows | None] = {"frames": frames, "labels": label, "gaps": gaps}
        for kind, waiting in self._waiting.items():
            rows = given[kind]
            waiting[self._count] = 0
            if rows is not None:
                waiting[self._count, : len(rows)] = rows
        self._count += 1
        if self._count == self._limit:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise
        else:
            if kind is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)
        finally:
            os.close(self._lock)

    def _flush(self) -> None:
        if not self._count:
            return
        for kind, waiting in self._waiting.items():
            number = sum(shard.kind == kind for shard in self._shards)
            name = f"{kind}-{number:05d}.{'sealed' if self._seal else 'npy'}"
            written = self._write(name, self._content(kind, waiting[: self._count]))
            self._shards.append(Shard(**asdict(written), kind=kind, first=self._written, count=self._count))
        self._written += self._count
        self._count = 0

    def _content(self, kind: Kind, rows: Rows) -> Iterator[Content]:
        if self._seal is None:
            yield _npy_header(rows)
            yield rows.reshape(-1).view(np.uint8).data
            return
        for number, row in enumerate(rows):
            yield self._seal.close(kind, self._written + number, row.tobytes())

    def _write(self, name: str, content: Iterable[Content]) -> File:
        digest, size = sha256(), 0
        with (self._temporary / name).open("wb") as file:
            for part in content:
                file.write(part)
                digest.update(part)
                size += len(part)
        return File(name, size, digest.hexdigest())

    def _finish(self) -> None:
        self._flush()
        if not self._written:
            raise DatasetError(f"nothing was written to {self._path}: there is no sequence")
        table = np.frombuffer(self._table, ROW)
        sequences = self._write(TABLE, [_npy_header(table), self._table])
        manifest = replace(self._manifest, sequences=sequences, shards=tuple(self._shards))
        (self._temporary / MANIFEST).write_text(manifest.to_json(self._seal))
        self._temporary.rename(self._path)


def _locked(folder: Path, path: Path) -> int:
    """Return a descriptor that locks a folder until it, or the process, even a killed one, ends."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = folder.exists() and os.path.samestat(os.fstat(lock), folder.stat())  # and no other that was made since
    except BlockingIOError:
        same = False
    except OSError:
        os.close(lock)
        raise
    if not same or path.exists():
        os.close(lock)
        require_new(path)
        raise DatasetError(f"another process is writing {path}: wait for it, or choose another folder")
    return lock


def _npy_header(array: NDArray[Any]) -> bytes:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue()


def _table(path: Path, file: File) -> NDArray[np.void]:
    _check(path, file)
    try:
        table: NDArray[np.void] = np.load(path / file.file, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise DatasetError(f"{path / file.file} is damaged: it is not an array; restore it") from None
    if table.dtype != ROW or table.ndim != 1 or (len(table) and table["split"].max() >= len(SPLITS)):
        raise DatasetError(f"{path / file.file} is damaged: it is no table of sequences; restore it")
    return table


def _check(path: Path, file: File) -> None:
    with (path / file.file).open("rb") as content:
        if file_digest(content, "sha256").hexdigest() != file.sha256:
            raise DatasetError(f"{path / file.file} is damaged: its checksum differs; restore it")
