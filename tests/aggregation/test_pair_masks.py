"""Pair masks and self masks: laws, a slow oracle, golden vectors, and what is refused."""

import json
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from conftest import ROOT
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from fedpp.aggregation.pair_masks import masked, pair_key, unmasked
from fedpp.aggregation.ring import CHUNK, EncodedUpdate, Ring
from fedpp.errors import MaskError

VECTORS = sorted((ROOT / "tests" / "vectors" / "pair-mask-2").glob("*.json"))
CONTEXT = b'{"base":"b","round":1,"run":"r"}'
NAMES = ("east", "north", "south", "west", "zoo")
BOTH = pytest.mark.parametrize("bits", [32, 64])


def ring_of(bits: int) -> Ring:
    return Ring(bits, 1000, sites=10, bound=4.0)


def own_key(number: int) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32)


def public(number: int) -> bytes:
    return own_key(number).public_key().public_bytes_raw()


def seed_of(number: int) -> bytes:
    return bytes([number + 101]) * 32


def pairs_of(site: int, sites: int, ctx: bytes = CONTEXT) -> list[tuple[bytes, int]]:
    """Return a site's keys with all others, and their signs: 1 where its own name sorts first."""
    others = [other for other in range(sites) if other != site]
    return [
        (pair_key(own_key(site), public(other), ctx, NAMES[site], NAMES[other]), 1 if site < other else -1)
        for other in others
    ]


def drawn(bits: int, length: int, seed: int) -> EncodedUpdate:
    return np.random.default_rng(seed).integers(0, 2**bits, length, dtype=f"u{bits // 8}").astype(f"<u{bits // 8}")


def whole(values: EncodedUpdate, ring: Ring, seed: bytes, pairs: Sequence[tuple[bytes, int]]) -> EncodedUpdate:
    return np.concatenate(list(masked(values, ring, seed, pairs)))


def stream(key: bytes, bits: int, length: int) -> list[int]:
    """Return the numbers of a keystream: little-endian, of AES in counter mode."""
    size = bits // 8
    content = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size * length))
    return [int.from_bytes(content[start : start + size], "little") for start in range(0, len(content), size)]


@BOTH
@pytest.mark.parametrize("length", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_a_masked_update_is_that_of_plain_integers(bits: int, length: int):
    """Values, own mask and pair masks by their signs, added in Python's integers modulo 2^bits."""
    values, pairs = drawn(bits, length, 1), pairs_of(1, 3)
    terms = [values.tolist(), stream(seed_of(1), bits, length)]
    terms += [[sign * number for number in stream(key, bits, length)] for key, sign in pairs]
    result = whole(values, ring_of(bits), seed_of(1), pairs)
    assert result.tolist() == [sum(column) % 2**bits for column in zip(*terms, strict=True)]
    assert result.dtype == ring_of(bits).dtype
    assert [sign for _, sign in pairs] == [-1, 1]


@given(st.sampled_from([32, 64]), st.integers(1, 40), st.integers(2, 5), st.integers(0, 2**32))
def test_the_masks_of_a_sum_cancel(bits: int, length: int, sites: int, seed: int):
    """The law: the sum of masked updates, without the seeds' masks, is the sum of the updates to the bit."""
    ring, updates = ring_of(bits), [drawn(bits, length, seed + site) for site in range(sites)]
    low, clear = np.zeros(length, ring.dtype), np.zeros(length, ring.dtype)
    for site, update in enumerate(updates):
        ring.add(low, whole(update, ring, seed_of(site), pairs_of(site, sites)))
        ring.add(clear, update)
    seeds = [seed_of(site) for site in range(sites)]
    kept = low.copy()
    assert np.array_equal(unmasked(low, ring, seeds), clear)
    assert np.array_equal(low, kept)
    assert unmasked(low, ring, seeds, out=low) is low
    assert np.array_equal(low, clear)


@BOTH
def test_masks_come_off_a_sum_of_many_chunks(bits: int):
    """A sum of several chunks, the last one not full, is unmasked into itself and into another array alike."""
    ring, length = ring_of(bits), 2 * CHUNK + 11
    updates = [drawn(bits, length, site) for site in range(2)]
    low = sum((whole(u, ring, seed_of(s), pairs_of(s, 2)) for s, u in enumerate(updates)), np.zeros(length, ring.dtype))
    seeds = [seed_of(0), seed_of(1)]
    assert np.array_equal(unmasked(low, ring, seeds), updates[0] + updates[1])
    unmasked(low, ring, seeds, out=low)
    assert np.array_equal(low, updates[0] + updates[1])


@BOTH
def test_a_mask_is_missed(bits: int):
    """Without one seed, one site, or under another context of one site, the sum stays masked."""
    ring, updates = ring_of(bits), [drawn(bits, 20, site) for site in range(3)]
    under = [whole(update, ring, seed_of(site), pairs_of(site, 3)) for site, update in enumerate(updates)]
    seeds = [seed_of(site) for site in range(3)]
    clear = updates[0] + updates[1] + updates[2]
    assert np.array_equal(unmasked(under[0] + under[1] + under[2], ring, seeds), clear)
    elsewhere = whole(updates[2], ring, seed_of(2), pairs_of(2, 3, b"another context"))
    for low, known, expected in (
        (under[0] + under[1] + under[2], seeds[:2], clear),
        (under[0] + under[1], seeds[:2], updates[0] + updates[1]),
        (under[0] + under[1] + elsewhere, seeds, clear),
    ):
        assert (unmasked(low, ring, known) != expected).sum() >= 19


def test_a_pair_key_is_of_both_sites_and_one_context():
    """Both sites derive one key, whoever is named first; another context, name or partner has another."""
    one = pair_key(own_key(0), public(1), CONTEXT, "east", "north")
    assert pair_key(own_key(1), public(0), CONTEXT, "north", "east") == one
    assert pair_key(own_key(1), public(0), CONTEXT, "east", "north") == one
    others = [
        pair_key(own_key(0), public(1), CONTEXT + b" ", "east", "north"),
        pair_key(own_key(0), public(1), CONTEXT, "east", "south"),
        pair_key(own_key(0), public(1), CONTEXT, "eastn", "orth"),
        pair_key(own_key(0), public(2), CONTEXT, "east", "north"),
        pair_key(own_key(2), public(1), CONTEXT, "east", "north"),
    ]
    assert len({one, *others}) == 6


def test_keys_of_all_pairs_differ():
    """No two pairs of a cohort share a key."""
    keys = {pair_key(own_key(i), public(j), CONTEXT, NAMES[i], NAMES[j]) for i, j in combinations(range(5), 2)}
    assert len(keys) == 10


@pytest.mark.parametrize("other", [b"", bytes(31), bytes(33), bytes(32), b"\x01" + bytes(31)])
def test_an_invalid_ephemeral_key_is_refused(other: bytes):
    """A public key of another length, or a point of small order, fits no pair."""
    with pytest.raises(MaskError, match="not valid"):
        pair_key(own_key(0), other, CONTEXT, "east", "north")


def test_a_site_has_no_mask_with_itself():
    """One name twice is refused."""
    with pytest.raises(MaskError, match="two sites"):
        pair_key(own_key(0), public(1), CONTEXT, "east", "east")


@BOTH
def test_what_is_no_update_or_no_key_is_refused(bits: int):
    """Another ring, shape or key length, one key twice, and another sign, before anything is masked."""
    ring, values, key = ring_of(bits), drawn(bits, 4, 0), bytes(range(32))
    for wrong in (drawn(96 - bits, 4, 0), values.reshape(2, 2), values[:0]):
        with pytest.raises(MaskError):
            masked(wrong, ring, seed_of(0), [])
        with pytest.raises(MaskError):
            unmasked(wrong, ring, [seed_of(0)])
    for seed, pairs in (
        (key[:31], []),
        (key, [(key[:16], 1)]),
        (key, [(key, 1)]),
        (key, [(seed_of(0), 1), (seed_of(0), -1)]),
        (key, [(seed_of(0), 0)]),
        (key, [(seed_of(0), 2)]),
    ):
        with pytest.raises(MaskError):
            masked(values, ring, seed, pairs)
    for seeds in ([], [key, key], [key[:31]]):
        with pytest.raises(MaskError):
            unmasked(values, ring, seeds)


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_masks_never_change(path):
    """Golden vectors: keys, signs and byte order are what they were."""
    case = json.loads(path.read_text())
    sites, ring = len(case["updates"]), ring_of(case["bits"])
    context = case["context"].encode()
    keys = [[key.hex() for key, _ in pairs_of(site, sites, context)] for site in range(sites)]
    updates = [np.array([int(v, 16) for v in update], ring.dtype) for update in case["updates"]]
    under = [whole(u, ring, seed_of(site), pairs_of(site, sites, context)) for site, u in enumerate(updates)]
    assert keys == case["keys"]
    assert [[f"{value:x}" for value in update.tolist()] for update in under] == case["masked"]
    assert VECTORS
