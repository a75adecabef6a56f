"""Attacks by weights: a coordinator alone has a hospital compute with weights of its choice, and reads the replies.

The network is the smallest: a convolution that passes the image on, 2 x 2 maxima, one unit, two logits. A policy that
requires secure aggregation refuses the runs in clear that this needs; in masked runs no message holds weights.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

import numpy as np
from numpy.typing import NDArray

from fedpp.errors import FederationError
from fedpp.protocol.counts import SCORE_EDGES, Counts

from .attack import CHANCE, Attack, known, replaced
from .scene import laboratory as of_laboratory
from .scene.laboratory import DOMAIN, Hospital, Laboratory
from .scene.requests_in_clear import ChoosingCoordinator, Rows

Values = NDArray[np.float64]
SHIFT = 10.0  # of all pixels, so that no maximum is negative
REACH = 40.0  # of a weighted sum of a whole image's maxima
SMALL = 1e-4  # by which one weight of an image's sum is raised to read a pixel
NOTHING = 1e-9  # what rounding makes of an update of 0, at most
FAINT = 1e-9  # weight of the unit, with which Adam's first step is proportional to the gradient


def key(laboratory: Laboratory) -> float:
    """Two evaluations of one bias row each give the key's column that decrypts."""
    coordinator = ChoosingCoordinator.of(laboratory.hospitals(3), laboratory.folder)
    values = laboratory.drawn("values").normal(size=1000)
    rows = of_laboratory.encrypted(np.stack([values, laboratory.drawn("decoys").normal(size=1000)], axis=1))
    column = laboratory.drawn("guess").normal(size=DOMAIN.n)
    with suppress(FederationError):
        column = _column(coordinator)
    return known(rows @ column, values)


def test_image(laboratory: Laboratory) -> float:
    """Evaluations with one unit open for one patient give the image of a test patient, at half its size."""
    return _image(laboratory, "test", _test_image)


def training_image(laboratory: Laboratory) -> float:
    """Updates with one unit open for one patient give the image of a training patient, at half its size."""
    return _image(laboratory, "train", _training_image)


def _image(laboratory: Laboratory, split: str, read: Callable[[ChoosingCoordinator, Laboratory], Values]) -> float:
    """Return how well an image of this split is known, which `read` finds, or else a guess."""
    hospitals = laboratory.hospitals(3)
    coordinator, images = ChoosingCoordinator.of(hospitals, laboratory.folder), _maxima(hospitals[0], split)
    found = laboratory.drawn("guess").normal(size=images.shape[1:])
    with suppress(FederationError):
        found = read(coordinator, laboratory)
    return max(known(found, image) for image in images)


def runs_in_clear() -> AbstractContextManager[None]:
    """Let the hospitals' policies allow runs without secure aggregation."""
    return replaced((of_laboratory, "SECURE_AGGREGATION", "optional"))


def _maxima(hospital: Hospital, split: str) -> Values:
    """Return the 2 x 2 maxima of a hospital's images, `[sequences, pixels]`."""
    images = hospital.images(split)
    count, height, width = images.shape
    maxima: Values = images.reshape(count, height // 2, 2, width // 2, 2).max(axis=(2, 4)).reshape(count, -1)
    return maxima


def _column(coordinator: ChoosingCoordinator) -> Values:
    """Return the column of the key that decrypts, from the losses of a bias of (1, 0) and of (0, 1)."""
    values = []
    for slot in range(DOMAIN.n):
        rows = coordinator.zeros()
        rows["logits/bias"][1, slot] = 1.0
        values.append(_score(coordinator.evaluation(rows)))
    return np.array(values)


def _score(counts: Counts) -> float:
    """Return the one score of all examples, from its bin and the sum of their losses."""
    positive, negative = sum(counts.positive_scores), sum(counts.negative_scores)
    place = int(np.argmax(np.add(counts.positive_scores, counts.negative_scores)))
    low, high = SCORE_EDGES[place], SCORE_EDGES[place + 1]

    def loss(score: float) -> float:
        return float(positive * np.logaddexp(0, -score) + negative * np.logaddexp(0, score))

    return _solved(loss, counts.loss_sum, low, high)


def _solved(of: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Return where a monotone function has a value, by bisection."""
    rising = of(high) > of(low)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (of(middle) < wanted) == rising else (low, middle)
    return (low + high) / 2


def _weights(coordinator: ChoosingCoordinator, column: Values, pixels: Values, threshold: float, unit: float) -> Rows:
    """Return rows of a network whose one unit is open for images with `pixels @ maxima > threshold`."""
    one = column / (column @ column)  # decrypts to 1
    rows = coordinator.zeros()
    rows["conv0/kernel"][...] = one
    rows["conv0/bias"][...] = SHIFT * one
    rows["dense/kernel"][:, 0] = pixels[:, None] * one
    rows["dense/bias"][0] = -(threshold + SHIFT * pixels.sum()) * one
    rows["logits/kernel"][0, 1] = unit * one
    return rows


def _test_image(coordinator: ChoosingCoordinator, laboratory: Laboratory) -> Values:
    column = _column(coordinator)
    pixels = laboratory.drawn("pixels").normal(size=coordinator.zeros()["dense/kernel"].shape[:1])

    def counts(of: Values, threshold: float) -> Counts:
        return coordinator.evaluation(_weights(coordinator, column, of, threshold, 1.0))

    low, high = -REACH, REACH
    while (number := _open(counts(pixels, (low + high) / 2))) != 1:
        low, high = ((low + high) / 2, high) if number else (low, (low + high) / 2)
    threshold = (low + high) / 2
    is_positive = any(counts(pixels, threshold).positive_scores[len(SCORE_EDGES) // 2 :])

    def opened(of: Values) -> float:
        found = counts(of, threshold)
        rest = found.loss_sum - (found.examples - 1) * np.log(2)
        return _solved(lambda s: float(np.logaddexp(0, -s if is_positive else s)), rest, 0.0, SCORE_EDGES[-1])

    base = opened(pixels)
    raised = (opened(pixels + SMALL * unit) - base for unit in np.eye(pixels.size))
    return np.array(list(raised)) / SMALL


def _open(counts: Counts) -> int:
    """Return for how many examples the unit is open: their score is not 0."""
    middle = (len(SCORE_EDGES) - 1) // 2
    return counts.examples - counts.positive_scores[middle] - counts.negative_scores[middle]


def _training_image(coordinator: ChoosingCoordinator, laboratory: Laboratory) -> Values:
    column = _column(coordinator)
    pixels = laboratory.drawn("pixels").normal(size=coordinator.zeros()["dense/kernel"].shape[:1])

    def update(threshold: float) -> tuple[Values, float]:
        rows = coordinator.update(_weights(coordinator, column, pixels, threshold, FAINT))
        return rows["dense/kernel"][:, 0] @ column, float(rows["dense/bias"][0] @ column)

    low, high, image = -REACH, REACH, np.zeros_like(pixels)
    for _ in range(14):
        threshold = (low + high) / 2
        kernel, bias = update(threshold)
        if np.abs(kernel).max() < NOTHING:  # the unit is open for nobody
            high = threshold
            continue
        low, image = threshold, kernel / bias - SHIFT
    return image


WEIGHT_ATTACKS = {
    "key-two-calls": Attack("G2", key, runs_in_clear, CHANCE),
    "image-test": Attack("G2", test_image, runs_in_clear, CHANCE),
    "image-training": Attack("G2", training_image, runs_in_clear, CHANCE),
}
