"""The MORE cipher in NumPy: Algorithm 1 of the paper (rows), the literature's blocks, and how the two are one.

Paper: Kolhar & Aldossary, *AI* 2023, 4(3), 706-720. It prints decryption as `P = C SK`, a misprint that does not invert
`C = P SK`; the inverse is `P = C R`. Scheme: Kipnis & Hibshoosh 2012 (ePrint 2012/637). It is not a secure cipher over
floating point: see docs/explanation/threats.md.

A domain's key is an invertible R `[n, n]`, with `SK = R^-1`. A value m is packed with n - 1 noise values (decoys) into
n *slots* `p = (m, r_2 .. r_n)`, and encrypted to a *row* `c = p SK`; both are `[..., n]`. The *block* of the same
slots is `A(p) = R diag(p) SK`, `[..., n, n]`: blocks add and multiply as their slots do, so ciphertexts under one key
are a commutative algebra.
"""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.floating]


def encrypt(slots: Matrix, r: Matrix) -> Matrix:
    """Encrypt slots to rows `c = p SK`. Law: `decrypt(encrypt(p, r), r) == p`."""
    return np.asarray(slots @ np.linalg.inv(r))


def decrypt(rows: Matrix, r: Matrix) -> Matrix:
    """Decrypt rows to slots `p = c R`; slot 0 is the message. Law: `decrypt(x + y) == decrypt(x) + decrypt(y)`."""
    return np.asarray(rows @ r)


def structure_constants(r: Matrix) -> Matrix:
    """Return `E [n, n, n]`, `E_j = R diag(R[j, :]) SK`, the blocks of the unit rows. Law: `A(p) == sum_j c_j E_j`."""
    return np.asarray(np.einsum("ik,jk,kl->jil", r, r, np.linalg.inv(r)))


def to_block(rows: Matrix, r: Matrix) -> Matrix:
    """Return the blocks `sum_j c_j E_j` of rows. Law: `from_block(to_block(c, r), r) == c`."""
    return np.asarray(np.einsum("...j,jil->...il", rows, structure_constants(r)))


def from_block(blocks: Matrix, r: Matrix) -> Matrix:
    """Return the rows `u^T A` of blocks, with `u = SK^T 1`: `u^T R` is the row of ones, so `u^T A(p) == p SK`."""
    return np.asarray(np.linalg.inv(r).sum(axis=0) @ blocks)


def multiply(x: Matrix, y: Matrix, r: Matrix) -> Matrix:
    """Multiply rows: `c_x (sum_j c_y,j E_j)`. Law: `decrypt(multiply(x, y)) == decrypt(x) decrypt(y)`."""
    return np.asarray(np.einsum("...i,...il->...l", x, to_block(y, r)))
