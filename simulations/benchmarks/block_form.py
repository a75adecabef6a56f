"""Block form of the cipher, as in the literature: every number is an n x n matrix, `A(p) = R diag(p) R^-1`.

It serves as a comparison in `bench_step`. A ciphertext is the n^2 entries of its matrix, row by row, each in a tensor
of its own; a product is n^3 ordinary products. Layers, loss and optimizer are those of the library.
"""

import operator
from collections.abc import Callable

import numpy as np

from fedpp.cipher.algebra import Matrix, to_block
from fedpp.cipher.components import Algebra, Ciphertext, Slots, Tensor


class BlockForm(Algebra):
    """Algebra with n^2 tensors a ciphertext and n slots; rows have n^2 columns, the entries of the matrix."""

    def __init__(self, r: Matrix) -> None:
        """Take the key's matrix R `[n, n]`."""
        super().__init__(r)
        self._r = r
        self.side = self.n
        self.n = self.side**2
        inverse = np.linalg.inv(r)
        # entries[k] is the matrix of the k-th unit of slots, and the slots are the diagonal of `R^-1 A R`
        self._entries = np.einsum("ik,kj->kij", r, inverse).reshape(self.side, -1)
        self._diagonal = np.einsum("ki,jk->ijk", inverse, r).reshape(-1, self.side)

    def encrypt(self, rows: Matrix) -> Matrix:
        """Convert rows `[..., n]` of Algorithm 1 into this form, `[..., n^2]`."""
        return to_block(rows, self._r).reshape(*rows.shape[:-1], self.n)

    def from_rows(self, rows: Tensor) -> Ciphertext:
        """Split the entries into tensors."""
        return tuple(rows[..., j] for j in range(self.n))

    def to_rows(self, x: Ciphertext) -> tuple[Tensor, ...]:
        """Return the entries."""
        return x

    def to_slots(self, x: Ciphertext) -> Slots:
        """Return the slots. Law: `to_slots(from_slots(s)) == s`."""
        return _mapped(x, self._diagonal)

    def from_slots(self, slots: Slots) -> Ciphertext:
        """Return the matrix of the slots."""
        return _mapped(slots, self._entries)

    def public(self, values: Tensor) -> Ciphertext:
        """Return the numbers times the unit matrix."""
        return self.from_slots((values,) * self.side)

    def product(
        self, x: Ciphertext, w: Ciphertext, bilinear: Callable[[Tensor, Tensor], Tensor] = operator.mul
    ) -> Ciphertext:
        """Return the matrix product. Law: the slots are `bilinear(x_k, w_k)`, slot by slot."""
        n, places = self.side, range(self.side)
        return tuple(_sum([bilinear(x[i * n + k], w[k * n + j]) for k in places]) for i in places for j in places)

    def product_slots(
        self, x: Ciphertext, w: Ciphertext, bilinear: Callable[[Tensor, Tensor], Tensor] = operator.mul
    ) -> Slots:
        """Return the slots of the product."""
        return self.to_slots(self.product(x, w, bilinear))

    def gradient(self, g: Ciphertext) -> Ciphertext:
        """Return the matrix whose slots are the derivatives by the slots."""
        return self.from_slots(_mapped(g, self._entries.T))


def _mapped(x: tuple[Tensor, ...], matrix: Matrix) -> tuple[Tensor, ...]:
    return tuple(_sum([part * float(f) for part, f in zip(x, column, strict=True)]) for column in matrix.T)


def _sum(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])
