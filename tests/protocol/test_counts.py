"""Counts merge like the examples that they count, and refuse what contradicts itself."""

import itertools
import json
import math

import pytest
from flwr.app import MetricRecord
from hypothesis import given
from hypothesis import strategies as st

from fedpp.errors import FederationError
from fedpp.protocol.counts import SCORE_BINS, SCORE_EDGES, SCORE_LIMIT, Counts


def histogram(entries: list[int]) -> tuple[int, ...]:
    """Place one example in each of these bins."""
    return tuple(entries.count(score_bin) for score_bin in range(SCORE_BINS))


@st.composite
def counts_of(draw: st.DrawFn, classes: int) -> Counts:
    """Draw consistent counts of up to 12 examples."""
    cell = st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1))
    examples = draw(st.lists(st.tuples(cell, st.integers(0, SCORE_BINS - 1)), max_size=12))
    cells = [pair for pair, _ in examples]
    return Counts(
        len(examples),
        draw(st.floats(0, 700)) * len(examples),
        tuple(tuple(cells.count((row, column)) for column in range(classes)) for row in range(classes)),
        histogram([score for (true, _), score in examples if true > 0]),
        histogram([score for (true, _), score in examples if true == 0]),
    )


two_classes = counts_of(2)
any_classes = st.integers(2, 4).flatmap(counts_of)


@given(two_classes, two_classes, two_classes)
def test_addition_is_associative_and_commutative(a: Counts, b: Counts, c: Counts) -> None:
    """The total is the same, bit by bit, in whatever order the sites' replies arrive."""
    totals = {(x + y) + z for x, y, z in itertools.permutations((a, b, c))}
    totals |= {x + (y + z) for x, y, z in itertools.permutations((a, b, c))}
    assert len(totals) == 1


@given(any_classes)
def test_zero_is_neutral(counts: Counts) -> None:
    """A site without examples changes nothing."""
    assert counts + Counts.zero(len(counts.confusion)) == counts


@given(two_classes, two_classes)
def test_addition_adds_every_figure(a: Counts, b: Counts) -> None:
    """Each figure of a sum is the sum of the figures."""
    total = a + b
    assert total.examples == a.examples + b.examples
    assert total.loss_sum == a.loss_sum + b.loss_sum
    assert total.confusion[1][0] == a.confusion[1][0] + b.confusion[1][0]
    assert total.positive_scores == tuple(map(sum, zip(a.positive_scores, b.positive_scores, strict=True)))
    assert total.negative_scores == tuple(map(sum, zip(a.negative_scores, b.negative_scores, strict=True)))


def test_counts_of_different_classes_do_not_add() -> None:
    """Sites that were ingested with different classes are refused, with what to do."""
    with pytest.raises(FederationError, match=r"2 and of 3 classes.*same classes"):
        Counts.zero(2) + Counts.zero(3)


@given(any_classes)
def test_mapping_returns_through_flower_and_json(counts: Counts) -> None:
    """Counts survive a Flower MetricRecord, its bytes, and JSON unchanged."""
    record = MetricRecord.inflate(MetricRecord(counts.to_mapping()).deflate())
    assert Counts.from_mapping(dict(record)) == counts
    assert Counts.from_mapping(json.loads(json.dumps(counts.to_mapping()))) == counts


ONE_EXAMPLE = Counts(1, 0.5, ((0, 0), (0, 1)), histogram([SCORE_BINS - 1]), histogram([])).to_mapping()


def test_the_example_of_the_refusals_is_sound() -> None:
    """What the refusals below spoil is accepted unspoilt."""
    assert Counts.from_mapping(ONE_EXAMPLE).examples == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("examples", None, "missing 'examples'"),
        ("patient", 7, "unknown 'patient'"),
        ("examples", 1.0, "whole numbers as 'examples', got float"),
        ("examples", True, "whole numbers as 'examples', got bool"),
        ("examples", 2, "do not add up"),
        ("examples", 10**300, "not possible"),
        ("loss-sum", "0.5", "number as 'loss-sum', got str"),
        ("loss-sum", -0.5, "not possible"),
        ("loss-sum", math.nan, "not possible"),
        ("loss-sum", math.inf, "not possible"),
        ("loss-sum", 747.0, "not possible"),
        ("confusion", [0, 0, 0], "square 'confusion', got 3"),
        ("confusion", [], "2 or more classes, got 0 rows"),
        ("confusion", [1], "2 or more classes, got 1 rows"),
        ("confusion", 1, "list as 'confusion', got int"),
        ("confusion", [0, 0, 0, 1.0], "whole numbers as 'confusion', got float"),
        ("confusion", [1, 0, 0, 0], "do not add up"),
        ("confusion", [0, 0, -1, 2], "not be negative"),
        ("positive-scores", [1], f"{SCORE_BINS} bins of positive scores, got 1"),
        ("positive-scores", list(histogram([])), "do not add up"),
        ("negative-scores", [1, -1, *histogram([])[2:]], "not be negative"),
    ],
)
def test_a_spoilt_mapping_is_refused(name: str, value: object, message: str) -> None:
    """What is unknown, missing, mistyped or contradictory is refused in one line that names it."""
    spoilt: dict[str, object] = {**ONE_EXAMPLE, name: value}
    if value is None:
        del spoilt[name]
    with pytest.raises(FederationError, match=message) as refusal:
        Counts.from_mapping(spoilt)
    assert "\n" not in str(refusal.value)


def test_score_edges_are_symmetric_fine_at_the_middle_and_relative_outside() -> None:
    """Bins are narrower than 0.005 at one half, at most 28 % of the log-odds outside, and end at 20."""
    widths = [high - low for low, high in itertools.pairwise(SCORE_EDGES)]
    assert len(widths) == SCORE_BINS
    assert [-edge for edge in reversed(SCORE_EDGES)] == list(SCORE_EDGES)
    assert SCORE_EDGES[-1] == SCORE_LIMIT
    assert 0 < min(widths) < 0.005
    outside = [width / abs(low) for low, width in zip(SCORE_EDGES, widths, strict=False) if low >= 0.1]
    assert len(outside) > 20
    assert max(outside) < 0.28


def test_a_score_of_one_half_lies_inside_a_bin() -> None:
    """Predictions of one half, give or take rounding, tie: no edge separates them."""
    assert min(abs(edge) for edge in SCORE_EDGES) > 1e-6
