"""Evaluation counts: the sums and counts that a vault discloses about predictions, which add up over sites.

Class 0 is the negative class and every other class is positive; a sequence's positive score is
`1 - p(class 0)`. Its histogram gives an AUC of all sites together without any single score leaving a site.
This is not anonymity: counts over few sequences are nearly the single results.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self, cast

from fedpp.errors import FederationError

UNKNOWN = -1  # state of a finding, where 1 is present and 0 absent: it is counted nowhere

Histogram = tuple[int, ...]
Matrix = tuple[tuple[int, ...], ...]
MappedCounts = dict[str, int | float | list[int] | list[float]]

# Few bins, since a histogram of one sequence a bin tells every label. What they cost, measured on 84 sets of scores of
# lung ultrasound (CNN and CNN-Bi-LSTM after 1 to 15 epochs, 38 to 61 held-out sequences): the mean distance of the
# AUC from the exact one, on these sets, and on 200 and 1,000 sequences drawn from their smoothed distributions.
#   63 bins 0.0046, 0.0017 and 0.0010 (the sets' AUCs have a standard error of 0.055); 601 bins 0.0011, 0.0003, 0.0001
#   48 bins, scale 0.05: 0.0042, 0.0020 and 0.0011; 32 bins, scale 0.05: 0.0077, 0.0034 and 0.0024
# A larger scale is better on these and worse where scores cluster, as an untrained network's do: scores of a spread of
# 0.01 at one half are 0.005 off, and would be 0.023 off at a scale of 0.05.
SCORE_LIMIT = 20.0
SCORE_BINS = 63  # odd, so that scores of one half, give or take rounding, share the middle bin
_SCORE_SCALE = 0.02  # below it bins have one width, 0.005 in log-odds; above it, 27 % of the log-odds
LOSS_UNITS = 2.0**30
_LARGEST_LOSS = 746.0  # the smallest positive float64 costs 745 nats
MAX_EXAMPLES = 2**32


def _score_edges() -> tuple[float, ...]:
    reach = math.asinh(SCORE_LIMIT / _SCORE_SCALE)
    half = [_SCORE_SCALE * math.sinh(reach * (2 * edge / SCORE_BINS - 1)) for edge in range(1, (SCORE_BINS + 1) // 2)]
    return (-SCORE_LIMIT, *half, *(-edge for edge in reversed(half)), SCORE_LIMIT)


SCORE_EDGES = _score_edges()
"""The `SCORE_BINS + 1` edges of the bins, in log-odds of the positive score; a bin holds its lower edge."""


@dataclass(frozen=True)
class Counts:
    """Evaluation counts of predictions for `examples` sequences of K classes.

    `loss_sum` is kept in steps of 2^-30, so that addition is exact up to 8 million nats and the order in
    which sites reply never shows. Raises `FederationError` for figures that contradict each other.
    """

    examples: int
    loss_sum: float  # cross entropy in nats, summed over the examples
    confusion: Matrix  # [K, K]: rows are true classes, columns predicted ones
    positive_scores: Histogram  # [SCORE_BINS] over SCORE_EDGES, of the examples whose true class is not 0
    negative_scores: Histogram  # [SCORE_BINS], of those whose true class is 0

    def __post_init__(self) -> None:
        """Refuse figures that are negative, of another size, or do not add up."""
        classes = len(self.confusion)
        if classes < 2 or any(len(row) != classes for row in self.confusion):
            raise FederationError(f"counts need a square confusion of 2 or more classes, got {classes} rows")
        for name, histogram in (("positive", self.positive_scores), ("negative", self.negative_scores)):
            if len(histogram) != SCORE_BINS:
                raise FederationError(
                    f"counts need {SCORE_BINS} bins of {name} scores, got {len(histogram)}: use one fedpp at all sites"
                )
        if any(min(row) < 0 for row in (*self.confusion, self.positive_scores, self.negative_scores)):
            raise FederationError("counts must not be negative: a site's reply is damaged")
        if self.examples > MAX_EXAMPLES or not 0 <= self.loss_sum <= _LARGEST_LOSS * self.examples:
            raise FederationError(
                f"a sum of losses of {self.loss_sum} over {self.examples} examples is not possible: "
                "a site's reply is damaged or its training diverged"
            )
        negatives, positives = sum(self.confusion[0]), sum(map(sum, self.confusion[1:]))
        if (self.examples, sum(self.positive_scores), sum(self.negative_scores)) != (
            positives + negatives,
            positives,
            negatives,
        ):
            raise FederationError(
                f"counts do not add up: {self.examples} examples, {negatives} negative and {positives} "
                f"positive in the confusion, {sum(self.negative_scores)} and {sum(self.positive_scores)} "
                "in the scores"
            )
        object.__setattr__(self, "loss_sum", round(self.loss_sum * LOSS_UNITS) / LOSS_UNITS)

    @classmethod
    def zero(cls, classes: int) -> Self:
        """Return the counts of no example, the neutral element of addition."""
        nothing = (0,) * SCORE_BINS
        return cls(0, 0.0, ((0,) * classes,) * classes, nothing, nothing)

    def __add__(self, other: Self) -> Self:
        """Return the counts of both sets of examples together: `count(a) + count(b) == count(a and b)`."""
        if len(self.confusion) != len(other.confusion):
            raise FederationError(
                f"counts of {len(self.confusion)} and of {len(other.confusion)} classes cannot be added: "
                "ingest all sites with the same classes"
            )
        return type(self)(
            self.examples + other.examples,
            self.loss_sum + other.loss_sum,
            tuple(map(_sum, self.confusion, other.confusion)),
            _sum(self.positive_scores, other.positive_scores),
            _sum(self.negative_scores, other.negative_scores),
        )

    def to_mapping(self) -> MappedCounts:
        """Return flat numbers and lists, fit for JSON and for Flower's MetricRecord."""
        return {
            "examples": self.examples,
            "loss-sum": self.loss_sum,
            "confusion": [cell for row in self.confusion for cell in row],
            "positive-scores": list(self.positive_scores),
            "negative-scores": list(self.negative_scores),
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Self:
        """Read what `to_mapping` returned; raise `FederationError` for anything else."""
        known = {field.name.replace("_", "-") for field in fields(cls)}
        wrong = [f"unknown {name!r}" for name in sorted(set(values) - known)]
        wrong += [f"missing {name!r}" for name in sorted(known - set(values))]
        if wrong:
            raise FederationError(f"counts do not fit: {', '.join(wrong)}; use one fedpp at all sites")
        loss_sum = values["loss-sum"]
        if not isinstance(loss_sum, int | float) or isinstance(loss_sum, bool):
            raise FederationError(f"counts need a number as 'loss-sum', got {type(loss_sum).__name__}")
        cells = _integers(values, "confusion")
        classes = math.isqrt(len(cells))
        if classes * classes != len(cells):
            raise FederationError(f"counts need a square 'confusion', got {len(cells)} numbers")
        return cls(
            _integer(values["examples"], "examples"),
            float(loss_sum),
            tuple(cells[start : start + classes] for start in range(0, len(cells), classes or 1)),
            _integers(values, "positive-scores"),
            _integers(values, "negative-scores"),
        )


def _sum(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(first, second, strict=True))


def _integer(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise FederationError(f"counts need whole numbers as {name!r}, got {type(value).__name__}")
    return value


def _integers(values: Mapping[str, object], name: str) -> tuple[int, ...]:
    if not isinstance(values[name], list | tuple):
        raise FederationError(f"counts need a list as {name!r}, got {type(values[name]).__name__}")
    return tuple(_integer(value, name) for value in cast("list[object]", values[name]))
