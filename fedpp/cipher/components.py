"""The algebra on separate tensors, in which networks compute on ciphertext.

A ciphertext tensor is a tuple of n ordinary tensors of the plaintext's shape: coordinates in a fixed basis B, `x = s B`
for slots s. Layout decides the speed: with separate tensors every kernel is an ordinary one.

* n = 2, *components*: a block is `a I + b N` with N traceless and `N^2 = d I`. With slots s1 and s2,
  `a = (s1 + s2) / 2` and `b = (s1 - s2) / (2 sqrt d)`. A product takes three real products (Karatsuba) instead of
  four; two are possible only in the slots themselves, which would be decryption of the network.
* any other n, *rows*: `B = SK`, and a product takes the n^2 products of the structure constants.

This module does not import TensorFlow: it uses only `+`, `-` and `*` by Python numbers, and the bilinear kernel (a
convolution, a matrix product) is an argument, so the same code runs on NumPy arrays and on tensors.
"""

import operator
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from fedpp.cipher.algebra import Matrix
from fedpp.key_material import Redacted

Tensor = Any  # a NumPy array or a TensorFlow tensor
Ciphertext = tuple[Tensor, ...]  # n tensors of one shape
Slots = tuple[Tensor, ...]


class Algebra(Redacted):
    """The commutative algebra of the ciphertexts under one key matrix R `[n, n]`; its maps are key material."""

    instead = "make it again from its evaluation key"

    def __init__(self, r: Matrix, domain: str = "") -> None:
        """Fix the basis; R must be invertible. `domain` is the fingerprint of the key's domain, for messages."""
        self.n, self.domain = len(r), domain
        self._basis = _component_basis(r) if self.n == 2 else np.linalg.inv(r)
        self._inverse = np.linalg.inv(self._basis)
        self._from_rows = r @ self._basis
        self._to_rows = np.linalg.inv(self._from_rows)
        self._r, self._sk = r, exact_inverse(r)
        self._correction = self._basis.T @ self._basis
        self._root_d = float(self._basis[0, 0] / self._basis[0, 1]) if self.n == 2 else 1.0
        self.d = self._root_d**2  # of the component form; 1 where there is none
        # structure[j, i] = the coordinates of the product of basis elements i and j
        self._structure = np.einsum("ik,jk,kl->jil", self._inverse, self._inverse, self._basis)

    @classmethod
    def plaintext(cls, domain: str = "") -> Self:
        """Return the algebra of plain numbers: n = 1, every map is the identity."""
        return cls(np.ones((1, 1)), domain)

    def from_rows(self, rows: Tensor) -> Ciphertext:
        """Take rows `[..., n]` apart into n tensors `[...]`. Law: `to_rows(from_rows(c)) == stack(c)`."""
        return self._map(tuple(rows[..., j] for j in range(self.n)), self._from_rows)

    def to_rows(self, x: Ciphertext) -> tuple[Tensor, ...]:
        """Return the n columns of the row form, to be stacked on a last axis."""
        return self._map(x, self._to_rows)

    def to_slots(self, x: Ciphertext) -> Slots:
        """Return the n slots; the first is the message. Law: `from_slots(to_slots(x)) == x`."""
        if self.n == 2:
            difference = x[1] * self._root_d
            return (x[0] + difference, x[0] - difference)
        return self._map(x, self._inverse)

    def from_slots(self, slots: Slots) -> Ciphertext:
        """Return the ciphertext of n slots."""
        if self.n == 2:
            return ((slots[0] + slots[1]) * 0.5, (slots[0] - slots[1]) * (0.5 / self._root_d))
        return self._map(slots, self._basis)

    def decrypted(self, rows: Matrix) -> Slots:
        """Return the n slots of rows `[..., n]`. Law: `decrypted(rows) == to_slots(from_rows(rows))`, up to rounding.

        This and `encrypted` give the same bits on every machine; the maps by way of components do not.
        """
        return self._map(tuple(rows[..., j] for j in range(self.n)), self._r)

    def encrypted(self, slots: Slots) -> Matrix:
        """Return the rows `[..., n]` of n slots, NumPy arrays. Law: `decrypted(encrypted(s)) == s`, up to rounding."""
        return np.stack(self._map(slots, self._sk), axis=-1)

    def public(self, values: Tensor) -> Ciphertext:
        """Return the ciphertext of public numbers, whose row is `m (1, .., 1) SK`. Law: every slot is the number."""
        return self.from_slots((values,) * self.n)

    def add(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        """Return the sum. Law: `to_slots(add(x, y)) == to_slots(x) + to_slots(y)`."""
        return tuple(a + b for a, b in zip(x, y, strict=True))

    def product(
        self, x: Ciphertext, w: Ciphertext, bilinear: Callable[[Tensor, Tensor], Tensor] = operator.mul
    ) -> Ciphertext:
        """Return x * w through any bilinear kernel. Law: the slots are `bilinear(x_k, w_k)`, slot by slot."""
        if self.n == 2:
            p, q, r = self.three_products(x, w, bilinear)
            return (p + q * 2.0, (r - q - p * 2.0) * (1.0 / self._root_d))
        if self.n == 1:
            return (bilinear(x[0], w[0]),)
        blocks = [[self._combine(w, self._structure[:, i, k]) for i in range(self.n)] for k in range(self.n)]
        return tuple(sum((bilinear(x[i], row[i]) for i in range(1, self.n)), bilinear(x[0], row[0])) for row in blocks)

    def product_slots(
        self, x: Ciphertext, w: Ciphertext, bilinear: Callable[[Tensor, Tensor], Tensor] = operator.mul
    ) -> Slots:
        """Return the slots of x * w, where a function follows. Law: `product_slots == to_slots(product)`.

        On large tensors additions cost more than products do, and this needs the fewest additions.
        """
        if self.n == 2:
            p, q, r = self.three_products(x, w, bilinear)
            return (r + (q - p), (p + q) * 3.0 - r)
        return self.to_slots(self.product(x, w, bilinear))

    def three_products(
        self, x: Ciphertext, w: Ciphertext, bilinear: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `p = a1 a2`, `q = d b1 b2 / 2` and `r = 2 (a1 + t b1)(a2 + t b2)` at `t = sqrt(d) / 2`.

        Karatsuba with another point than 1: all factors are on the weights, the smaller tensors, and no sum is a slot
        (at `t = sqrt d` it would be the message itself).
        """
        point = self._root_d / 2
        p = bilinear(x[0], w[0])
        q = bilinear(x[1], w[1] * (self.d / 2))
        r = bilinear(x[0] + x[1] * point, (w[0] + w[1] * point) * 2.0)
        return p, q, r

    def apply(self, function: Callable[..., Tensor], *xs: Ciphertext) -> Ciphertext:
        """Apply a function to the slots. Law: `to_slots(apply(f, x)) == f(to_slots(x))`."""
        slots = zip(*(self.to_slots(x) for x in xs), strict=True)
        return self.from_slots(tuple(function(*values) for values in slots))

    def gradient(self, g: Ciphertext) -> Ciphertext:
        """Convert the derivative of a sum of slots by the coordinates to the ciphertext of the gradient.

        For rows that is `g (SK^T SK)`; for any basis `g (B^T B)`, diagonal for components.
        Law: the slots of the result are the derivatives by the slots.
        """
        return self._map(g, self._correction)

    def _map(self, x: tuple[Tensor, ...], matrix: Matrix) -> tuple[Tensor, ...]:
        return tuple(self._combine(x, matrix[:, k]) for k in range(self.n))

    def _combine(self, x: tuple[Tensor, ...], factors: Matrix) -> Tensor:
        if self.n == 1:
            return x[0]
        return sum((v * float(f) for f, v in zip(factors[1:], x[1:], strict=True)), x[0] * float(factors[0]))


def exact_inverse(r: Matrix) -> Matrix:
    """Return `SK = R^-1`, the same bits on every machine. Law: `exact_inverse(r) @ r` is the identity, up to rounding.

    Gauss-Jordan elimination in Python floats, one IEEE operation at a time: linear algebra libraries differ in the last
    place. R must be invertible.
    """
    n = len(r)
    table = [[*map(float, row), *(float(i == k) for k in range(n))] for i, row in enumerate(r)]
    for k in range(n):
        pivot = max(range(k, n), key=lambda i: abs(table[i][k]))
        table[k], table[pivot] = table[pivot], table[k]
        table[k] = [x / table[k][k] for x in table[k]]
        for i in range(n):
            if i != k:
                factor = table[i][k]
                table[i] = [x - factor * y for x, y in zip(table[i], table[k], strict=True)]
    return np.array([row[n:] for row in table])


def _component_basis(r: Matrix) -> Matrix:
    """Return B `[2, 2]` for N in the direction of `R diag(1, -1) SK`.

    N is scaled half-way (geometrically) between unit eigenvalues and unit norm, so that d depends on the key and
    rounding stays small.
    """
    n0 = r @ np.diag([1.0, -1.0]) @ np.linalg.inv(r)
    root_d = float(np.sqrt(np.sqrt(2.0) / np.linalg.norm(n0)))
    return np.array([[0.5, 0.5 / root_d], [0.5, -0.5 / root_d]])
