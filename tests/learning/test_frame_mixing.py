"""Networks for orthogonal frame mixing: plain Keras layers on mixed patches compute the same functions."""

import numpy as np
import pytest
from conftest import TINY

from fedpp.errors import ConfigError, ModelError
from fedpp.keys.frame_cipher import FrameCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import models
from fedpp.learning.initial_weights import initial_weights

DOMAIN = KeyDomain.of_secret(bytes(range(32)), n=1, scheme="more-frame")
FRAMES = np.random.default_rng(0).normal(size=(3, 2, 8, 8, 3))
VALID = np.ones((3, 2), bool)


@pytest.mark.parametrize("patch", [2, 4])
def test_a_mixed_kernel_on_mixed_frames_equals_the_kernel_on_plain_frames(patch: int):
    """With the stem's kernel mixed by K the logits on ciphertext are those on plaintext, to rounding."""
    network = TINY.changed(patch=patch, channels=3)
    model = models.plaintext(network, "float64")
    drawn = {name: values + 0.05 for name, values in initial_weights(network, 3).items()}
    model.set_weights(list(drawn.values()))
    expected = model.predict_on_batch([FRAMES, VALID])
    mixed = np.stack([FrameCipher(DOMAIN, "float64", "patches", patch).frames("s", s)[..., 0] for s in FRAMES])
    assert abs(model.predict_on_batch([mixed, VALID]) - expected).max() > 1e-2, "mixing must change the prediction"
    key = DOMAIN.frame_key("patches", patch * patch * 3)
    drawn["stem/kernel"] = np.einsum("ij,xyif->xyjf", key, drawn["stem/kernel"])
    model.set_weights(list(drawn.values()))
    np.testing.assert_allclose(model.predict_on_batch([mixed, VALID]), expected, atol=1e-12)


@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize("architecture", ["cnn", "cnn-lstm", "cnn-bi-lstm"])
def test_the_specification_lists_the_weights_of_the_network(patch: int, architecture: str):
    """Names and shapes are Keras's own."""
    network = TINY.changed(patch=patch, architecture=architecture)
    shapes = [w.shape for w in models.plaintext(network, "float32").get_weights()]
    assert shapes == [spec.shape for spec in network.weights()]
    assert network.weights()[0].shape == (3, 3, patch**2, 12)


def test_patches_that_do_not_fit_are_rejected():
    """Images that are not whole patches, an even kernel, and ciphertext of several slots are named."""
    with pytest.raises(ConfigError, match="images of 8 x 8 are not made of patches of 3"):
        TINY.changed(patch=3)
    with pytest.raises(ConfigError, match="odd size, got 2"):
        TINY.changed(patch=2, kernel=2)
    algebra = KeyDomain.of_secret(bytes(32), n=2).evaluation_key().algebra()
    with pytest.raises(ModelError, match="orthogonal frame mixing only"):
        models.encrypted(TINY.changed(patch=2), algebra, "float32")
