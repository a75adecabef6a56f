"""Encryption of sequences: what decrypts, what the decoys are, and when they repeat."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpp.cipher import algebra
from fedpp.errors import DatasetError
from fedpp.imaging.preparation import gaps
from fedpp.imaging.sequence import ImageSequence
from fedpp.keys import encryption
from fedpp.keys.encryption import BLOCK, CHUNK, SequenceCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.protocol.counts import UNKNOWN

PIXELS = np.random.default_rng(0).normal(size=(3, 20, 17, 1))


def slots(domain: KeyDomain, rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float64) @ domain.matrix()


@given(st.integers(2, 5), st.sampled_from(["float32", "float64"]), st.integers(1, 3 * BLOCK))
@settings(max_examples=30, deadline=None)
def test_rows_decrypt_to_the_pixels(n: int, dtype: str, size: int):
    """decrypt(frames(m)) == m for any number of slots and of pixels, to the dtype's precision."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=n)
    rows = SequenceCipher(domain, dtype).frames("s", PIXELS.reshape(-1)[:size])
    assert rows.shape == (size, n)
    assert rows.dtype == dtype
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(encryption.decrypt(domain, rows), PIXELS.reshape(-1)[:size], atol=tolerance)


def test_rows_are_algorithm_1(domain: KeyDomain):
    """The fast products over several chunks give what `algebra.encrypt` gives of the same slots."""
    pixels = np.resize(PIXELS, 2 * CHUNK + BLOCK + 3)
    rows = SequenceCipher(domain, "float64").frames("s", pixels)
    np.testing.assert_allclose(rows, algebra.encrypt(slots(domain, rows), domain.matrix()), atol=1e-13)
    assert np.unique(slots(domain, rows)[:, 1].round(6)).size > 0.6 * 2**16  # no chunk repeats the one before


def test_the_same_pixels_give_the_same_rows(domain: KeyDomain):
    """A second cipher, or the same one later, encrypts a sequence to the same bytes, also into a given buffer."""
    first, second = SequenceCipher(domain, "float32"), SequenceCipher(domain, "float32")
    rows = first.frames("a", PIXELS)
    first.frames("b", PIXELS + 1)
    first.label("b", 1, 2)
    buffer = np.zeros((*PIXELS.shape, 2), np.float32)
    assert second.frames("a", PIXELS, buffer) is buffer
    np.testing.assert_array_equal(first.frames("a", PIXELS), rows)
    np.testing.assert_array_equal(buffer, rows)


def test_other_pixels_names_or_domains_have_other_decoys(domain: KeyDomain):
    """One pixel's last bit, the name, the secret or the key epoch: a change of any gives independent decoys.

    Rows of two images with the same decoys would give away a row of the key.
    """
    cipher = SequenceCipher(domain, "float64")
    elsewhere = [KeyDomain.of_secret(bytes(32), n=2), KeyDomain.of_secret(bytes(range(32)), n=2, key_epoch=2)]
    moved = PIXELS.copy()
    moved[2, 3, 4] = np.nextafter(moved[2, 3, 4], np.inf)
    others = [
        cipher.frames("b", PIXELS),
        cipher.frames("a", moved),
        *(SequenceCipher(other, "float64").frames("a", PIXELS) for other in elsewhere),
    ]
    domains = [domain, domain, *elsewhere]
    decoys = slots(domain, cipher.frames("a", PIXELS))[..., 1].reshape(-1)
    for other, rows in zip(domains, others, strict=True):
        assert abs(np.corrcoef(decoys, slots(other, rows)[..., 1].reshape(-1))[0, 1]) < 0.1


def test_decoys_have_the_scale_of_the_pixels(domain: KeyDomain):
    """Decoys are uniform with mean 0 and deviation 1, as prepared pixels are, and know nothing of these."""
    pixels = np.random.default_rng(0).normal(size=50_000)
    decoys = slots(domain, SequenceCipher(domain, "float64").frames("s", pixels))[:, 1]
    np.testing.assert_allclose((decoys.mean(), decoys.std()), (0.0, 1.0), atol=0.02)
    np.testing.assert_allclose((decoys.min(), decoys.max()), (-(3**0.5), 3**0.5), atol=0.01)
    assert abs(np.corrcoef(decoys, pixels)[0, 1]) < 0.02
    assert abs(np.corrcoef(decoys[1:], decoys[:-1])[0, 1]) < 0.02


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [2, 3])
def test_labels_and_their_decoys_are_one_hot(n: int, dtype: str):
    """Every slot of an encrypted label is one-hot, so that the decoy's loss stays finite; decoys take every class."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=n)
    cipher = SequenceCipher(domain, dtype)
    for number in range(3):
        found = np.stack([slots(domain, cipher.label(f"s{i}", number, 3)) for i in range(30)])
        np.testing.assert_allclose(found[..., 0], np.tile(np.eye(3)[number], (30, 1)), atol=1e-5)
        np.testing.assert_allclose(np.sort(found, axis=1), np.tile([[0], [0], [1]], (30, 1, n)), atol=1e-5)
        assert set(found[..., 1].argmax(axis=1)) == {0, 1, 2}


def test_gaps_decrypt_and_their_decoys_are_no_constant(domain: KeyDomain):
    """Encrypted time gaps decrypt to the measure of the days between frames; decoys are within its range."""
    values = gaps(ImageSequence("s", "p", None, (np.zeros((2, 2)),) * 3, times=(0.0, 1.0, 366.0)), 3)
    np.testing.assert_allclose(values, [0, np.log(2) / np.log(366), 1])
    found = slots(domain, SequenceCipher(domain, "float64").gaps("s", values))
    np.testing.assert_allclose(found[:, 0], values, atol=1e-12)
    many = slots(domain, SequenceCipher(domain, "float64").gaps("s", np.zeros(500)))[:, 1]
    assert 0 <= many.min() < 0.1
    assert 1.4 < many.max() <= encryption.LONGEST_GAP


def test_frames_labels_and_gaps_do_not_share_decoys(domain: KeyDomain):
    """Equal bytes under one name start another keystream where they are something else."""
    cipher, values = SequenceCipher(domain, "float64"), np.zeros(64)
    uniform = slots(domain, cipher.frames("s", values))[:, 1] / 3**0.5
    between = slots(domain, cipher.gaps("s", values))[:, 1] / (encryption.LONGEST_GAP / 2) - 1
    assert abs(np.corrcoef(uniform, between)[0, 1]) < 0.4


def test_decoys_are_the_golden_ones():
    """The decoys of a sequence are the same in every version: the words of its keystream."""
    cipher = SequenceCipher(KeyDomain.of_secret(bytes(range(32)), n=2), "float64")
    found = slots(KeyDomain.of_secret(bytes(range(32)), n=2), cipher.frames("golden", np.arange(8.0)))[:, 1]
    np.testing.assert_array_equal((found / 3**0.5 * 2**15).round(), GOLDEN_WORDS)


@pytest.mark.parametrize("out", [np.zeros((4, 2)), np.zeros((8, 2), np.float32), np.zeros((2, 8)).T])
def test_a_buffer_that_does_not_fit_is_refused(domain: KeyDomain, out: np.ndarray):
    """Another shape or dtype, or one whose rows do not lie side by side, is an error and not a result elsewhere."""
    with pytest.raises(ValueError, match="rows do not fit"):
        SequenceCipher(domain, "float64").frames("s", np.zeros(8), out)


GOLDEN_WORDS = [9132, -3740, 2048, -9175, 31270, 30065, 8993, 9819]


STATES = (1, 0, UNKNOWN, 1, UNKNOWN)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [2, 3])
def test_findings_are_pairs_and_so_are_their_decoys(n: int, dtype: str):
    """Present and absent are one-hot, unknown is (0, 0); every decoy is one-hot, takes both, and differs by slot."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=n)
    cipher = SequenceCipher(domain, dtype)
    rows = np.stack([cipher.findings(f"s{i}", STATES) for i in range(40)])
    assert rows.shape == (40, 5, 2, n)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(encryption.decrypt_findings(domain, rows), [STATES] * 40)
    found = slots(domain, rows)
    expected = [[0, 1], [1, 0], [0, 0], [0, 1], [0, 0]]
    np.testing.assert_allclose(found[..., 0], np.tile(expected, (40, 1, 1)), atol=1e-5)
    decoys = found[..., 1:]
    np.testing.assert_allclose(np.sort(decoys, axis=2), np.broadcast_to([[0], [1]], decoys.shape), atol=1e-5)
    means = decoys[:, :, 1].mean(axis=0)
    assert 0.2 < means.min() < means.max() < 0.8
    if n == 3:
        assert abs(decoys[..., 0] - decoys[..., 1]).max() > 0.5


def test_findings_have_the_decoys_of_their_name_and_states(domain: KeyDomain):
    """Equal states under one name are equal rows; another name, state or kind of label has other decoys."""
    cipher = SequenceCipher(domain, "float64")
    many = (0,) * 64
    first = cipher.findings("s", many)
    np.testing.assert_array_equal(SequenceCipher(domain, "float64").findings("s", many), first)
    decoys = slots(domain, first)[:, 1, 1]
    for other in (cipher.findings("t", many), cipher.findings("s", (1, *many[1:]))):
        assert abs(np.corrcoef(decoys, slots(domain, other)[:, 1, 1])[0, 1]) < 0.5


@pytest.mark.parametrize("pair", [(1.0, 1.0), (0.5, 0.5), (-1.0, 0.0), (np.nan, 0.0), (0.0, 0.9)])
def test_what_is_no_pair_is_no_finding(domain: KeyDomain, pair: tuple[float, float]):
    """Labels that decrypt to no state are the dataset's fault, and are never read as one."""
    rows = algebra.encrypt(np.array([[[[pair[0], 0.0], [pair[1], 1.0]]]]), domain.matrix())
    with pytest.raises(DatasetError, match="do not decrypt to classes"):
        encryption.decrypt_findings(domain, rows)


def test_classes_come_back(domain: KeyDomain):
    """Numbers of classes are read from one-hot rows, and what is none is refused."""
    cipher = SequenceCipher(domain, "float32")
    rows = np.stack([cipher.label(f"s{i}", i % 3, 3) for i in range(9)])
    np.testing.assert_array_equal(encryption.decrypt_classes(domain, rows), np.arange(9) % 3)
    with pytest.raises(DatasetError, match="do not decrypt to classes"):
        encryption.decrypt_classes(domain, 2 * rows)
