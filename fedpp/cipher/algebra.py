"""The MORE cipher in NumPy: the paper's Algorithm 1 (rows) and the literature's blocks, and how they are one.

Source: Kolhar & Aldossary, *AI* 2023, 4(3), 706-720, Algorithm 1. It prints decryption as `P = C SK`, which
does not invert `C = P SK`; the inverse is `P = C R`, and that is what stands here. The scheme is Kipnis &
Hibshoosh 2012 (ePrint 2012/637). It is not a secure cipher over floating point: see docs/threats.md.

A value m is packed with n - 1 noise values into n *slots* `p = (m, r_2 .. r_n)`. Shapes: slots and rows
`[..., n]`, blocks `[..., n, n]`, the key matrix R and `SK = R^-1` `[n, n]`.
"""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.floating]


def inverse(r: Matrix) -> Matrix:
    """Return `SK = R^-1`, to the bit the same on every machine. Law: `inverse(r) @ r` is the identity, up to rounding.

    Gauss-Jordan elimination in Python's floats, one IEEE operation at a time: libraries of linear algebra differ in the
    last place. R must be invertible.
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


def encrypt(slots: Matrix, r: Matrix) -> Matrix:
    """Pack slots into rows: `c = p SK`. Law: `decrypt(encrypt(p, r), r) == p`."""
    rows: Matrix = slots @ np.linalg.inv(r)
    return rows


def decrypt(rows: Matrix, r: Matrix) -> Matrix:
    """Return slots `p = c R`; slot 0 is the message. Law: `decrypt(x + y) == decrypt(x) + decrypt(y)`."""
    slots: Matrix = rows @ r
    return slots


def structure_constants(r: Matrix) -> Matrix:
    """Return `E [n, n, n]`, `E_j = R diag(R[j, :]) SK`: the blocks of the unit rows."""
    constants: Matrix = np.einsum("ik,jk,kl->jil", r, r, np.linalg.inv(r))
    return constants


def to_block(rows: Matrix, r: Matrix) -> Matrix:
    """Return blocks `A(p) = R diag(p) SK = sum_j c_j E_j`. Law: `from_block(to_block(c, r), r) == c`."""
    blocks: Matrix = np.einsum("...j,jil->...il", rows, structure_constants(r))
    return blocks


def from_block(blocks: Matrix, r: Matrix) -> Matrix:
    """Return rows `c = u^T A` with `u = SK^T 1`, since `u^T R` is the row of ones."""
    rows: Matrix = np.linalg.inv(r).sum(axis=0) @ blocks
    return rows


def multiply(x: Matrix, y: Matrix, r: Matrix) -> Matrix:
    """Multiply: `c_x (sum_j c_y,j E_j)`. Law: `decrypt(x * y) == decrypt(x) decrypt(y)`."""
    rows: Matrix = np.einsum("...i,...il->...l", x, to_block(y, r))
    return rows
