"""Counts of several findings: each adds up by itself, and what contradicts itself is refused."""

import itertools
import json

import numpy as np
import pytest
from flwr.app import MetricRecord
from hypothesis import given
from hypothesis import strategies as st

from fedpp.config.task import Task
from fedpp.errors import FederationError
from fedpp.learning.metrics import count_findings, presence
from fedpp.protocol.counts import MAX_EXAMPLES, SCORE_BINS, UNKNOWN, Counts
from fedpp.protocol.finding_counts import FindingCounts, longest_text, total
from fedpp.values import canonical


def counted(seed: int, examples: int, findings: int = 3) -> FindingCounts:
    """Count drawn predictions of drawn states, a third of them unknown."""
    generator = np.random.default_rng(seed)
    states = generator.integers(UNKNOWN, 2, size=(examples, findings))
    return count_findings(states, presence(generator.normal(size=states.shape)))


some = st.builds(counted, st.integers(0, 2**32), st.integers(0, 12))


@given(some, some, some)
def test_addition_is_associative_and_commutative(a: FindingCounts, b: FindingCounts, c: FindingCounts) -> None:
    """The total is the same in whatever order the sites' replies arrive."""
    totals = {total(order) for order in itertools.permutations((a, b, c))}
    totals |= {a + (b + c), (a + b) + c}
    assert len(totals) == 1


@given(some, some)
def test_each_finding_adds_up_by_itself(a: FindingCounts, b: FindingCounts) -> None:
    """A sum's counts of a finding are the sum of those counts, and its examples are all sequences."""
    together = a + b
    assert together.examples == a.examples + b.examples
    assert together.findings == tuple(x + y for x, y in zip(a.findings, b.findings, strict=True))
    assert a + FindingCounts.zero(3) == a


@given(some)
def test_mapping_returns_through_flower_and_json(counts: FindingCounts) -> None:
    """Counts survive a Flower MetricRecord, its bytes, and JSON unchanged."""
    record = MetricRecord.inflate(MetricRecord(counts.to_mapping()).deflate())
    assert FindingCounts.from_mapping(dict(record)) == counts
    assert FindingCounts.from_mapping(json.loads(json.dumps(counts.to_mapping()))) == counts


@pytest.mark.parametrize(("classes", "multi_label"), [(2, False), (9, False), (1, True), (14, True)])
def test_no_counts_have_a_longer_text(classes: int, multi_label: bool) -> None:
    """The bound holds for the largest counts, and is a small multiple of their text, most of which is zeros."""
    task = Task(1, 8, 8, 1, tuple(f"{number}" for number in range(classes)), multi_label=multi_label)
    many = MAX_EXAMPLES // (2 if multi_label else classes)
    kinds = 2 if multi_label else classes
    cells = tuple(tuple(many if row == column else 0 for column in range(kinds)) for row in range(kinds))
    scores = [tuple(total if place == 0 else 0 for place in range(SCORE_BINS)) for total in (many * (kinds - 1), many)]
    counts = Counts(many * kinds, 746.0 * many * kinds - 0.1, cells, *scores)
    mapping = FindingCounts(counts.examples, (counts,) * classes).to_mapping() if multi_label else counts.to_mapping()
    length = len(canonical(mapping))
    assert length <= longest_text(task) <= 20 * length


def test_counts_of_different_findings_do_not_add() -> None:
    """Sites that were ingested with different findings are refused, with what to do."""
    with pytest.raises(FederationError, match=r"2 and of 3 findings.*same findings"):
        FindingCounts.zero(2) + FindingCounts.zero(3)


SOUND = counted(0, 8).to_mapping()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("examples", None, "missing 'examples'"),
        ("examples", 7.0, "whole numbers as 'examples', got float"),
        ("examples", True, "whole numbers as 'examples', got bool"),
        ("examples", 1, "a finding is known in . of 1 examples"),
        ("patient", 7, "unknown 'patient'"),
        ("4-examples", 0, "unknown '4'"),
        ("01-examples", 0, "unknown '01'"),
        ("3-examples", 0, "missing 'confusion'"),
        ("1-examples", None, "missing 'examples'"),
        ("1-examples", 100, "do not add up"),
        ("2-confusion", [0] * 9, "do not add up"),
        ("2-patient", 3, "unknown 'patient'"),
    ],
)
def test_a_spoilt_mapping_is_refused(name: str, value: object, message: str) -> None:
    """What is unknown, missing, mistyped or contradictory is refused in one line that names it."""
    spoilt: dict[str, object] = {**SOUND, name: value}
    if value is None:
        del spoilt[name]
    with pytest.raises(FederationError, match=message) as refusal:
        FindingCounts.from_mapping(spoilt)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("examples", "findings", "message"),
    [
        (0, (), "counts of findings need those of 2 classes"),
        (0, (Counts.zero(3),), "need those of 2 classes"),
        (1, (Counts.zero(2), counted(0, 8).findings[0]), "a finding is known in . of 1 examples"),
    ],
)
def test_findings_that_contradict_each_other_are_refused(
    examples: int, findings: tuple[Counts, ...], message: str
) -> None:
    """There is one finding at least, each has two classes, and none is known in more examples than there are."""
    with pytest.raises(FederationError, match=message):
        FindingCounts(examples, findings)
