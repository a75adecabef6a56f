"""Writer of encrypted datasets: the whole dataset or nothing, in bounded memory."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedpp.cipher.domain_card import DomainCard
from fedpp.config.hyperparameters import Dtype
from fedpp.config.run_config import SPLITS
from fedpp.config.task import Task
from fedpp.dataset.at_rest import AtRestKey
from fedpp.dataset.dataset_manifest import (
    FORMAT,
    MANIFEST,
    ROW,
    TABLE,
    DatasetManifest,
    File,
    Kind,
    Rows,
    SequenceRecord,
    Shard,
)
from fedpp.errors import DatasetError
from fedpp.files import lock_folder

FOLDER_MODE, FILE_MODE = 0o750, 0o640  # a dataset reveals its key: it is for its owner, and the trainer's group
SHARD_BYTES = 64 * 2**20  # of frames: what a writer holds in memory

Content = bytes | bytearray | memoryview


def require_new(path: Path) -> None:
    """Raise `DatasetError` if something exists at `path`."""
    if path.exists():
        raise DatasetError(f"{path} exists already: choose another folder, datasets are not overwritten")


class DatasetWriter:
    """A new dataset under a temporary name, renamed when it is complete and removed after an error.

    The next writer removes what a killed one left; two writers of one path exclude each other. The folder has mode 0750
    and its files 0640 from their creation.
    """

    def __init__(
        self,
        path: Path,
        card: DomainCard,
        task: Task,
        dtype: Dtype,
        *,
        encrypted_gaps: bool = False,
        at_rest: AtRestKey | None = None,
    ) -> None:
        """Prepare a dataset of this domain; its time gaps, if the task has any, are public unless encrypted."""
        require_new(path)
        self._path, self._temporary = path, path.with_name(f".{path.name}.partial")
        salt = secrets.token_bytes(16) if at_rest else None
        self._sealer = at_rest.sealer(salt) if at_rest and salt else None
        self._manifest = DatasetManifest(
            FORMAT,
            card.fingerprint,
            card.key_epoch,
            card.scheme,
            card.n,
            dtype,
            task.frames,
            task.height,
            task.width,
            task.channels,
            task.classes,
            task.multi_label,
            ("encrypted" if encrypted_gaps else "public") if task.gaps else "none",
            task.patch,
            salt.hex() if salt else None,
            File(TABLE, 0, ""),
            (),
        )
        self._kinds: list[Kind] = ["frames"]
        self._kinds += ["labels"] if task.classes else []
        self._kinds += ["gaps"] if task.gaps else []
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
        self._temporary.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.mkdir(FOLDER_MODE, exist_ok=True)
        self._lock = _locked(self._temporary, self._path)
        os.fchmod(self._lock, FOLDER_MODE)  # whatever the umask
        for left in self._temporary.iterdir():
            left.unlink()
        return self

    def add(self, record: SequenceRecord, frames: Rows, label: Rows | None = None, gaps: Rows | None = None) -> None:
        """Add one sequence: rows `[frames, height, width, channels, n]` of its frames, of fewer if it is shorter.

        `label` is its one-hot rows `[classes, n]`, `gaps` its rows `[frames, n]` or public numbers `[frames]`; each
        is given for all sequences of a dataset or for none. Frames and gaps beyond those given are zero.
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
            name = f"{kind}-{number:05d}.{'sealed' if self._sealer else 'npy'}"
            written = self._write(name, self._content(kind, waiting[: self._count]))
            self._shards.append(Shard(**asdict(written), kind=kind, first=self._written, count=self._count))
        self._written += self._count
        self._count = 0

    def _content(self, kind: Kind, rows: Rows) -> Iterator[Content]:
        if self._sealer is None:
            yield _npy_header(rows)
            yield rows.reshape(-1).view(np.uint8).data
            return
        for number, row in enumerate(rows):
            yield self._sealer.seal(kind, self._written + number, row.tobytes())

    def _write(self, name: str, content: Iterable[Content]) -> File:
        digest, size = sha256(), 0
        path = self._temporary / name
        path.touch(FILE_MODE)
        path.chmod(FILE_MODE)  # whatever the umask
        with path.open("wb") as file:
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
        self._write(MANIFEST, [manifest.to_json(self._sealer).encode()])
        self._temporary.rename(self._path)


def _locked(folder: Path, path: Path) -> int:
    """Return a descriptor that locks the folder of a dataset being written."""
    lock = lock_folder(folder)
    if lock is None or path.exists():
        if lock is not None:
            os.close(lock)
        require_new(path)
        raise DatasetError(f"another process is writing {path}: wait for it, or choose another folder")
    return lock


def _npy_header(array: NDArray[Any]) -> bytes:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue()
