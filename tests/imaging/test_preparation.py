"""Preparation: chosen, resized and standardised frames."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.images import read_image, read_pages
from fedpp.imaging.preparation import gaps, pad, prepare
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence

GENERATOR = np.random.default_rng(0)


def sequence(*frames: np.ndarray) -> ImageSequence:
    return ImageSequence("s", "p", None, tuple(frames))


def steps(count: int) -> ImageSequence:
    """Make frames of 3 x 3 pixels whose values are their number."""
    return sequence(*(np.full((3, 3), float(i)) for i in range(count)))


def order(prepared: np.ndarray) -> list[int]:
    """Rank the frames by their values: equal frames have one rank."""
    return np.unique(prepared[:, 0, 0, 0], return_inverse=True)[1].tolist()


@given(st.integers(2, 5), st.integers(1, 40), st.integers(1, 40), st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
@settings(max_examples=40, deadline=None)
def test_a_sequence_is_standardised(frames: int, height: int, width: int, offset: float, contrast: float):
    """For any brightness and contrast the mean is 0, the deviation 1, the shape as requested."""
    raw = sequence(*(offset + contrast * GENERATOR.normal(size=(20, 30)) for _ in range(5)))
    prepared = prepare(raw, frames, height, width)
    assert prepared.shape == (frames, height, width, 1)
    assert prepared.dtype == np.float64
    assert abs(prepared.mean()) < 1e-6
    assert abs(prepared.std() - 1) < 1e-6


def test_brightness_and_contrast_of_a_scanner_vanish_and_growth_stays():
    """A linear change of all pixels changes nothing, while frames differ from one another as before."""
    raw = sequence(*(GENERATOR.uniform(size=(16, 16)) + step for step in range(3)))
    changed = replace(raw, frames=tuple(300 + 50 * frame for frame in raw.frames))
    np.testing.assert_allclose(prepare(changed, 3, 8, 8), prepare(raw, 3, 8, 8), atol=1e-4)
    assert np.diff(prepare(raw, 3, 8, 8).mean(axis=(1, 2, 3))).min() > 0.5


@pytest.mark.parametrize("value", [0.0, 0.1, 7.3, -1e6, 1e-12])
def test_a_constant_sequence_is_zero(value: float):
    """Black or evenly grey frames become zeros, not blown-up rounding noise."""
    np.testing.assert_array_equal(prepare(sequence(*[np.full((30, 50), value)] * 2), 2, 7, 9), 0)


def test_a_small_contrast_on_a_large_offset_survives():
    """Two levels that differ by 1e-3 at 1e6 still differ after resizing."""
    frame = np.full((8, 8), 1e6)
    frame[:, 4:] += 1e-3
    prepared = prepare(sequence(frame), 1, 4, 4)[0, :, :, 0]
    assert prepared[:, :2].max() < -0.5
    assert prepared[:, 2:].min() > 0.5


def test_frames_are_chosen_evenly():
    """First and last are among them, and a short sequence has its own frames and no others."""
    assert order(prepare(steps(16), 4, 3, 3)) == [0, 1, 2, 3]
    chosen = prepare(steps(16), 4, 3, 3)[:, 0, 0, 0]
    np.testing.assert_allclose((chosen - chosen[0]) / (chosen[-1] - chosen[0]) * 15, [0, 5, 10, 15])
    assert order(prepare(steps(3), 6, 3, 3)) == [0, 1, 2]


def test_frames_of_different_sizes_fit():
    """Frames of one sequence may differ in size and shape."""
    raw = sequence(GENERATOR.uniform(size=(10, 20)), GENERATOR.uniform(size=(33, 7)))
    assert prepare(raw, 2, 12, 12).shape == (2, 12, 12, 1)


def test_making_smaller_does_not_alias():
    """A fine checkerboard becomes even grey beside its even neighbour, not a pattern."""
    frame = np.zeros((64, 64))
    frame[::2, :32:2] = frame[1::2, 1:32:2] = 1
    prepared = prepare(sequence(frame), 1, 8, 8)[0, :, :, 0]
    assert prepared[2:6, 1:3].std() < 0.05
    assert prepared[:, :3].mean() > prepared[:, 5:].mean() + 1


@pytest.mark.parametrize("sizes", [(0, 8, 8), (4, 0, 8), (4, 8, -1)])
def test_sizes_must_be_positive(sizes: tuple[int, int, int]):
    """No frame, or no pixel, is a wrong setting."""
    with pytest.raises(ConfigError, match="at least 1"):
        prepare(steps(2), *sizes)


def test_a_sequence_does_not_show_who_it_is():
    """Neither identifiers nor pixels stand in a sequence's repr."""
    shown = repr(ImageSequence("secret-id", "secret-patient", "a", (np.full((2, 2), 0.123),)))
    assert "secret" not in shown
    assert "0.123" not in shown


def test_gaps_are_between_the_chosen_frames():
    """Days between chosen frames, in logarithms of which a year is 1; the first is 0, and frames of one time too."""
    times = (0.0, 0.0, 30.0, 40.0, 365.0)
    timed = replace(steps(5), times=times)
    expected = np.log1p([0, 0, 30, 10, 325]) / np.log(366)
    np.testing.assert_allclose(gaps(timed, 9), expected)
    np.testing.assert_allclose(gaps(timed, 3), np.log1p([0, 30, 335]) / np.log(366))
    with pytest.raises(RawDataError, match="no times"):
        gaps(steps(5), 3)


def test_padding_follows_the_values():
    """Values stay as they are, and zeros come after them."""
    np.testing.assert_array_equal(pad(np.array([[1.0], [2.0]]), 4), [[1], [2], [0], [0]])
    np.testing.assert_array_equal(pad(np.array([1.0, 2.0]), 2), [1, 2])


def test_colours_are_standardised_together():
    """Three channels keep their offsets and contrasts beside one another; the whole has mean 0 and deviation 1."""
    frames = [GENERATOR.uniform(size=(9, 7, 3)) * (1, 2, 4) + (0, 5, 0) for _ in range(2)]
    prepared = prepare(sequence(*frames), 2, 9, 7, 3)
    raw = np.stack(frames)
    np.testing.assert_allclose(prepared, (raw - raw.mean()) / raw.std(), atol=1e-5)


def test_a_grey_image_has_three_equal_channels():
    """In a dataset of colours it is what it is in a grey one, three times."""
    grey = sequence(*GENERATOR.uniform(size=(2, 10, 12)))
    prepared = prepare(grey, 2, 6, 5, 3)
    assert prepared.shape == (2, 6, 5, 3)
    for channel in range(3):
        np.testing.assert_allclose(prepared[..., channel], prepare(grey, 2, 6, 5)[..., 0], atol=1e-12)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_an_image_file_is_read_in_its_colours(tmp_path, suffix: str):
    """Red, green and blue stand in their channels if colours are wanted, and become one grey value otherwise."""
    for number, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{number}.{suffix}")
    Image.new("L", (4, 4), 100).save(tmp_path / f"3.{suffix}")
    for reader in (read_image, read_pages):
        files = [FrameFile(tmp_path / f"{number}.{suffix}", 1, reader) for number in range(4)]
        raw = replace(sequence(), frames=FrameFiles(files))
        first = prepare(raw, 4, 2, 2, 3)[:, 0, 0]
        assert first[:3].argmax(axis=1).tolist() == [0, 1, 2]
        assert np.ptp(first[3]) < 1e-12
        assert prepare(raw, 4, 2, 2).shape == (4, 2, 2, 1)


@pytest.mark.parametrize(
    ("channels", "error", "message"), [(2, ConfigError, "1 channel or 3, got 2"), (1, RawDataError, "has 3 channels")]
)
def test_channels_that_do_not_fit_are_refused(channels: int, error, message: str):
    """There are grey and coloured images and nothing else, and colours are not dropped silently."""
    with pytest.raises(error, match=message):
        prepare(sequence(np.zeros((4, 4, 3))), 1, 4, 4, channels)
