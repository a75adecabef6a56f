"""Encrypted dataset: a reader of the files on disk (docs/reference/dataset_format.md).

Public are shapes, lengths, splits, class names, domain, pseudonyms, and time gaps if so chosen. Ciphertext are frames,
labels, and time gaps otherwise. Checksums detect damage; only a dataset that is sealed at rest detects tampering.
"""

from hashlib import file_digest
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from fedpp.cipher.evaluation_key import AnyKey, EvaluationKey, PlainNumbers
from fedpp.config.run_config import SPLITS
from fedpp.config.task import LABELS_NEEDED
from fedpp.dataset.at_rest import TAG_BYTES, AtRestKey, DatasetSealer
from fedpp.dataset.dataset_manifest import MANIFEST, ROW, DatasetManifest, File, Kind, Rows, Shard, mismatch
from fedpp.errors import DatasetError


class EncryptedDataset:
    """A dataset opened for reading; each request reads its records from the shards, and nothing is cached."""

    def __init__(
        self, path: Path, manifest: DatasetManifest, sequences: NDArray[np.void], sealer: DatasetSealer | None
    ) -> None:
        self.path, self.manifest, self.sequences = path, manifest, sequences
        self._sealer = sealer
        self._shards: dict[Kind, tuple[Shard, ...]] = {
            kind: tuple(shard for shard in manifest.shards if shard.kind == kind)
            for kind in ("frames", "labels", "gaps")
        }
        self._headers: dict[str, int] = {}  # shard -> bytes before its records, once checked

    @classmethod
    def open(cls, path: Path, at_rest: AtRestKey | None = None) -> Self:
        """Read manifest and table, and check that every shard is there with its size; `verify` reads all bytes.

        A dataset that is sealed at rest can be opened without its key, but its frames, labels and gaps cannot be read.
        """
        try:
            manifest = DatasetManifest.from_json((path / MANIFEST).read_text(), at_rest)
        except OSError as error:
            why = f"it holds no {MANIFEST}" if path.is_dir() and not (path / MANIFEST).exists() else error.strerror
            raise DatasetError(f"cannot read an encrypted dataset at {path}: {why}") from None
        except UnicodeDecodeError:
            raise DatasetError(f"{path / MANIFEST} is not text: restore it, or ingest again") from None
        for file in (manifest.sequences, *manifest.shards):
            found = path / file.file
            size = found.stat().st_size if found.is_file() else None
            if size != file.bytes:
                is_ = "is missing" if size is None else f"has {size} bytes"
                raise DatasetError(f"{found} {is_}, expected {file.bytes} bytes: restore it")
        sealer = at_rest.sealer(bytes.fromhex(manifest.at_rest)) if at_rest and manifest.at_rest else None
        return cls(path, manifest, _table(path, manifest.sequences), sealer)

    @classmethod
    def open_with(cls, path: Path, key_file: Path) -> Self:
        """Open a dataset with the at-rest key from a file, which is read only if the dataset is sealed."""
        dataset = cls.open(path)
        return cls.open(path, AtRestKey.load(key_file)) if dataset.manifest.at_rest else dataset

    def __len__(self) -> int:
        return len(self.sequences)

    def require_domain(self, domain: str) -> None:
        """Raise `DomainMismatchError` unless the dataset belongs to the domain with this fingerprint."""
        if self.manifest.domain != domain:
            raise mismatch(self.manifest.domain, domain)

    def verify(self) -> None:
        """Compare every shard with its checksum; raise `DatasetError` that names a damaged one."""
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
            raise DatasetError(f"the dataset at {self.path} has no labels: {LABELS_NEEDED}")
        return self._read("labels", indices)

    def valid(self, indices: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return `[k, frames]`: True for frames of the sequence, False for padding after its end."""
        valid: NDArray[np.bool_] = np.arange(self.manifest.frames) < self.sequences["length"][indices][:, None]
        return valid

    def gaps(self, indices: NDArray[np.integer]) -> Rows:
        """Return the time since the frame before: rows `[k, frames, n]`, or public numbers `[k, frames]`."""
        if self.manifest.gaps == "none":
            raise DatasetError(f"the dataset at {self.path} has no time gaps: ingest it with --gaps")
        return self._read("gaps", indices)

    def _read(self, kind: Kind, indices: NDArray[np.integer]) -> Rows:
        if self.manifest.at_rest and self._sealer is None:
            raise DatasetError(f"the dataset at {self.path} is sealed at rest: use the domain's at-rest key")
        if len(indices) and not 0 <= int(np.min(indices)) <= int(np.max(indices)) < len(self):
            raise IndexError(f"sequences are 0 to {len(self) - 1}, got {np.min(indices)} to {np.max(indices)}")
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
        size = len(buffer) + (TAG_BYTES if self._sealer else 0)
        file.seek(start + (index - shard.first) * size)
        if self._sealer is None:
            whole = file.readinto(buffer) == size  # type: ignore[attr-defined]
        else:
            record = self._sealer.unseal(shard.kind, index, file.read(size))
            whole = record is not None
            buffer[:] = np.frombuffer(record, np.uint8) if record else 0
        if not whole:
            raise DatasetError(f"shard {self.path / shard.file} is damaged: a record cannot be read; restore it")

    def _start(self, shard: Shard, shape: tuple[int, ...], file: BinaryIO) -> int:
        if shard.file not in self._headers:
            self._headers[shard.file] = 0 if self.manifest.at_rest else self._check_header(shard, shape, file)
        return self._headers[shard.file]

    def _check_header(self, shard: Shard, shape: tuple[int, ...], file: BinaryIO) -> int:
        """Return the size of a shard's header, after checking it against the manifest."""
        try:
            np.lib.format.read_magic(file)
            found, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError:
            raise DatasetError(f"shard {self.path / shard.file} is damaged: it is not an array; restore it") from None
        if found != (shard.count, *shape) or dtype != np.dtype(self.manifest.dtype) or fortran_order:
            raise DatasetError(f"shard {self.path / shard.file} is damaged: it is {dtype} of shape {found}; restore it")
        return file.tell()


def _table(path: Path, file: File) -> NDArray[np.void]:
    _check(path, file)
    try:
        table: NDArray[np.void] = np.load(path / file.file, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise DatasetError(f"{path / file.file} is damaged: it is not an array; restore it") from None
    if table.dtype != ROW or table.ndim != 1 or (len(table) and table["split"].max() >= len(SPLITS)):
        raise DatasetError(f"{path / file.file} is damaged: it is not a table of sequences; restore it")
    return table


def _check(path: Path, file: File) -> None:
    with (path / file.file).open("rb") as content:
        if file_digest(content, "sha256").hexdigest() != file.sha256:
            raise DatasetError(f"{path / file.file} is damaged: its checksum differs; restore it")


def open_key(path: Path, manifest: DatasetManifest) -> AnyKey:
    """Return the key that a dataset's trainer computes with: the evaluation key in this file; none for `more-frame`."""
    return PlainNumbers(manifest.domain) if manifest.scheme == "more-frame" else EvaluationKey.load(path)
