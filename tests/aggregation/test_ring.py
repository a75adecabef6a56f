"""Fixed point in a ring, with Python's own integers and fractions as its oracle."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedpp.aggregation.ring import Ring
from fedpp.arrays import PIECE
from fedpp.config.run_config import MAX_BOUND, MAX_EXAMPLES, MAX_SITES
from fedpp.errors import MaskError

BITS = st.sampled_from([32, 64])
EXAMPLES = st.one_of(st.integers(1, MAX_EXAMPLES), st.just(MAX_EXAMPLES), st.just(1))
SITES = st.one_of(st.integers(1, 100), st.just(MAX_SITES))
BOUNDS = st.one_of(st.floats(2.0**-20, MAX_BOUND), st.sampled_from([2.0**-20, 1.0, MAX_BOUND]))
SMALL = Ring(32, examples=1000, sites=10, bound=8.0)
# Examples times bound times 2^62 are 2^63 less 2^9, which is no float64, and rounds to 2^63.
NEAR = (64, 3, 2, ((2**54 - 1) // 3) / 2**53)


@st.composite
def rings(draw: st.DrawFn) -> Ring:
    try:
        return Ring(draw(BITS), draw(EXAMPLES), draw(SITES), draw(BOUNDS))
    except MaskError as error:
        assert "does not fit" in str(error)
        assume(False)
        raise


def values_of(ring: Ring, shape: st.SearchStrategy) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, shape, elements=st.floats(-ring.bound, ring.bound))


def floats_of(ring: Ring, shape: st.SearchStrategy) -> st.SearchStrategy[np.ndarray]:
    """Return a strategy for values of float32 and of float64, among them the largest within the bound."""

    def values(dtype: type[np.floating]) -> st.SearchStrategy[np.ndarray]:
        most = dtype(ring.bound)
        largest = float(most if float(most) <= ring.bound else np.nextafter(most, dtype(0)))
        some = st.floats(-largest, largest, width=8 * most.itemsize)
        return arrays(dtype, shape, elements=some | st.sampled_from([largest, -largest]))

    return st.sampled_from([np.float32, np.float64]).flatmap(values)


def signed(words: np.ndarray) -> list[int]:
    """Return encoded values as Python integers, in two's complement."""
    bits = 8 * words.itemsize
    return [word - 2**bits if word >= 2 ** (bits - 1) else word for word in words.reshape(-1).tolist()]


def split(total: int, parts: int) -> list[int]:
    return [total // parts + (1 if part < total % parts else 0) for part in range(parts)]


@given(BITS, EXAMPLES, SITES, BOUNDS)
@example(*NEAR)
def test_the_fraction_is_the_largest_that_holds_every_sum(bits: int, examples: int, sites: int, bound: float):
    """With f bits, the largest sum is within the ring, its rounding included; with f + 1 it might not be."""
    try:
        ring = Ring(bits, examples, sites, bound)
    except MaskError:
        assert Fraction(bound) * examples > 2 ** (bits - 1) - 1 - sites - 2**10
        return
    largest = Fraction(bound) * examples * Fraction(2) ** ring.fraction
    assert largest * (1 + Fraction(1, 2**53)) + Fraction(sites, 2) < 2 ** (bits - 1)
    assert 2 * largest > 2 ** (bits - 1) - 1 - sites - 2**10


@given(rings(), st.integers(1, 100), st.data())
def test_no_sum_leaves_the_ring(ring: Ring, parts: int, data: st.DataObject):
    """The largest values of the most sites and examples of a round add up, as integers do, without a wrap."""
    parts = min(parts, ring.sites, ring.examples)
    counts = split(ring.examples, parts)
    sign = data.draw(st.sampled_from([-1.0, 1.0]))
    words = [ring.encode(np.array([sign * ring.bound]), count) for count in counts]
    exact = sum(signed(word)[0] for word in words)
    total = np.zeros(1, ring.dtype)
    for word in words:
        ring.add(total, word)
    assert signed(total) == [exact]
    assert sum(ring.max_magnitude(count) for count in counts) == abs(exact) < 2 ** (ring.bits - 1)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_product_that_rounds_up_stays_in_the_ring(sign: float):
    """Where float64 rounds examples times bound up to a power of two, the encoded value keeps its sign."""
    ring = Ring(*NEAR)
    (word,) = signed(ring.encode(np.array([sign * ring.bound]), ring.examples))
    assert word * sign > 0


@given(rings(), st.data())
def test_encode_rounds_the_product(ring: Ring, data: st.DataObject):
    """An encoded value is rint(value examples 2^f), half to even, modulo 2^bits, and within max_magnitude(examples)."""
    examples = data.draw(st.integers(1, ring.examples))
    values = data.draw(floats_of(ring, array_shapes(max_dims=3, max_side=4)))
    words = ring.encode(values, examples)
    scale = examples * 2.0**ring.fraction
    expected = [round(value * scale) for value in values.reshape(-1).tolist()]
    assert (words.dtype, words.shape) == (ring.dtype, values.shape)
    assert words.reshape(-1).tolist() == [word % 2**ring.bits for word in expected]
    ring.require_within(words.reshape(-1), examples)
    for value, word in zip(values.reshape(-1).tolist(), expected, strict=True):
        exact = Fraction(value) * examples * Fraction(2) ** ring.fraction
        assert abs(word - exact) <= Fraction(1, 2) + abs(exact) / 2**53


@given(rings(), st.data())
def test_decode_of_a_sum_is_the_mean(ring: Ring, data: st.DataObject):
    """decode(encode(x, k) + encode(y, m), k + m) is (k x + m y) / (k + m), each x and y rounded once."""
    assume(ring.examples > 1 and ring.sites > 1)
    k = data.draw(st.integers(1, ring.examples - 1))
    m = data.draw(st.integers(1, ring.examples - k))
    x, y = data.draw(values_of(ring, st.just(3))), data.draw(values_of(ring, st.just(3)))
    total = ring.encode(x, k)
    ring.add(total, ring.encode(y, m))
    unit = Fraction(1, 2) ** ring.fraction / (k + m)
    for value, one, other in zip(ring.decode(total, k + m).tolist(), x.tolist(), y.tolist(), strict=True):
        exact = (k * Fraction(one) + m * Fraction(other)) / (k + m)
        weight = (k * abs(Fraction(one)) + m * abs(Fraction(other))) / (k + m)
        assert abs(Fraction(value) - exact) <= unit + (3 * weight + unit) / 2**53


@given(rings(), st.data())
def test_decode_reads_words_as_signed(ring: Ring, data: st.DataObject):
    """Any encoded value decodes to its two's complement over examples 2^f, rounded to float64 as Python rounds."""
    words = data.draw(arrays(ring.dtype, st.integers(0, 5)))
    examples = data.draw(st.integers(1, ring.examples))
    scale = examples * 2.0**ring.fraction
    assert ring.decode(words, examples).tolist() == [float(word) / scale for word in signed(words)]


@pytest.mark.parametrize("bits", [32, 64])
def test_more_values_than_a_piece_are_encoded_as_one_by_one(bits: int):
    """Pieces have no effect on encoded or decoded values, in place or not."""
    ring = Ring(bits, 1000, 10, 8.0)
    values = np.random.default_rng(0).uniform(-8, 8, 2 * PIECE + 3)
    out = np.zeros(values.size, ring.dtype)
    assert ring.encode(values, 7, out) is out
    np.testing.assert_array_equal(out, ring.encode(values, 7))
    np.testing.assert_array_equal(out.view(f"<i{bits // 8}"), np.rint(values * 7 * 2.0**ring.fraction).astype(int))
    np.testing.assert_allclose(ring.decode(out, 7), values, rtol=0, atol=0.5 / 7 / 2.0**ring.fraction + 1e-15)


@given(st.data())
def test_only_the_values_count_and_not_how_they_lie(data: st.DataObject):
    """Big-endian, float32, strided, transposed and read-only arrays are encoded and decoded like plain ones."""
    plain = data.draw(arrays(np.float64, (3, 4), elements=st.floats(-8, 8, width=32)))
    expected = SMALL.encode(plain, 3)
    wide = np.zeros((6, 8))
    wide[::2, ::2] = plain
    frozen = plain.copy()
    frozen.flags.writeable = False
    for values in (plain.astype(">f8"), plain.astype("<f4"), plain.astype(">f4"), wide[::2, ::2], frozen):
        np.testing.assert_array_equal(SMALL.encode(values, 3), expected)
    np.testing.assert_array_equal(SMALL.encode(plain.T, 3), expected.T)
    np.testing.assert_array_equal(SMALL.decode(expected.T, 3), SMALL.decode(expected, 3).T)
    np.testing.assert_array_equal(SMALL.decode(np.repeat(expected, 2, 1)[:, ::2], 3), SMALL.decode(expected, 3))


def test_float32_values_keep_all_bits_of_their_product():
    """A float32 value times its examples is not rounded to float32 before it becomes an encoded value."""
    value, examples = np.float32(1 + 2**-23), 999
    (word,) = SMALL.encode(np.array([value]), examples).tolist()
    assert word == round(Fraction(float(value)) * examples * 2**SMALL.fraction)
    assert word != round(float(value * np.float32(examples * 2.0**SMALL.fraction)))


def test_zeros_and_nothing():
    """Both zeros are encoded as 0; no values give an empty array; a scalar gives one value."""
    assert SMALL.encode(np.array([0.0, -0.0, -1e-300]), 5).tolist() == [0, 0, 0]
    for shape in ((0,), (3, 0, 2)):
        assert SMALL.encode(np.zeros(shape), 5).shape == shape
        assert SMALL.decode(np.zeros(shape, "<u4"), 5).shape == shape
    SMALL.require_within(np.zeros(0, "<u4"), 5)
    assert SMALL.decode(SMALL.encode(np.array(1.5), 5), 5) == 1.5


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, np.nextafter(8.0, 9), -np.nextafter(8.0, 9)])
@pytest.mark.parametrize("place", [0, 1, PIECE, PIECE + 4])
def test_a_value_beyond_the_bound_is_refused_wherever_it_is(value: float, place: int):
    """NaN, infinity and the next number after the bound are refused, and the bound itself is not."""
    values = np.full(PIECE + 5, 8.0)
    values[::2] = -8.0
    SMALL.encode(values, 5)
    values[place] = value
    with pytest.raises(MaskError, match="lower the learning rate, or raise max-update-value"):
        SMALL.encode(values, 5)


@given(st.floats(2.0**-20, 2.0**10), st.sampled_from([-1, 1]))
@example(0.1, 1)
@example(1 - 2**-26, -1)
def test_a_float32_value_just_beyond_the_bound_is_refused(bound: float, sign: int):
    """The next float32 after a bound is refused, though the bound is that value in float32; the one before is not."""
    ring, beyond = Ring(32, 1, 1, bound), np.float32(bound)
    within = np.nextafter(beyond, np.float32(0))
    if float(beyond) <= bound:
        within, beyond = beyond, np.nextafter(beyond, np.float32(np.inf))
    ring.require_within(ring.encode(np.array([sign * within]), 1), 1)
    with pytest.raises(MaskError, match="has a value beyond"):
        ring.encode(np.array([sign * beyond]), 1)


@pytest.mark.parametrize("examples", [0, -1, 1001, True, 1.0, np.int64(5), np.nan, "5", None])
def test_examples_are_a_whole_number_of_the_round(examples: object):
    """encode, decode and require_within count from one example to the round's."""
    for refused in (
        lambda: SMALL.encode(np.zeros(1), examples),
        lambda: SMALL.decode(np.zeros(1, "<u4"), examples),
        lambda: SMALL.require_within(np.zeros(1, "<u4"), examples),
    ):
        with pytest.raises(MaskError, match="1 to 1000 examples"):
            refused()


def test_words_have_one_dtype():
    """Encoded values of another width, order of bytes or sign are refused wherever encoded values are taken."""
    good = np.zeros(2, "<u4")
    for dtype in ("<u8", ">u4", "<i4", "<f4", "<u2"):
        other = np.zeros(2, dtype)
        for refused in (
            lambda words=other: SMALL.decode(words, 1),
            lambda words=other: SMALL.require_within(words, 1),
            lambda words=other: SMALL.add(good, words),
            lambda words=other: SMALL.add(words, good),
            lambda words=other: SMALL.encode(np.zeros(2), 1, words),
        ):
            with pytest.raises(MaskError, match="encoded updates of this round have 32 bits"):
                refused()
    with pytest.raises(MaskError, match="cannot be added to one of"):
        SMALL.add(good, np.zeros(1, "<u4"))  # would be repeated


def test_encode_takes_floats_alone_and_writes_where_it_is_told():
    """Integers, complex and long numbers are refused; so is room of another shape, or that a flat view cannot reach."""
    for dtype in (np.int64, np.complex128, np.longdouble, bool, object):
        with pytest.raises(MaskError, match="float32 or float64"):
            SMALL.encode(np.zeros(2, dtype), 1)
    for room in (np.zeros(3, "<u4"), np.zeros((2, 1), "<u4"), np.zeros(4, "<u4")[::2]):
        with pytest.raises(MaskError, match="needs a contiguous array"):
            SMALL.encode(np.zeros(2), 1, room)


@given(rings(), st.data())
def test_a_word_beyond_what_encode_makes_is_refused(ring: Ring, data: st.DataObject):
    """max_magnitude(examples) and its negative pass, and one more of either sign does not."""
    examples = data.draw(st.integers(1, ring.examples))
    most = ring.max_magnitude(examples)
    (word,) = signed(ring.encode(np.array([ring.bound]), examples))
    assert word == most
    ring.require_within(np.array([0, most, -most % 2**ring.bits], ring.dtype), examples)
    for beyond in (most + 1, -most - 1, 2 ** (ring.bits - 1)):
        with pytest.raises(MaskError, match="has a value beyond"):
            ring.require_within(np.array([0, beyond % 2**ring.bits, 0], ring.dtype), examples)


@given(BITS, st.integers(0, 9), st.data())
def test_add_is_addition_modulo_the_ring(bits: int, length: int, data: st.DataObject):
    """add(x, y) leaves (x + y) mod 2^bits in x and y as it was."""
    ring = Ring(bits, 1, 1, 1.0)
    x, y = (data.draw(arrays(ring.dtype, length)) for _ in range(2))
    expected = [(a + b) % 2**bits for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    before = y.copy()
    ring.add(x, y)
    assert x.tolist() == expected
    np.testing.assert_array_equal(y, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((16, 1, 1, 1.0), "32 or 64 bits"),
        ((32.0, 1, 1, 1.0), "32 or 64 bits"),
        ((32, 0, 1, 1.0), "examples must be"),
        ((32, True, 1, 1.0), "examples must be"),
        ((32, MAX_EXAMPLES + 1, 1, 1.0), "examples must be"),
        ((32, 1, 0, 1.0), "sites must be"),
        ((32, 1, MAX_SITES + 1, 1.0), "sites must be"),
        ((32, 1, 1, 1), "bound must be"),
        ((32, 1, 1, np.nan), "bound must be"),
        ((32, 1, 1, np.inf), "bound must be"),
        ((32, 1, 1, 0.0), "bound must be"),
        ((32, 1, 1, -1.0), "bound must be"),
        ((32, 1, 1, 2.0**20 + 1), "bound must be"),
        ((32, 2**31, 1, 1.0), "does not fit 32 bits: use float64"),
    ],
)
def test_a_ring_that_could_overflow_is_none(settings: tuple, message: str):
    """Settings of another type, out of range, or whose sums leave the ring, are refused."""
    with pytest.raises(MaskError, match=message):
        Ring(*settings)


def test_a_word_is_as_wide_as_a_weight():
    """float32 weights have 32 bits, float64 weights 64, and encoded values are little-endian."""
    for dtype, bits in (("float32", 32), ("float64", 64)):
        ring = Ring.of(dtype, examples=10, sites=2, bound=1.0)
        assert (ring.bits, ring.dtype.str) == (bits, f"<u{bits // 8}")
    assert SMALL.encode(np.array([2.0**-SMALL.fraction]), 1).tobytes() == b"\1\0\0\0"
