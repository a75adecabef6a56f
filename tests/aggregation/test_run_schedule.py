"""A run's schedule: rounds of training, then validation of the last state and test of the chosen one."""

from collections.abc import Sequence

import numpy as np
import pytest

from fedpp.aggregation.run_schedule import RunSchedule
from fedpp.errors import FederationError
from fedpp.learning.metrics import count
from fedpp.protocol.counts import Counts


def counts_of(loss: float) -> Counts:
    """Return counts of one right prediction for each class, of this mean loss."""
    p = np.exp(-loss)
    return count([0, 1], [[p, 1 - p], [1 - p, p]])


def followed(losses: Sequence[float], **settings: object) -> list[tuple[str, int, int]]:
    """Return what was due, the state and the chosen one, before each round and at the end."""
    at, seen = RunSchedule(), []
    usual = {"rounds": 3, "monitor": "last", "patience": 0, **settings}
    for loss in losses:
        seen.append((at.due, at.state, at.chosen))
        at = at.advanced(counts_of(loss), **usual)  # type: ignore[arg-type]  # each has the type of its name
    return [*seen, (at.due, at.state, at.chosen)]


def test_two_rounds_without_training_end_a_run() -> None:
    """All rounds train, then the last state is validated and the chosen one is tested."""
    assert followed([0.5] * 5) == [
        ("train", 0, 0),
        ("train", 1, 0),
        ("train", 2, 1),
        ("validation", 3, 2),
        ("test", 3, 3),
        ("end", 3, 3),
    ]


def test_the_state_of_the_best_figure_is_chosen() -> None:
    """With a monitored loss the state of the lowest one is tested, also if it is the last or the first."""
    assert [
        followed(losses, monitor="loss")[-2:] for losses in ([5, 2, 3, 4, 1], [5, 4, 3, 2, 1], [1, 2, 2, 2, 1])
    ] == [[("test", 3, chosen), ("end", 3, chosen)] for chosen in (1, 3, 0)]


def test_patience_ends_training_early() -> None:
    """After so many states without a better figure the last state is validated, and the chosen one tested."""
    losses = [0.5, 0.4, 0.41, 0.4, 0.42, 0.3]
    assert [due for due, _, _ in followed(losses, rounds=10, monitor="loss", patience=2)] == [
        *["train"] * 4,
        "validation",
        "test",
        "end",
    ]
    assert followed(losses, rounds=10, monitor="loss", patience=2)[-1] == ("end", 4, 1)


def test_an_undefined_figure_is_no_better() -> None:
    """Counts without positives have no AUC: such a state is chosen only while no state has one."""
    undefined, defined = count([0], [[0.9, 0.1]]), counts_of(0.1)
    at = RunSchedule()
    for counts, chosen in ((undefined, 0), (undefined, 1), (defined, 2), (undefined, 2), (defined, 2)):
        at = at.advanced(counts, rounds=9, monitor="auc", patience=0)
        assert at.chosen == chosen


def test_no_round_follows_the_end() -> None:
    """A complete run takes no more counts."""
    with pytest.raises(FederationError, match="complete"):
        RunSchedule(due="end").advanced(counts_of(0.1), rounds=1, monitor="last", patience=0)
