"""The laws of rows and components, with the literature's blocks as their oracle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedpp.cipher import algebra
from fedpp.cipher.components import Algebra, exact_inverse
from fedpp.keys.key_domain import KeyDomain

SIZES = pytest.mark.parametrize("n", [2, 3, 4])
INVERSE = [
    ["0x1.510f26c0c01bep+1", "-0x1.7728624cc0867p+1", "-0x1.3a98e11b6b5dap+0"],
    ["0x1.f22d3a7d4d123p-1", "-0x1.192b7b178f97dp+1", "-0x1.237b2a4948c1cp-2"],
    ["0x1.1cde74c519d90p+0", "-0x1.008265c673dd1p+1", "-0x1.b9e009abd1798p+0"],
]
VALUES = st.floats(-10, 10, width=32)


def matrix(n: int, number: int = 0) -> np.ndarray:
    return KeyDomain.of_secret(bytes([number] * 32), n=n).matrix()


def slots(n: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, (5, n), elements=VALUES)


def block_oracle(p: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Return R diag(p) R^-1, block by block."""
    return np.stack([r @ np.diag(row) @ np.linalg.inv(r) for row in p])


@SIZES
@given(st.data())
def test_decrypt_inverts_encrypt(n: int, data: st.DataObject):
    """decrypt(encrypt(p)) == p, and the row form is Algorithm 1's P SK."""
    p, r = data.draw(slots(n)), matrix(n)
    rows = algebra.encrypt(p, r)
    np.testing.assert_allclose(rows @ r, p, atol=1e-12)
    np.testing.assert_allclose(algebra.decrypt(rows, r), p, atol=1e-12)


@SIZES
@given(st.data())
def test_rows_and_blocks_are_one(n: int, data: st.DataObject):
    """to_block gives R diag(p) SK, and from_block takes it back to the row."""
    p, r = data.draw(slots(n)), matrix(n)
    rows = algebra.encrypt(p, r)
    blocks = algebra.to_block(rows, r)
    np.testing.assert_allclose(blocks, block_oracle(p, r), atol=1e-10)
    np.testing.assert_allclose(algebra.from_block(blocks, r), rows, atol=1e-10)


@SIZES
@given(st.data())
def test_multiply_is_the_product_of_blocks(n: int, data: st.DataObject):
    """The row of a product is the row of the matrix product of the blocks, and decrypts to the product."""
    p, q, r = data.draw(slots(n)), data.draw(slots(n)), matrix(n)
    product = algebra.multiply(algebra.encrypt(p, r), algebra.encrypt(q, r), r)
    np.testing.assert_allclose(algebra.to_block(product, r), block_oracle(p, r) @ block_oracle(q, r), atol=1e-8)
    np.testing.assert_allclose(algebra.decrypt(product, r), p * q, atol=1e-9)


@SIZES
@given(st.data())
def test_components_follow_the_blocks(n: int, data: st.DataObject):
    """Sum, product and function on separate tensors are those of the blocks; rows go in and out unchanged."""
    p, q, r = data.draw(slots(n)), data.draw(slots(n)), matrix(n)
    a = Algebra(r)
    rows_p, rows_q = algebra.encrypt(p, r), algebra.encrypt(q, r)
    x, y = a.from_rows(rows_p), a.from_rows(rows_q)

    def rows(ciphertext: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.stack(a.to_rows(ciphertext), axis=-1)

    np.testing.assert_allclose(rows(x), rows_p, atol=1e-12)
    np.testing.assert_allclose(np.stack(a.to_slots(x), -1), p, atol=1e-11)
    np.testing.assert_allclose(rows(a.from_slots(a.to_slots(x))), rows_p, atol=1e-11)
    np.testing.assert_allclose(rows(a.add(x, y)), algebra.encrypt(p + q, r), atol=1e-11)
    product = algebra.from_block(block_oracle(p, r) @ block_oracle(q, r), r)
    np.testing.assert_allclose(rows(a.product(x, y)), product, atol=1e-8)
    np.testing.assert_allclose(np.stack(a.product_slots(x, y), -1), p * q, atol=1e-8)
    np.testing.assert_allclose(rows(a.apply(np.tanh, x)), algebra.encrypt(np.tanh(p), r), atol=1e-10)
    np.testing.assert_allclose(np.stack(a.to_slots(a.apply(np.maximum, x, y)), -1), np.maximum(p, q), atol=1e-10)


@SIZES
@given(st.data())
def test_a_public_number_is_every_slot(n: int, data: st.DataObject):
    """Every slot of public(m) is m, its row is m (1, .., 1) SK, and multiplying by it scales every slot."""
    values, p, r = data.draw(slots(n))[:, 0], data.draw(slots(n)), matrix(n)
    a = Algebra(r)
    public = a.public(values)
    np.testing.assert_allclose(np.stack(a.to_slots(public), -1), np.stack([values] * n, -1), atol=1e-12)
    row = np.ones(n) @ np.linalg.inv(r)
    np.testing.assert_allclose(np.stack(a.to_rows(public), -1), np.outer(values, row), atol=1e-11)
    scaled = a.product_slots(public, a.from_slots(tuple(p.T)))
    np.testing.assert_allclose(np.stack(scaled, -1), values[:, None] * p, atol=1e-8)


@SIZES
def test_gradient_correction_is_that_of_the_rows(n: int):
    """The derivative of sum(f(slots)) by the row, times SK^T SK, decrypts to the derivative by the slots."""
    r, a = matrix(n), Algebra(matrix(n))
    p = np.random.default_rng(0).normal(size=n)
    x = np.stack(a.from_slots(tuple(p)))
    step = 1e-6

    def loss(coordinates: np.ndarray) -> float:
        return float(np.sum(np.sin(a.to_slots(tuple(coordinates)))))

    numeric = [(loss(x + step * e) - loss(x - step * e)) / (2 * step) for e in np.eye(n)]
    np.testing.assert_allclose(a.to_slots(a.gradient(tuple(numeric))), np.cos(p), atol=1e-8)
    sk = np.linalg.inv(r)
    by_row = r @ np.cos(p)  # d sum(sin(c R)) / dc
    np.testing.assert_allclose(by_row @ sk.T @ sk @ r, np.cos(p), atol=1e-8)


def test_a_product_takes_three_kernels():
    """For n = 2 the bilinear kernel is called three times, and none of its inputs is a slot."""
    r, calls = matrix(2), []
    a = Algebra(r)
    x, w = (a.from_slots(tuple(v)) for v in np.random.default_rng(1).normal(size=(2, 2, 6)))

    def kernel(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        calls.append(left)
        return left * right

    a.product(x, w, kernel)
    assert len(calls) == 3
    for used in calls:
        for slot in a.to_slots(x):
            assert abs(np.corrcoef(used, slot)[0, 1]) < 1 - 1e-6


def test_plaintext_algebra_is_the_identity():
    """With n = 1 every map leaves a number as it is, to the bit."""
    a, x = Algebra.plaintext(), (np.array([1.1, -2.2]),)
    for mapped in (a.to_slots(x), a.from_slots(x), a.gradient(x), a.to_rows(x)):
        np.testing.assert_array_equal(mapped[0], x[0])


@pytest.mark.parametrize("n", range(1, 9))
@given(st.integers(0, 255))
def test_the_exact_inverse_is_the_inverse(n: int, number: int):
    """For every size of key it inverts R, as LAPACK does up to rounding; zeros on the diagonal are no obstacle."""
    r = np.ones((1, 1)) if n == 1 else matrix(n, number)
    np.testing.assert_allclose(exact_inverse(r), np.linalg.inv(r), rtol=0, atol=1e-12)
    np.testing.assert_allclose(exact_inverse(r) @ r, np.eye(n), rtol=0, atol=1e-12)
    turned = np.roll(np.eye(n), 1, axis=0) * 2.0
    np.testing.assert_array_equal(exact_inverse(turned), turned.T / 4)


def test_the_exact_inverse_has_the_same_bits_everywhere():
    """Of one key, its numbers are these."""
    found = [[value.hex() for value in row] for row in exact_inverse(matrix(3, 7)).tolist()]
    assert found == INVERSE


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@given(st.data())
def test_rows_and_slots_have_one_map(n: int, data: st.DataObject):
    """Both ways, Algorithm 1 and decryption, are the cipher's, and agree with the way over components."""
    r = np.ones((1, 1)) if n == 1 else matrix(n)
    of, p = Algebra(r), data.draw(slots(n))
    rows = of.encrypted(tuple(p.T))
    np.testing.assert_allclose(rows, algebra.encrypt(p, r), rtol=0, atol=1e-11)
    np.testing.assert_allclose(np.stack(of.decrypted(rows), axis=-1), p, rtol=0, atol=1e-11)
    for one, other in zip(of.decrypted(rows), of.to_slots(of.from_rows(rows)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)
