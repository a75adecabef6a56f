"""What the page on threats says that the frame form does *not* protect, on real X-rays of two hospitals.

If one of these fails, the page is out of date.
"""

from itertools import product

import numpy as np
import pytest
from conftest import DATA
from PIL import Image
from sklearn.datasets import load_sample_images

from fedpp.keys.frame_cipher import FrameCipher
from fedpp.keys.key_domain import KeyDomain

SIZE, COUNT = 64, 200
DOMAIN = KeyDomain.of_secret(bytes(range(32)), n=1, scheme="more-frame")


def images(site: str) -> np.ndarray:
    """Return standardised X-rays `[COUNT, SIZE, SIZE, 1]` of a hospital."""
    files = sorted((DATA / "chexpert_layout" / site).rglob("*.png"))[: 2 * COUNT : 2]
    pixels = np.stack([np.asarray(Image.open(file).convert("L").resize((SIZE, SIZE)), float) for file in files])
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    return (pixels / pixels.std(axis=(1, 2), keepdims=True))[..., None]


@pytest.fixture(scope="module")
def ours() -> np.ndarray:
    return images("site_b")


@pytest.fixture(scope="module")
def public() -> np.ndarray:
    return images("site_a")


def grid(frames: np.ndarray, patch: int) -> np.ndarray:
    """Return frames as grids of patches `[frames, rows, columns, patch * patch]`."""
    cells = SIZE // patch
    parts = frames.reshape(-1, cells, patch, cells, patch).transpose(0, 1, 3, 2, 4)
    return parts.reshape(-1, cells, cells, patch * patch)


def picture(patches: np.ndarray) -> np.ndarray:
    """Return the frames `[frames, SIZE, SIZE]` of grids of 2 x 2 patches."""
    cells = SIZE // 2
    return patches.reshape(-1, cells, cells, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, SIZE, SIZE)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean correlation of image with image."""
    return float(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(x, y, strict=True)]))


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_a_smaller_picture_shows_without_any_key(ours: np.ndarray, patch: int):
    """The principal component of the mixed patches is the image, smaller by the patch: r above 0.99."""
    mixed = grid(FrameCipher(DOMAIN, "float32", "patches", patch).frames("s", ours), patch)
    flat = mixed.reshape(-1, patch * patch)
    thumbnails = mixed @ np.linalg.eigh(flat.T @ flat)[1][:, -1]
    assert abs(correlation(thumbnails, grid(ours, patch).mean(axis=-1))) > 0.99


@pytest.mark.parametrize("secret", [0, *(pytest.param(secret, marks=pytest.mark.slow) for secret in range(1, 5))])
def test_small_patches_show_the_full_picture_with_nothing_known(ours: np.ndarray, secret: int):
    """The components of mixed 2 x 2 patches are Hadamard's, in one of 16 ways, and one is smooth: r above 0.9999."""
    domain = KeyDomain.of_secret(bytes([secret]) * 32, n=1, scheme="more-frame")
    mixed = grid(FrameCipher(domain, "float32", "patches", 2).frames("s", ours), 2)
    flat = mixed.reshape(-1, 4)
    components = mixed @ np.linalg.eigh(flat.T @ flat)[1][:, ::-1]  # mean, edges both ways, and their product
    hadamard = np.kron([[1, 1], [1, -1]], [[1, 1], [1, -1]]) / 2
    candidates = [
        picture(components * (1, *signs) @ hadamard[[0, *edges, 3]])
        for signs in product((1, -1), repeat=3)
        for edges in ((1, 2), (2, 1))
    ]
    assert abs(correlation(min(candidates, key=roughness), ours)) > 0.9999


def roughness(frames: np.ndarray) -> float:
    """Return the mean square of the steps across the borders of 2 x 2 patches."""
    steps = (np.diff(frames, axis=axis).take(range(1, SIZE - 1, 2), axis=axis) for axis in (1, 2))
    return float(sum((step**2).mean() for step in steps))


@pytest.mark.parametrize(("layout", "patch"), [("rows", 0), ("patches", 2), ("patches", 4), ("patches", 8)])
def test_one_known_image_gives_the_key(ours: np.ndarray, layout: str, patch: int):
    """Least squares on one image and its ciphertext gives K, and with it every frame of the domain."""
    mixed = FrameCipher(DOMAIN, "float64", layout, patch).frames("s", ours)[..., 0]
    p, c = (grid(x, patch) if patch else x.reshape(COUNT, SIZE, 1, SIZE) for x in (ours, mixed))
    size = p.shape[-1]
    k = np.linalg.lstsq(p[0].reshape(-1, size), c[0].reshape(-1, size), rcond=None)[0]
    np.testing.assert_allclose(c @ np.linalg.inv(k), p, atol=1e-6)


@pytest.mark.parametrize("patch", [2, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_similar_public_images_give_the_key(ours: np.ndarray, public: np.ndarray, patch: int):
    """Second-order statistics of another hospital's images read ours, which nobody knows: r above 0.98."""
    mixed = grid(FrameCipher(DOMAIN, "float32", "patches", patch).frames("s", ours), patch)
    k = key_by_second_order(grid(public, patch), mixed)
    assert correlation(mixed @ k.T, grid(ours, patch)) > 0.98


def test_two_photographs_of_anything_give_the_key(ours: np.ndarray):
    """The public images need not be alike: of 2 x 2 patches two sample photographs tell enough, r above 0.99."""
    tiles = [np.asarray(Image.fromarray(photo).convert("L"), float) for photo in load_sample_images().images]
    cut = [t[y : y + SIZE, x : x + SIZE] for t in tiles for y in range(0, 384, SIZE) for x in range(0, 576, SIZE)]
    photographs = np.stack(cut)[..., None]
    photographs -= photographs.mean(axis=(1, 2), keepdims=True)
    photographs /= photographs.std(axis=(1, 2), keepdims=True) + 1e-9
    mixed = grid(FrameCipher(DOMAIN, "float32", "patches", 2).frames("s", ours), 2)
    k = key_by_second_order(grid(photographs, 2), mixed)
    assert abs(correlation(mixed @ k.T, grid(ours, 2))) > 0.99


def key_by_second_order(public: np.ndarray, mixed: np.ndarray) -> np.ndarray:
    """Estimate K from grids of patches: public plaintext, and the ciphertext of other images.

    Where `cov(P)` has eigenvectors U, `cov(C) = K^T cov(P) K` has K^T U, up to a sign each. The covariances with the
    patches below and to the right are mixed by K as well, and say which signs go together; skewness gives the last one.
    """
    (values_p, u), (values_c, v) = (np.linalg.eigh(_covariance(x, x)) for x in (public, mixed))
    agreement = np.zeros_like(u)
    for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[:, :, 1:], np.s_[:, :, :-1])):
        in_public = u.T @ _covariance(public[one], public[other]) @ u
        agreement += in_public * (v.T @ _covariance(mixed[one], mixed[other]) @ v)
    agreement /= np.sqrt(np.outer(values_p, values_p) * np.outer(values_c, values_c))
    np.fill_diagonal(agreement, 0)
    signs = np.sign(np.linalg.eigh(agreement + agreement.T)[1][:, -1])
    skewness = ((public @ u[:, -1]) ** 3).mean() * ((mixed @ v[:, -1]) ** 3).mean()
    return (u * signs * signs[-1] * np.sign(skewness)) @ v.T


def _covariance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    size = x.shape[-1]
    return x.reshape(-1, size).T @ y.reshape(-1, size) / (x.size / size)
