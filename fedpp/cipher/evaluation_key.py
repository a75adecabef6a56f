"""Evaluation key: R, with which a trainer computes on ciphertexts, and with which they can be decrypted.

Whoever holds it can decrypt every row of the domain. It is for the trainer of a member site, in a folder of its own.
The coordinator does not get it, but can solve for it from rows of weights and labels (docs/explanation/threats.md).
"""

import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from fedpp.cipher.algebra import Matrix
from fedpp.cipher.components import Algebra
from fedpp.cipher.key_file import KeyInFile
from fedpp.errors import KeyFileError


class EvaluationKey(KeyInFile):
    """R `[n, n]` of the domain with this fingerprint."""

    __slots__ = ("_r",)
    file_format = "fedpp-evaluation-key-1"
    kind = "evaluation key"
    usual_name = "trainer/domain.eval"

    def __init__(self, domain: str, r: Matrix) -> None:
        super().__init__(domain)
        self._r = r

    @property
    def matrix(self) -> Matrix:
        """Return R `[n, n]`: this is key material."""
        return self._r

    @property
    def n(self) -> int:
        """Return the number of slots."""
        return len(self._r)

    def algebra(self) -> Algebra:
        """Return the algebra of the ciphertexts under this key."""
        return Algebra(self._r, self._domain)

    def weight_seed(self, seed: int, slot: int) -> int:
        """Return the seed of a slot's initial weights: reproducible with the key, unknown without it."""
        digest = hmac.digest(self._r.tobytes(), f"initial weights {seed} of slot {slot}".encode(), "sha256")
        return int.from_bytes(digest[:8], "little")

    def values(self) -> dict[str, Any]:
        """Return R as JSON has it, its numbers exactly."""
        return {"r": [[x.hex() for x in row] for row in self._r]}

    @classmethod
    def of_values(cls, domain: str, values: dict[str, Any], path: Path) -> Self:
        """Return the key of what `values` returned; raise `KeyFileError` for a matrix without inverse."""
        return cls(domain, _matrix(values["r"], path))

    def __eq__(self, other: object) -> bool:
        """Compare by domain and R."""
        return isinstance(other, EvaluationKey) and self._domain == other._domain and np.array_equal(self._r, other._r)

    def __hash__(self) -> int:
        """Hash the domain alone."""
        return hash(self._domain)


@dataclass(frozen=True)
class PlainNumbers:
    """Stand-in for an evaluation key with `more-frame`, whose weights and labels are plain numbers, n = 1."""

    domain: str  # fingerprint

    @property
    def matrix(self) -> Matrix:
        """Return R = [[1]]."""
        return np.ones((1, 1))

    @property
    def n(self) -> int:
        """Return the number of slots, 1."""
        return 1

    def algebra(self) -> Algebra:
        """Return the algebra of plain numbers."""
        return Algebra.plaintext(self.domain)

    def weight_seed(self, seed: int, slot: int) -> int:
        """Return the seed itself: nothing is hidden, and slot 0 is the only one."""
        return seed


AnyKey = EvaluationKey | PlainNumbers


def _matrix(rows: list[list[str]], path: Path) -> Matrix:
    r = np.array([[float.fromhex(x) for x in row] for row in rows])
    if r.ndim != 2 or r.shape[0] != r.shape[1] or not np.isfinite(np.linalg.cond(r)):
        raise KeyFileError(f"{path} has no invertible matrix: restore it")
    return r
