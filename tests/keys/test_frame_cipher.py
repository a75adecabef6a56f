"""The frame form: what decrypts, what keeps its norm, and which networks lose no function by it."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpp.errors import ConfigError
from fedpp.keys import encryption
from fedpp.keys.frame_cipher import FrameCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.protocol.counts import UNKNOWN

DOMAIN = KeyDomain.of_secret(bytes(range(32)), n=1, scheme="more-frame")
DTYPES = st.sampled_from(["float32", "float64"])


@st.composite
def cases(draw: st.DrawFn, *, layouts: tuple[str, ...] = ("rows", "patches")) -> tuple[str, int, np.ndarray]:
    """Draw a layout, its patch, and frames `[frames, height, width, channels]` that fit."""
    layout = draw(st.sampled_from(layouts))
    patch = draw(st.sampled_from([2, 3, 4])) if layout == "patches" else 0
    tall, wide = (draw(st.integers(1, 3)) * (patch or 1) for _ in range(2))
    shape = (draw(st.integers(1, 3)), tall, wide, draw(st.sampled_from([1, 3])))
    return layout, patch, np.random.default_rng(draw(st.integers(0, 2**31))).normal(size=shape)


def rows_of_p(frames: np.ndarray, layout: str, patch: int) -> np.ndarray:
    """Return P `[rows, pixels]` of frames by a loop over its rows: the oracle of the fast reshaping."""
    _, height, width, _ = frames.shape
    tall, wide = (patch, patch) if layout == "patches" else (1, width)
    corners = [(top, left) for top in range(0, height, tall) for left in range(0, width, wide)]
    return np.stack(
        [frame[top : top + tall, left : left + wide].reshape(-1) for frame in frames for top, left in corners]
    )


@given(cases(), DTYPES)
@settings(max_examples=50)
def test_decryption_inverts_encryption(case: tuple[str, int, np.ndarray], dtype: str):
    """decrypt_frames(frames(x)) == x to the dtype's precision, in both layouts, in one and three channels."""
    layout, patch, pixels = case
    cipher = FrameCipher(DOMAIN, dtype, layout, patch)
    rows = cipher.frames("s", pixels)
    assert rows.shape == (*pixels.shape, 1)
    assert rows.dtype == dtype
    np.testing.assert_allclose(cipher.decrypt_frames(rows), pixels, atol=1e-5 if dtype == "float32" else 1e-12)


@given(cases())
@settings(max_examples=50)
def test_frames_are_algorithm_1_in_their_place(case: tuple[str, int, np.ndarray]):
    """C == P K where each row of C stands where the row of P stood, and has its norm; other pixels are unrelated."""
    layout, patch, pixels = case
    mixed = FrameCipher(DOMAIN, "float64", layout, patch).frames("s", pixels)[..., 0]
    p, c = rows_of_p(pixels, layout, patch), rows_of_p(mixed, layout, patch)
    np.testing.assert_allclose(c, p @ DOMAIN.frame_key(layout, p.shape[1]), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(c, axis=1), np.linalg.norm(p, axis=1), atol=1e-12)


@given(cases(layouts=("patches",)), st.sampled_from([1, 3]), st.integers(1, 5))
@settings(max_examples=20)
def test_a_patch_strided_convolution_spans_the_same_functions(
    case: tuple[str, int, np.ndarray], side: int, filters: int
):
    """A convolution over `side` x `side` patches, of a patch's stride, gives by K^T w what w gives on plaintext.

    K^T mixes each of the kernel's patches. Padding is Keras's `same`, as in the networks: whole patches of zeros.
    """
    layout, patch, pixels = case
    channels = pixels.shape[-1]
    mixed = FrameCipher(DOMAIN, "float64", layout, patch).frames("s", pixels)[..., 0]
    w = np.random.default_rng(0).normal(size=(side, side, patch * patch * channels, filters))
    k = DOMAIN.frame_key("patches", w.shape[2])
    plain, cipher = (
        keras.ops.conv(frames, patches_to_kernel(kernel, patch), strides=patch, padding="same")
        for frames, kernel in ((pixels, w), (mixed, k.T @ w))
    )
    np.testing.assert_allclose(plain, cipher, atol=1e-12)


def patches_to_kernel(w: np.ndarray, patch: int) -> np.ndarray:
    """Return weights of patches `[side, side, pixels, filters]` as a kernel `[side * patch, side * patch, ...]`."""
    side, _, pixels, filters = w.shape
    parts = w.reshape(side, side, patch, patch, pixels // patch**2, filters).transpose(0, 2, 1, 3, 4, 5)
    return parts.reshape(side * patch, side * patch, -1, filters)


@given(cases(layouts=("rows",)), st.integers(1, 5))
@settings(max_examples=20)
def test_a_convolution_as_wide_as_the_frame_spans_the_same_functions(case: tuple[str, int, np.ndarray], filters: int):
    """With rows, Keras's convolution of two whole rows gives on ciphertext, by K^T w, what w gives on plaintext."""
    layout, patch, pixels = case
    width, channels = pixels.shape[2:]
    mixed = FrameCipher(DOMAIN, "float64", layout, patch).frames("s", pixels)[..., 0]
    w = np.random.default_rng(0).normal(size=(2, width * channels, filters))
    k = DOMAIN.frame_key("rows", width * channels)
    padded = [np.concatenate([frames, frames], axis=1) for frames in (pixels, mixed)]  # at least two rows
    plain, cipher = (
        keras.ops.conv(frames, kernel.reshape(2, width, channels, filters), padding="valid")
        for frames, kernel in zip(padded, (w, k.T @ w), strict=True)
    )
    np.testing.assert_allclose(plain, cipher, atol=1e-12)


def test_frames_are_written_into_a_buffer_that_fits_and_no_other():
    """A given buffer is filled and returned; another shape or dtype is an error."""
    cipher, pixels = FrameCipher(DOMAIN, "float32", "patches", 2), np.arange(32.0).reshape(2, 4, 4, 1)
    buffer = np.zeros((3, 4, 4, 1, 1), np.float32)
    assert np.shares_memory(cipher.frames("s", pixels, buffer[:2]), buffer)
    np.testing.assert_array_equal(buffer[:2], cipher.frames("s", pixels))
    np.testing.assert_array_equal(buffer[2:], 0)
    for out in (buffer, np.zeros((2, 4, 4, 1), np.float32), np.zeros((2, 4, 4, 1, 1))):
        with pytest.raises(ValueError, match="do not fit"):
            cipher.frames("s", pixels, out)


def test_labels_and_gaps_are_plain_numbers():
    """A label is one-hot, findings are pairs, gaps are as they were, each with one slot; labels are read back."""
    cipher = FrameCipher(DOMAIN, "float32", "patches", 4)
    label, gaps = cipher.label("s", 1, 3), cipher.gaps("s", np.array([0.0, 0.5]))
    np.testing.assert_array_equal(label, np.array([[0], [1], [0]], np.float32), strict=True)
    np.testing.assert_array_equal(gaps, np.array([[0], [0.5]], np.float32), strict=True)
    findings = cipher.findings("s", (1, UNKNOWN, 0))
    assert (findings.shape, findings.dtype) == ((3, 2, 1), np.float32)
    np.testing.assert_array_equal(encryption.decrypt_classes(DOMAIN, label[None]), [1])
    np.testing.assert_array_equal(encryption.decrypt_findings(DOMAIN, findings), [1, UNKNOWN, 0])


@pytest.mark.parametrize(("height", "width"), [(9, 8), (8, 9), (2, 8)])
def test_sizes_that_are_not_whole_patches_are_refused(height: int, width: int):
    """One line names the sizes, before ingest begins and when a frame comes."""
    cipher = FrameCipher(DOMAIN, "float32", "patches", 4)
    for refused in (lambda: cipher.check(height, width), lambda: cipher.frames("s", np.zeros((1, height, width, 1)))):
        with pytest.raises(ConfigError, match=f"^images of {height} x {width} are not made of patches of 4 x 4.*$"):
            refused()
    cipher.check(8, 12)
    FrameCipher(DOMAIN, "float32", "rows", 0).check(9, 7)


@pytest.mark.parametrize(("layout", "patch"), [("rows", 4), ("patches", 0), ("patches", 1), ("columns", 4)])
def test_layouts_that_are_none_are_refused(layout: str, patch: int):
    """Rows have no patch, patches have at least 2 pixels a side, and there is no third layout."""
    with pytest.raises(ConfigError, match="patch"):
        FrameCipher(DOMAIN, "float32", layout, patch)


def test_a_domain_of_rows_mixes_no_frames(domain: KeyDomain):
    """A domain of the scheme `more` is refused: its frames are to be rows of slots."""
    with pytest.raises(ConfigError, match="more-frame"):
        FrameCipher(domain, "float32", "patches", 4)
