"""Key rotation: re-encrypt a dataset from one key epoch of a domain to a later one.

A row `c = p R^-1` becomes `c (R R'^-1) = p R'^-1`: one n x n matrix, the *key switch*, maps rows of the old key epoch
to rows of the new one, and no message is ever in clear, not even in memory. Decoys do not change. With `more-frame`,
rows `C = P K` become `C K^T K'`: they are in clear in memory for a moment, and never on disk.

Whoever knows the key switch and one epoch's R, or a message in both epochs, can compute the other R: a rotation
protects what is encrypted from now on against a key that leaked before, not what was encrypted before.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpp.config.run_config import SPLITS
from fedpp.dataset.dataset_manifest import DatasetManifest, SequenceRecord
from fedpp.dataset.dataset_writer import DatasetWriter
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import DomainMismatchError
from fedpp.keys.frame_cipher import FrameCipher, FrameLayout
from fedpp.keys.key_domain import KeyDomain

Rows = NDArray[np.floating]


class KeySwitch:
    """Map from ciphertexts of an old key epoch of a domain to those of a new one; it is key material."""

    def __init__(self, old: KeyDomain, new: KeyDomain) -> None:
        """Take two key epochs; raise `DomainMismatchError` if the second does not follow the first."""
        ours, theirs = old.card(), new.card()
        if (ours.id, ours.scheme, ours.n) != (theirs.id, theirs.scheme, theirs.n) or theirs.key_epoch <= ours.key_epoch:
            raise DomainMismatchError(
                f"key epoch {theirs.key_epoch} of domain {theirs.fingerprint[:16]} does not follow key epoch "
                f"{ours.key_epoch} of {ours.fingerprint[:16]}: name the older folder of the same domain first"
            )
        self.old, self.new = old, new
        self._matrix = old.matrix() @ np.linalg.inv(new.matrix())

    def rows(self, rows: Rows) -> Rows:
        """Return rows `[..., n]` of the new key epoch, in their dtype.

        Law: `decrypt(new, rows(c)) == decrypt(old, c)`, in every slot.
        """
        switched: Rows = (rows.astype(np.float64) @ self._matrix).astype(rows.dtype)
        return switched

    def stem(self, kernel: Rows, patch: int) -> Rows:
        """Return the kernel `[k, k, patch^2 channels, filters]` for patches mixed under the new key.

        Law: `C' stem(w) == C w` where C are patches mixed under the old key, and C' the same under the new one.
        """
        size = kernel.shape[2]
        turn = self.new.frame_key("patches", size).T @ self.old.frame_key("patches", size)
        turned: Rows = np.einsum("ij,xyjf->xyif", turn, kernel.astype(np.float64)).astype(kernel.dtype)
        return turned


def reencrypt(
    source: EncryptedDataset, path: Path, switch: KeySwitch, progress: Callable[[], object] = lambda: None
) -> None:
    """Re-encrypt a dataset for the new key epoch, one sequence at a time; `progress` is called after each.

    Pseudonyms become the new epoch's. Splits, lengths and the order of the sequences stay, and a dataset that was
    sealed at rest is sealed again.
    """
    m = source.manifest
    source.require_domain(switch.old.card().fingerprint)
    frames = _frames(switch, m)
    at_rest = switch.new.at_rest_key() if m.at_rest else None
    encrypted_gaps = m.gaps == "encrypted"
    with DatasetWriter(
        path, switch.new.card(), m.task, m.dtype, encrypted_gaps=encrypted_gaps, at_rest=at_rest
    ) as writer:
        for index, row in enumerate(source.sequences):
            at, length = np.array([index]), min(int(row["length"]), m.frames)
            label = switch.rows(source.labels(at)[0]) if m.classes else None
            gaps = source.gaps(at)[0, :length] if m.gaps != "none" else None
            if gaps is not None and m.gaps == "encrypted":
                gaps = switch.rows(gaps)
            writer.add(_renewed(row, switch), frames(source.frames(at)[0, :length]), label, gaps)
            progress()


def _renewed(row: np.void, switch: KeySwitch) -> SequenceRecord:
    name, patient = (
        switch.new.renewed(kind, row[column].decode(), switch.old.key_epoch)
        for kind, column in (("sequence", "id"), ("patient", "patient"))
    )
    return SequenceRecord(name, patient, int(row["length"]), SPLITS[row["split"]])


def _frames(switch: KeySwitch, manifest: DatasetManifest) -> Callable[[Rows], Rows]:
    if manifest.scheme == "more":
        return switch.rows
    layout: FrameLayout = "patches" if manifest.patch else "rows"
    old, new = (FrameCipher(domain, manifest.dtype, layout, manifest.patch) for domain in (switch.old, switch.new))
    return lambda rows: new.frames("", old.decrypt_frames(rows))
