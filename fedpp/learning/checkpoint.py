"""Training checkpoint: a sealed file after an epoch, from which training resumes to the same weights, bit for bit.

The optimizer's moments are kept by slot, those of the message among them; so the file is sealed with the domain's
at-rest key (AES-256-GCM), which the trainer has beside its evaluation key. A file: `MAGIC`, 16 bytes of salt, and
sealed records of a length each: the settings as JSON with the number of parts, then the arrays as parts of an `.npz`.
"""

import json
import secrets
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fedpp.dataset.at_rest import AtRestKey, DatasetSealer
from fedpp.errors import ModelError
from fedpp.files import replace

MAGIC = b"fedpp-checkpoint-1"
SALT_BYTES = 16
PART_BYTES = 2**26
_KIND = "checkpoint"

State = dict[str, NDArray[np.generic]]


def is_checkpoint(path: Path) -> bool:
    """Return whether a file starts as a checkpoint does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelError(f"cannot read the checkpoint {path}: {error.strerror}") from None


@dataclass(frozen=True)
class Checkpoint:
    """State after an epoch: `settings` must be the same when training resumes, `arrays` are what training changes."""

    settings: dict[str, Any]
    epoch: int  # 0: before the first
    losses: tuple[float, ...]  # of the epochs so far
    arrays: State

    def save(self, path: Path, key: AtRestKey) -> None:
        """Write the file; an older one is replaced atomically."""
        content = BytesIO()
        np.savez(content, **self.arrays)  # type: ignore[arg-type]
        arrays = content.getbuffer()
        parts = [bytes(arrays[start : start + PART_BYTES]) for start in range(0, len(arrays), PART_BYTES)]
        facts = {"settings": self.settings, "epoch": self.epoch, "losses": self.losses, "parts": len(parts)}
        salt = secrets.token_bytes(SALT_BYTES)
        sealer = key.sealer(salt)
        records = [sealer.seal(_KIND, number, part) for number, part in enumerate([json.dumps(facts).encode(), *parts])]
        framed = [len(record).to_bytes(8, "little") + record for record in records]
        replace(path, MAGIC, salt, *framed)

    @classmethod
    def load(cls, path: Path, key: AtRestKey) -> Self:
        """Read a file; raise `ModelError` if it is missing, damaged, or sealed under another domain's key."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"cannot read the checkpoint {path}: {error.strerror}") from None
        salt, rest = content[len(MAGIC) : len(MAGIC) + SALT_BYTES], content[len(MAGIC) + SALT_BYTES :]
        if content[: len(MAGIC)] != MAGIC or len(salt) < SALT_BYTES:
            raise ModelError(f"{path} is no checkpoint of fedpp: name the folder that training wrote into")
        try:
            first, *parts = _opened(rest, key.sealer(salt))
            facts = json.loads(first)
            whole = {facts["parts"]: b"".join(parts)}[len(parts)]
            with np.load(BytesIO(whole), allow_pickle=False) as arrays:
                state = {name: arrays[name] for name in arrays.files}
            return cls(facts["settings"], facts["epoch"], tuple(facts["losses"]), state)
        except (ValueError, KeyError, TypeError, BadZipFile, EOFError):
            raise ModelError(
                f"{path} is damaged, or sealed under another domain's at-rest key: take the folder of its domain, "
                "or train again"
            ) from None


def _opened(content: bytes, sealer: DatasetSealer) -> list[bytes]:
    records: list[bytes] = []
    start = 0
    while start < len(content):
        length = int.from_bytes(content[start : start + 8], "little")
        sealed = content[start + 8 : start + 8 + length]
        record = sealer.unseal(_KIND, len(records), sealed)
        if record is None or len(sealed) != length:
            raise ValueError
        records.append(record)
        start += 8 + length
    return records
