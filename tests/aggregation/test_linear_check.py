"""The exact sum and the linear check: laws, slow oracles in Python's integers, golden vectors, and tampering."""

import json
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pytest
from conftest import ROOT
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from fedpp.aggregation.linear_check import (
    CARRY,
    PRIME,
    ROW,
    ExactSum,
    SumTest,
    require_sum,
    require_tag,
    sum_hash,
    sum_tag,
    tag,
    vector_hash,
)
from fedpp.aggregation.ring import CHUNK, EncodedUpdate, Ring
from fedpp.errors import MaskError

VECTORS = sorted((ROOT / "tests" / "vectors" / "linear-check-2").glob("*.json"))
ID, OTHER_ID = "ab" * 32, "ac" * 32
BOTH = pytest.mark.parametrize("bits", [32, 64])


def ring_of(bits: int, sites: int = 10) -> Ring:
    return Ring(bits, 1000, sites=sites, bound=4.0)


def drawn(bits: int, length: int, seed: int) -> EncodedUpdate:
    """Return values of any size, the largest first."""
    values = np.random.default_rng(seed).integers(0, 2**bits, length, dtype=f"u{bits // 8}")
    values[:1] = 2**bits - 1
    return values.astype(f"<u{bits // 8}")


def added(updates: Sequence[EncodedUpdate]) -> ExactSum:
    """Return the exact sum of updates of one length."""
    total = ExactSum(updates[0].size, ring_of(8 * updates[0].itemsize))
    for update in updates:
        total.add(update)
    return total


def integers(low: EncodedUpdate, carry: np.ndarray) -> list[int]:
    bits = 8 * low.itemsize
    return [small + (high << bits) for small, high in zip(low.tolist(), carry.tolist(), strict=True)]


def elements(aggregate_id: str, info: bytes, count: int) -> list[int]:
    """Return numbers of 16 bytes, little-endian, of the keystream of a subkey of the identifier."""
    salt = b"fedpp linear check 2"
    key = HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(bytes.fromhex(aggregate_id))
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(16 * count))
    return [int.from_bytes(stream[start : start + 16], "little") for start in range(0, len(stream), 16)]


def challenge(aggregate_id: str, length: int) -> list[int]:
    """Return the vector a, by the definition: the product of an element of the row and one of the column."""
    u, v = elements(aggregate_id, b"columns", ROW), elements(aggregate_id, b"rows", -(-length // ROW))
    return [v[place // ROW] * u[place % ROW] % PRIME for place in range(length)]


def product(aggregate_id: str, values: Sequence[int]) -> int:
    return sum(a * y for a, y in zip(challenge(aggregate_id, len(values)), values, strict=True)) % PRIME


@BOTH
@pytest.mark.parametrize("length", [1, ROW - 1, ROW, ROW + 1, 2 * ROW + 5, CHUNK, CHUNK + 3])
def test_a_tag_is_that_of_plain_integers(bits: int, length: int):
    """Tags of updates and of a sum are products modulo p of Python's integers, at each end of a row and a chunk."""
    updates = [drawn(bits, length, seed) for seed in range(3)]
    total = added(updates)
    assert tag(ID, updates[1]) == product(ID, updates[1].tolist())
    assert sum_tag(ID, total.low, total.carry) == product(ID, integers(total.low, total.carry))


@BOTH
def test_a_tag_is_exact_at_the_extremes(bits: int):
    """Rows of nothing but the largest values, below the largest carries, have the tag of Python's integers."""
    length = ROW + 7
    low = np.full(length, 2**bits - 1, f"<u{bits // 8}")
    carry = np.full(length, 2**16 - 1, CARRY)
    assert tag(ID, low) == product(ID, low.tolist())
    assert sum_tag(ID, low, carry) == product(ID, integers(low, carry))


@given(st.sampled_from([32, 64]), st.integers(1, 60), st.integers(1, 10), st.integers(0, 2**32))
def test_the_sum_has_the_sum_of_the_tags(bits: int, length: int, sites: int, seed: int):
    """The law: the exact sum is that of Python's integers, and its tag is the sum of the updates' tags modulo p."""
    updates = [drawn(bits, length, seed + site) for site in range(sites)]
    total = added(updates)
    assert integers(total.low, total.carry) == [
        sum(column) for column in zip(*(u.tolist() for u in updates), strict=True)
    ]
    assert sum_tag(ID, total.low, total.carry) == sum(tag(ID, update) for update in updates) % PRIME
    require_sum(ID, total.low, total.carry, [tag(ID, update) for update in updates], ring_of(bits), length)


@BOTH
def test_a_changed_sum_does_not_fit(bits: int):
    """One more or less anywhere in the sum, a swap, another challenge, and a tag of another update are refused."""
    length = ROW + 3
    updates = [drawn(bits, length, seed) for seed in range(3)]
    tags, total, ring = [tag(ID, update) for update in updates], added(updates), ring_of(bits)
    require_sum(ID, total.low, total.carry, tags, ring, length)
    for place in (0, 1, ROW - 1, ROW, length - 1):
        low, carry = total.low.copy(), total.carry.copy()
        low[place] ^= 1
        carry[place] ^= 1
        for false in ((low, total.carry), (total.low, carry)):
            with pytest.raises(MaskError, match=r"does not fit|below their number"):
                require_sum(ID, *false, tags, ring, length)
    swapped = total.low.copy()
    swapped[[1, 2]] = swapped[[2, 1]]
    for low, of, sites in (
        (swapped, ID, tags),
        (total.low, OTHER_ID, tags),
        (total.low, ID, [*tags[:2], tag(ID, drawn(bits, length, 9))]),
    ):
        with pytest.raises(MaskError, match="does not fit"):
            require_sum(of, low, total.carry, sites, ring, length)


@BOTH
def test_a_number_has_one_spelling(bits: int):
    """A tag of p or more, a carry of the number of sites or more, other lengths and dtypes are refused.

    So is a value with p added, which a sum cannot even express: its values are below 2^80.
    """
    updates = [drawn(bits, 5, seed) for seed in range(2)]
    tags, total, ring = [tag(ID, update) for update in updates], added(updates), ring_of(bits)
    most = integers(np.full(1, 2**bits - 1, ring.dtype), np.full(1, 2**16 - 1, CARRY))
    assert max(most) < PRIME
    for wrong in (PRIME, PRIME + tags[0], -1, True, float(tags[0])):
        with pytest.raises(MaskError, match="below 2\\^127"):
            require_sum(ID, total.low, total.carry, [wrong, tags[1]], ring, 5)
        with pytest.raises(MaskError, match="below 2\\^127"):
            require_tag(wrong)
    carry = total.carry.copy()
    carry[3] = 2
    with pytest.raises(MaskError, match="below their number"):
        require_sum(ID, total.low, carry, tags, ring, 5)
    with pytest.raises(MaskError, match="below their number"):
        require_sum(ID, total.low, total.carry, [], ring, 5)
    for low, high in (
        (total.low[:4], total.carry[:4]),
        (total.low, total.carry[:4]),
        (total.low, total.carry.astype(np.uint32)),
        (total.low.reshape(1, 5), total.carry.reshape(1, 5)),
    ):
        with pytest.raises(MaskError, match="16-bit carries"):
            require_sum(ID, low, high, tags, ring, 5)
    with pytest.raises(MaskError, match="bits, got"):
        require_sum(ID, total.low.astype(np.int64), total.carry, tags, ring, 5)


@BOTH
def test_a_sum_takes_updates_of_its_round_alone(bits: int):
    """Updates of another ring or length, and more of them than the ring has sites, are refused."""
    total = ExactSum(4, ring_of(bits, sites=2))
    for wrong in (drawn(96 - bits, 4, 0), drawn(bits, 5, 0), drawn(bits, 4, 0).reshape(2, 2)):
        with pytest.raises(MaskError):
            total.add(wrong)
    total.add(drawn(bits, 4, 0))
    total.add(drawn(bits, 4, 1))
    before = total.hash
    with pytest.raises(MaskError, match="2 updates"):
        total.add(drawn(bits, 4, 2))
    assert total.hash == before


@BOTH
def test_the_hash_commits_to_each_bit_of_the_sum(bits: int):
    """Another value, carry, length or ring has another hash, and the hash is that of little-endian bytes."""
    total = added([drawn(bits, 6, seed) for seed in range(3)])
    low, carry = total.low.copy(), total.carry.copy()
    low[5] ^= 1
    carry[5] ^= 1
    hashes = {
        total.hash,
        sum_hash(low, total.carry),
        sum_hash(total.low, carry),
        sum_hash(total.low[:5], total.carry[:5]),
        vector_hash(total.low),
        vector_hash(total.carry),
        vector_hash(total.low.view(f"<u{(96 - bits) // 8}")),
    }
    assert len(hashes) == 7
    content = b"".join(value.to_bytes(bits // 8, "little") for value in total.low.tolist())
    assert vector_hash(total.low) == sha256(f"<u{bits // 8} 6\n".encode() + content).hexdigest()
    carries = b"<u2 6\n" + b"".join(value.to_bytes(2, "little") for value in total.carry.tolist())
    assert total.hash == sha256(f"<u{bits // 8} 6\n".encode() + content + carries).hexdigest()


@BOTH
def test_the_coordinator_finds_damage_of_its_own_sum(bits: int):
    """A sum of what was received passes the coordinator's own test, and one with any bit flipped does not."""
    length = 4 * ROW + 3
    updates = [np.full(length, 2**bits - 1, f"<u{bits // 8}"), *(drawn(bits, length, seed) for seed in range(2))]
    total, test = added(updates), SumTest()
    for update in updates:
        test.add(update)
    test.require(total.low, total.carry)
    for place in (0, ROW - 1, ROW, 4 * ROW, length - 1):
        for array, bit in ((total.low, 0), (total.low, 31), (total.low, bits - 1), (total.carry, 0), (total.carry, 15)):
            flip = array.dtype.type(1 << bit)
            array[place] ^= flip
            with pytest.raises(MaskError, match="memory and disk"):
                test.require(total.low, total.carry)
            array[place] ^= flip
    test.require(total.low, total.carry)


def test_each_column_has_a_number_that_is_not_zero():
    """No value is left out of the coordinator's own test, and no sum of a row needs more than 64 bits."""
    factors = np.concatenate([SumTest()._factors for _ in range(60)])
    assert factors.min() == 1
    assert factors.max() < 2**17


def test_the_coordinator_finds_values_in_other_places():
    """Rows whose values are in another order, or that stand in each other's place, do not pass."""
    update = np.arange(2 * ROW, dtype="<u4")
    test, none = SumTest(), np.zeros(2 * ROW, CARRY)
    test.add(update)
    test.require(update, none)
    for other in (np.roll(update, 1), np.roll(update, ROW), update.reshape(2, ROW)[:, ::-1].reshape(-1)):
        with pytest.raises(MaskError, match="memory and disk"):
            test.require(other, none)


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_tags_and_hashes_never_change(path):
    """Golden vectors: an old run's tags and hashes are what they were."""
    case = json.loads(path.read_text())
    updates = [np.array([int(v, 16) for v in update], f"<u{case['bits'] // 8}") for update in case["updates"]]
    total = added(updates)
    assert {
        "tags": [f"{tag(case['aggregate'], update):x}" for update in updates],
        "hashes": [vector_hash(update) for update in updates],
        "low": [f"{value:x}" for value in total.low.tolist()],
        "carry": total.carry.tolist(),
        "sum_tag": f"{sum_tag(case['aggregate'], total.low, total.carry):x}",
        "sum_hash": total.hash,
    } == case["expected"]
    assert VECTORS
