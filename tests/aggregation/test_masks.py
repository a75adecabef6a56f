"""Masks and tags: laws, plain oracles, golden vectors, and tampering."""

import copy
import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest
from conftest import ROOT
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpp.aggregation import masks
from fedpp.aggregation.masks import Masker, MaskKey
from fedpp.aggregation.ring import CHUNK, EncodedUpdate, Ring
from fedpp.aggregation.round_context import PRIME, Contribution, Round
from fedpp.errors import MaskError

VECTORS = sorted((ROOT / "tests" / "vectors" / "mask-1").glob("*.json"))
SECRET = bytes(range(32))
KEY = MaskKey(SECRET)
RUN, BASE, RUN_SPEC = "a1" * 32, "b2" * 32, "c3" * 32
BOTH = pytest.mark.parametrize("bits", [32, 64])
# Around a row of the tag (2048 or 1024 words), a group of rows, and a chunk.
LENGTHS = (1, 3, 1023, 1024, 1025, 2047, 2048, 2049, 8 * 2048, 8 * 2048 + 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5)


def round_of(bits: int, length: int, examples: int = 1000) -> Round:
    return Round(RUN, 3, 0, BASE, RUN_SPEC, length, Ring(bits, examples, sites=100, bound=4.0))


def part_of(site: int, examples: int = 5) -> Contribution:
    return Contribution(f"site-{site}", f"{site + 1:064x}", examples, 1)


def chunks(words: EncodedUpdate) -> Iterator[EncodedUpdate]:
    return (words[start : start + CHUNK] for start in range(0, words.size, CHUNK))


def masked(of: Round, part: Contribution, words: EncodedUpdate, key: MaskKey = KEY) -> tuple[EncodedUpdate, int]:
    """Return the masked update and their tag."""
    masker = key.masker(of, part)
    return np.concatenate([masker.mask(chunk) for chunk in chunks(words)]), masker.tag()


def drawn(of: Round, seed: int, examples: int = 5) -> EncodedUpdate:
    """Return encoded values of any size that so many examples allow, its extremes among them."""
    most = of.ring.max_magnitude(examples)
    words = np.random.default_rng(seed).integers(-most, most, of.length, dtype=np.int64, endpoint=True)
    words[:2] = (most, -most)[: of.length]
    return words.astype(f"<i{of.ring.bits // 8}").view(of.ring.dtype)


def summed(of: Round, parts: Sequence[Contribution]) -> tuple[EncodedUpdate, int, EncodedUpdate]:
    """Return the sum of masks of drawn encoded values, their tags' sum, and the sum of the encoded values alone."""
    total, plain, tags = np.zeros(of.length, of.ring.dtype), np.zeros(of.length, of.ring.dtype), 0
    for seed, part in enumerate(parts):
        words = drawn(of, seed, part.examples)
        under, tag = masked(of, part, words)
        of.ring.add(total, under)
        of.ring.add(plain, words)
        tags += tag
    return total, tags, plain


def subkey(of: Round, purpose: str, part: Contribution | None, length: int) -> bytes:
    content = {"purpose": purpose, "round": asdict(of), "part": None if part is None else asdict(part)}
    info = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return HKDF(algorithm=SHA256(), length=length, salt=b"fedpp domain mask 1", info=info).derive(SECRET)


def aes_blocks(key: bytes, count: int) -> bytes:
    """Return AES of 0, 1, 2 .. as 128-bit big-endian numbers: what CTR mode is."""
    counters = b"".join(number.to_bytes(16, "big") for number in range(count))
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)  # noqa: S305


def oracle(of: Round, part: Contribution, words: EncodedUpdate) -> tuple[list[int], int]:
    """Return the masked update and the tag, by Python's integers alone."""
    bits, plain = of.ring.bits, words.tolist()
    size = bits // 8
    content = subkey(of, "mask", part, 48)
    stream = aes_blocks(content[:32], of.length * size // 16 + 1)
    keys = [int.from_bytes(stream[i * size : (i + 1) * size], "little") for i in range(of.length)]
    columns = 2**16 // bits
    rows = -(-of.length // columns)
    field = aes_blocks(subkey(of, "tag", None, 32), columns + rows)
    elements = [int.from_bytes(field[i : i + 16], "little") % PRIME for i in range(0, len(field), 16)]
    y, x = elements[:columns], elements[columns:]
    tag = int.from_bytes(content[32:], "little")
    for place, word in enumerate(plain):
        number = word - 2**bits if word >= 2 ** (bits - 1) else word
        tag += x[place // columns] * y[place % columns] * number
    return [(word + key) % 2**bits for word, key in zip(plain, keys, strict=True)], tag % PRIME


@BOTH
@pytest.mark.parametrize("length", LENGTHS)
def test_a_mask_is_that_of_plain_integers(bits: int, length: int):
    """Masked update and tag match AES blocks and Python's integers, at each end of a row, a group and a chunk."""
    of, part = round_of(bits, length), part_of(0)
    words = drawn(of, length)
    under, tag = masked(of, part, words)
    assert (under.tolist(), tag) == oracle(of, part, words)
    assert under.dtype == of.ring.dtype


@BOTH
def test_the_tag_is_exact_at_the_extremes(bits: int):
    """Rows of nothing but the largest or smallest encoded values have the tag of Python's integers."""
    ring = Ring(bits, 1, sites=1, bound=1.0)
    of, part = Round(RUN, 1, 0, BASE, RUN_SPEC, 3 * 2048, ring), part_of(0, examples=1)
    for word in (
        ring.max_magnitude(1),
        -ring.max_magnitude(1) % 2**bits,
        2**31 - 1 if bits == 64 else 0,
        2**31 if bits == 64 else 1,
    ):
        words = np.full(of.length, word, ring.dtype)
        assert masked(of, part, words)[1] == oracle(of, part, words)[1]


def test_a_row_of_products_stays_exact():
    """The largest digits times the smallest pieces, 2048 times, is no more than float64 counts to."""
    for bits in (32, 64):
        ring = Ring(bits, 1, sites=1, bound=1.0)
        tag = masks._Tag(bytes(32), ring)
        assert tag._digits.shape[0] * tag._digits.max() * 2**31 <= 2**53
        assert tag._digits.max() == 2**11 - 1
        words = np.full(2048 * 2, 2**bits - 2 ** (bits - 1), ring.dtype)  # as a sum that was altered may have
        tag.add(words)
        y = [sum(int(d) << (11 * i) for i, d in enumerate(row)) for row in tag._digits[:: bits // 32]]
        x = masks._Tag(bytes(32), ring)._next(words.size * bits // 2**16)
        assert tag.value() == sum(x) * sum(y) * -(2 ** (bits - 1)) % PRIME


def vector(scenario: dict) -> tuple[MaskKey, Round, Contribution, EncodedUpdate]:
    values = scenario["round"]
    of = Round(**{**values, "ring": Ring(**values["ring"])})
    words = np.array([int(word) % 2**of.ring.bits for word in scenario["words"]], of.ring.dtype)
    repeated = np.resize(words, of.length)
    return MaskKey(bytes.fromhex(scenario["key"])), of, Contribution(**scenario["part"]), repeated


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_masks_are_the_same_in_every_version(path):
    """Key, round, contribution and encoded values give the golden file's masked update and tag, and unmask."""
    scenario = json.loads(path.read_text())
    key, of, part, words = vector(scenario)
    under, tag = masked(of, part, words, key)
    assert sha256(under.tobytes()).hexdigest() == scenario["masked_sha256"]
    assert under[:3].tolist() == scenario["masked_first"]
    assert str(tag) == scenario["tag"]
    np.testing.assert_array_equal(key.unmask(of, [part], under, tag), words)


def test_there_are_golden_vectors():
    """Both rings have a short scenario and one of more than a chunk."""
    rounds = [json.loads(path.read_text())["round"] for path in VECTORS]
    kinds = {(values["ring"]["bits"], values["length"] > CHUNK) for values in rounds}
    assert kinds == {(32, False), (32, True), (64, False), (64, True)}


@settings(max_examples=20)
@given(st.sampled_from([32, 64]), st.integers(1, 5000), st.lists(st.integers(1, 10), min_size=2, max_size=6))
def test_masks_come_off_in_the_sum(bits: int, length: int, examples: list[int]):
    """unmask(r, parts, sum of masked updates, sum of tags) is the sum of the updates, in any order of the parts."""
    of = round_of(bits, length)
    parts = [part_of(site, count) for site, count in enumerate(examples)]
    total, tag, plain = summed(of, parts)
    np.testing.assert_array_equal(KEY.unmask(of, parts[::-1], total.copy(), tag % PRIME), plain)
    unmasked = KEY.unmask(of, parts, total, tag)
    assert unmasked is total
    np.testing.assert_array_equal(total, plain)


@BOTH
@pytest.mark.parametrize("sites", [2, 3, 99, 100])
def test_a_hundred_sites_at_their_bounds_add_up(bits: int, sites: int):
    """The most sites and examples of a round, at the largest values, are unmasked to their sum."""
    of = round_of(bits, 3000, examples=7 * sites)
    parts = [part_of(site, examples=7) for site in range(sites)]
    total, tag, plain = summed(of, parts)
    np.testing.assert_array_equal(KEY.unmask(of, parts, total, tag), plain)
    decoded = of.ring.decode(total, 7 * sites)
    assert decoded[:2] == pytest.approx([4.0, -4.0], abs=2.0**-of.ring.fraction)


def test_a_part_is_seen_in_no_smaller_sum_than_it_allows():
    """min_cohort is bound to the keystream: an aggregate that is too small, or names another, is not unmasked."""
    of = round_of(64, 10)
    parts = [replace(part_of(0), min_cohort=3), part_of(1)]
    (one, tag), (other, second) = (masked(of, part, drawn(of, site)) for site, part in enumerate(parts))
    for listed, text in (
        (parts, "site-0 requires a cohort of 3 sites, this aggregate has 2"),
        ([part_of(0), part_of(1)], "does not fit its tag"),
    ):
        with pytest.raises(MaskError, match=text):
            KEY.unmask(of, listed, one + other, tag + second)


@BOTH
def test_sums_of_several_chunks_come_off(bits: int):
    """A keystream continues where the last chunk ended, also for a total that is a view of a larger array."""
    of = round_of(bits, 2 * CHUNK + 5)
    parts = [part_of(0), part_of(1)]
    total, tag, plain = summed(of, parts)
    wide = np.zeros((of.length, 2), of.ring.dtype)
    wide[:, 1] = total
    np.testing.assert_array_equal(KEY.unmask(of, parts, wide[:, 1], tag), plain)
    np.testing.assert_array_equal(KEY.unmask(of, parts, total, tag), plain)


PARTS = [part_of(site) for site in range(3)]


def refused(of: Round, parts: Sequence[Contribution], total: EncodedUpdate, tag: int, key: MaskKey = KEY) -> None:
    """Expect that an aggregate does not fit its tag, and is overwritten by zeros."""
    with pytest.raises(MaskError, match="does not fit its tag"):
        key.unmask(of, parts, total, tag)
    assert not total.any()


@BOTH
def test_every_byte_of_the_sum_counts(bits: int):
    """A flipped bit of any byte of the sum, at the start, the end, and on both sides of a row, is refused."""
    of = round_of(bits, 2 * 2048 + 3)
    total, tag, plain = summed(of, PARTS)
    size, columns = bits // 8, 2**16 // bits
    for word in (0, 1, columns - 1, columns, of.length - 1):
        for byte in range(size):
            altered = total.copy()
            altered.view(np.uint8)[word * size + byte] ^= 1 << (byte % 8)
            refused(of, PARTS, altered, tag)
    np.testing.assert_array_equal(KEY.unmask(of, PARTS, total, tag), plain)


@settings(max_examples=30)
@given(st.sampled_from([32, 64]), st.data())
def test_no_change_that_keeps_plain_sums_passes(bits: int, data: st.DataObject):
    """Encoded values that swap places, or of which one gains what another loses, are refused."""
    of = round_of(bits, 5000)
    total, tag, _ = summed(of, PARTS)
    one, other = data.draw(st.lists(st.integers(0, of.length - 1), min_size=2, max_size=2, unique=True))
    swapped = total.copy()
    swapped[[one, other]] = total[[other, one]]
    refused(of, PARTS, swapped, tag)
    amount = np.array(data.draw(st.integers(1, 2**bits - 1)), of.ring.dtype)
    total[one] += amount
    total[other] -= amount
    refused(of, PARTS, total, tag)


@BOTH
def test_every_bit_of_the_tag_counts(bits: int):
    """A flipped bit of the tag is refused, and so is one that is no whole number, however near."""
    of = round_of(bits, 100)
    total, tag, plain = summed(of, PARTS)
    tag %= PRIME
    for bit in range(127):
        refused(of, PARTS, total.copy(), tag ^ (1 << bit))
    for other in (float(tag), str(tag), None, np.float64(tag)):
        with pytest.raises(MaskError, match="a tag is a whole number"):
            KEY.unmask(of, PARTS, total.copy(), other)
    np.testing.assert_array_equal(KEY.unmask(of, PARTS, total, tag + 5 * PRIME), plain)


def test_a_sum_is_of_its_round_alone():
    """Another run, number, attempt, base or ring, or another key epoch's key, is refused; so is another length."""
    of = round_of(32, 100)
    total, tag, _ = summed(of, PARTS)
    flips = [text[:i] + ("0" if text[i] != "0" else "1") + text[i + 1 :] for text in (RUN,) for i in range(64)]
    others = [replace(of, run=run) for run in flips]
    others += [replace(of, base=run) for run in flips]
    others += [replace(of, number=2), replace(of, number=4), replace(of, attempt=1)]
    rings = [replace(of.ring, examples=1001), replace(of.ring, sites=99), replace(of.ring, bound=4.5)]
    others += [replace(of, ring=ring) for ring in rings]
    for other in others:
        refused(other, PARTS, total.copy(), tag)
    refused(of, PARTS, total.copy(), tag, MaskKey(bytes(32)))
    for length in (99, 101):
        with pytest.raises(MaskError, match=rf"has {length} values, got \(100,\)"):
            KEY.unmask(replace(of, length=length), PARTS, total, tag)
    with pytest.raises(MaskError, match="64 bits, got uint32"):
        KEY.unmask(replace(of, ring=replace(of.ring, bits=64)), PARTS, total, tag)
    shorter = replace(of, length=99)
    refused(shorter, PARTS, total[:99].copy(), tag)


def test_a_sum_is_of_the_contributions_it_names():
    """Another site, nonce or count of examples, one more, one fewer, or another in place of one: refused."""
    of = round_of(32, 100)
    total, tag, plain = summed(of, PARTS)
    first, second, third = PARTS
    nonces = [first.nonce[:i] + ("1" if first.nonce[i] == "0" else "0") + first.nonce[i + 1 :] for i in range(64)]
    lists = [[replace(first, nonce=nonce), second, third] for nonce in nonces]
    lists += [
        [replace(first, site="site-9"), second, third],
        [replace(first, examples=4), second, third],
        [replace(first, examples=6), second, third],
        [replace(first, examples=4), replace(second, examples=6), third],  # the same in all
        [replace(first, nonce=second.nonce), replace(second, nonce=first.nonce), third],
        [first, second],
        [*PARTS, part_of(3)],
        [first, second, part_of(3)],
    ]
    for parts in lists:
        refused(of, parts, total.copy(), tag)
    np.testing.assert_array_equal(KEY.unmask(of, [third, first, second], total, tag), plain)


def test_nobody_is_counted_twice():
    """The same contribution twice, or two of one site, is refused, and so is a sum of none."""
    of = round_of(32, 100)
    (first, tag), total = masked(of, PARTS[0], drawn(of, 0)), np.zeros(100, of.ring.dtype)
    of.ring.add(total, first)
    of.ring.add(total, first)
    for parts in ([PARTS[0]] * 2, [PARTS[0], replace(PARTS[0], nonce="c3" * 32)], []):
        with pytest.raises(MaskError, match="one update from each site"):
            KEY.unmask(of, parts, total, 2 * tag)
    refused(of, PARTS[:1], total, 2 * tag)


def test_sums_beyond_the_round_are_refused():
    """More sites or examples than the round may have could leave the ring: refused before anything is derived."""
    of = Round(RUN, 1, 0, BASE, RUN_SPEC, 10, Ring(32, examples=20, sites=3, bound=1.0))
    total = np.zeros(10, of.ring.dtype)
    for parts in ([part_of(site, 5) for site in range(4)], [part_of(0, 10), part_of(1, 11)], [part_of(0, 21)]):
        with pytest.raises(MaskError, match="exceeds the round's 3 and 20"):
            KEY.unmask(of, parts, total, 0)
    with pytest.raises(MaskError, match="allows 1 to 20 examples"):
        KEY.masker(of, part_of(0, 21)).mask(total)


@BOTH
def test_an_update_has_the_rounds_length(bits: int):
    """More or fewer encoded values than the round's, in whatever chunks, are refused, and no tag is returned."""
    of = round_of(bits, CHUNK + 10)
    words = np.zeros(2 * CHUNK, of.ring.dtype)
    whole, rest, one = words[:CHUNK], words[:10], words[:1]
    wrong = {
        "are missing": ([], [whole]),
        "the next chunk of this update has": (
            [rest, whole],
            [whole, words[:9]],
            [whole, words[:11]],
            [whole, one, words[:9]],
            [whole, rest, one],
            [whole, rest, words[:0]],
            [words[: CHUNK - 1], words[:11]],
            [words[: CHUNK + 10]],
            [words[:0], whole, rest],
            [whole.reshape(2, -1), rest],
        ),
    }
    for message, updates in wrong.items():
        for update in updates:
            masker = KEY.masker(of, PARTS[0])
            with pytest.raises(MaskError, match=message):
                all_of(masker, update)
    assert [chunk.size for chunk in all_of(KEY.masker(of, PARTS[0]), [whole, rest])] == [CHUNK, 10]


def all_of(masker: Masker, update: list[EncodedUpdate]) -> list[EncodedUpdate]:
    """Return an update's masked chunks, after its tag was computed."""
    made = [masker.mask(chunk) for chunk in update]
    masker.tag()
    return made


def test_words_beyond_the_bounds_are_not_masked():
    """A value that no value within the bound encodes to, or of another dtype, is refused, and not masked."""
    of = round_of(32, 10)
    words = np.zeros(10, of.ring.dtype)
    words[7] = of.ring.max_magnitude(5) + 1
    for chunk, message in ((words, "has a value beyond"), (np.zeros(10, ">u4"), "32 bits"), (np.zeros(10), "32 bits")):
        with pytest.raises(MaskError, match=message):
            KEY.masker(of, PARTS[0]).mask(chunk)


def test_masking_leaves_the_words_as_they_were():
    """Chunks are not written to, and may be read-only or strided."""
    of = round_of(64, 3000)
    words = drawn(of, 1)
    wide = np.repeat(words, 2)
    wide.flags.writeable = False
    under, tag = masked(of, PARTS[0], wide[::2])
    assert (under.tolist(), tag) == oracle(of, PARTS[0], words)
    np.testing.assert_array_equal(wide[::2], words)


@BOTH
def test_no_two_masks_share_a_keystream(bits: int):
    """Another nonce, site, count, round, attempt or key gives another keystream and pad, from the first value."""
    of = round_of(bits, 64)
    zeros, part = np.zeros(of.length, of.ring.dtype), PARTS[0]
    fresh = [Contribution.fresh("site-0", 5, 1) for _ in range(50)]
    masks = [masked(of, other, zeros) for other in [part, *PARTS[1:], replace(part, examples=6), *fresh]]
    masks += [masked(replace(of, **change), part, zeros) for change in ({"number": 4}, {"attempt": 1}, {"run": BASE})]
    masks.append(masked(of, part, zeros, MaskKey(bytes(32))))
    longer = round_of(bits, 65)
    masks.append(masked(longer, part, np.zeros(65, of.ring.dtype)))
    windows = {tuple(window) for under, _ in masks for window in pairwise(under.tolist())}
    assert len(windows) == sum(under.size - 1 for under, _ in masks)
    assert len({tag for _, tag in masks}) == len(masks)


@BOTH
def test_masked_words_look_uniform(bits: int):
    """Every byte of a masked update of equal encoded values has each value about as often as the others."""
    of = round_of(bits, 2**16)
    under, _ = masked(of, PARTS[0], np.full(of.length, 7, of.ring.dtype))
    for place in range(bits // 8):
        counts = np.bincount(under.view(np.uint8)[place :: bits // 8], minlength=256)
        assert ((counts - 256.0) ** 2 / 256).sum() < 400  # chi square of 255 degrees: 400 once in 10^8


def test_a_mask_key_does_not_slip_out():
    """It is not printed, copied or pickled, holds what it was given and not a view of it, and has 32 bytes."""
    secret = b"\x8f\x1d0123456789abcdef0123456789abcd"
    key = MaskKey(secret)
    for text in (repr(key), str(key), f"{key}", f"{[key]}"):
        assert text.strip("[]") == "MaskKey(<hidden>)"
    for out in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="not pickled or copied"):
            out(key)
    assert not hasattr(key, "__dict__")
    view = bytearray(SECRET)
    of, words = round_of(32, 4), np.zeros(4, "<u4")
    held = MaskKey(view)
    view[:] = bytes(32)
    np.testing.assert_array_equal(masked(of, PARTS[0], words, held)[0], masked(of, PARTS[0], words)[0])
    for size in (0, 31, 33):
        with pytest.raises(MaskError, match=f"32 bytes, got {size}"):
            MaskKey(bytes(size))


def test_no_error_shows_a_key_or_words():
    """What is said of a sum that was altered names neither subkeys, encoded values nor the tag that it should have."""
    of = round_of(32, 100)
    total, tag, _ = summed(of, PARTS)
    with pytest.raises(MaskError) as caught:
        KEY.unmask(of, PARTS, total, tag + 1)
    assert not any(character.isdigit() for character in str(caught.value))
