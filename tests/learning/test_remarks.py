"""Remarks: the sentences for test sets that are tiny or one-sided, and for models that find nothing, by table."""

import numpy as np
import pytest

from fedpp.learning.intervals import area
from fedpp.learning.metrics import Decisions, OperatingPoint, count, presence
from fedpp.learning.remarks import remarks, sides
from fedpp.protocol.counts import Counts
from fedpp.texts import either

CLASSES = ("no Edema", "Edema")
NO_BETTER = (
    "taking the most probable class, the model decides no better than one answer for all; it is right in {}, and one "
    "answer for all in {}"
)
GUESSED = "the scores are not shown to be better than guessing (AUC {:.2f}, 95 % interval {:.2f} to {:.2f})"


def scored(positive: list[float], negative: list[float]) -> Counts:
    """Count predictions of these log-odds."""
    return count([1] * len(positive) + [0] * len(negative), presence(np.array([*positive, *negative])))


def spread(number: int, middle: float) -> list[float]:
    """Return scores from three below to three above the middle."""
    return list(np.linspace(middle - 3, middle + 3, number))


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (scored(spread(40, 2), spread(60, -2)), []),
        (
            scored(spread(22, -4), spread(200, -8)),
            [
                (
                    'taking the most probable class, the model finds nothing: it found 0 of 22 "Edema"; it is right in '
                    "200 of 222, and one answer for all in 200"
                )
            ],
        ),
        (
            scored(spread(30, 8), spread(50, 4)),
            [
                (
                    'taking the most probable class, the model clears nothing: it called all 50 "no Edema" positive; '
                    "it is right in 30 of 80, and one answer for all in 50"
                )
            ],
        ),
        (
            scored([*[1.0] * 2, *[-1.0] * 20], [*[-2.0] * 198, 1.0, 1.0]),
            [
                NO_BETTER.format("200 of 222", 200),
            ],
        ),
        (
            scored(spread(30, 1), spread(30, 1)),
            [
                NO_BETTER.format("30 of 60", 30),
                GUESSED.format(0.5, 0.36, 0.64),
            ],
        ),
        (
            scored(spread(40, -2), spread(60, 2)),
            [
                NO_BETTER.format("17 of 100", 60),
                (
                    "the scores are worse than guessing (AUC 0.06, 95 % interval 0.03 to 0.13): are the labels of the "
                    "two sides exchanged?"
                ),
            ],
        ),
        (
            scored([9.0] * 19, spread(20, -4)),
            ['the test is tiny: it has 19 sequences of "Edema", so sensitivity and AUC are uncertain'],
        ),
        (
            scored([9.0] * 20, [-9.0]),
            [
                GUESSED.format(1, 0.42, 1),
                'the test is tiny: it has 1 sequence of "no Edema", so specificity and AUC are uncertain',
            ],
        ),
        (
            scored([], [-1.0] * 30),
            ['the test is one-sided: none of 30 sequences is "Edema", so sensitivity and AUC are not defined'],
        ),
        (
            scored([1.0] * 30, []),
            ['the test is one-sided: none of 30 sequences is "no Edema", so specificity and AUC are not defined'],
        ),
        (Counts.zero(2), ["no sequence was tested: there are no figures"]),
    ],
)
def test_what_is_wrong_with_a_test_is_said(counts: Counts, said: list[str]) -> None:
    """Each fault has its own sentence, with counts and the names of the sides; sound figures have none."""
    assert list(remarks(counts, CLASSES)) == said


def test_a_finding_is_named_before_its_remark() -> None:
    """Remarks on one of several findings begin with its name, and name its absence."""
    (said,) = remarks(scored([], [-1.0] * 30), ("Edema",), finding=True)
    assert (
        said == 'Edema: the test is one-sided: none of 30 sequences is "Edema", so sensitivity and AUC are not defined'
    )
    (said,) = remarks(scored([1.0] * 30, []), ("Edema",), finding=True)
    assert '"no Edema"' in said


def test_a_point_that_misses_more_than_wanted_is_said() -> None:
    """A threshold chosen for 0.9 that finds 30 of 40 is named; one that finds 36 is not."""
    counts = scored(spread(40, 2), spread(60, -2))
    points = [OperatingPoint(0.9, -1.0, 0.27, Decisions(found, 5, 55, 40 - found)) for found in (30, 36)]
    (said,) = remarks(counts, CLASSES, point=points[0])
    assert said == (
        'the threshold for a sensitivity of 0.9 on validation patients found only 30 of 40 "Edema" in the test, and '
        'called 5 of 60 "no Edema" positive'
    )
    assert remarks(counts, CLASSES, point=points[1]) == ()


def test_a_given_auc_is_judged_in_place_of_the_binned_one() -> None:
    """An exact AUC, with its interval by patient, takes the place of that of the bins."""
    counts = scored(spread(40, 2), spread(60, -2))
    assert remarks(counts, CLASSES, auc=area(0.55, 40, 60)) == (GUESSED.format(0.55, 0.44, 0.66),)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a"], "a"),
        (["a", "b"], "a or b"),
        (["a", "b", "c"], "a, b or c"),
        (["a" * 20, "b" * 20, "c" * 20], f"{'a' * 20}, {'b' * 20} or 1 more"),
        (["a" * 50, "b" * 50], f"{'a' * 50} or 1 more"),
        (["a" * 59, "b" * 59], "2 classes"),
        (["a" * 61], "a" * 59 + "…"),
    ],
)
def test_a_side_of_several_classes_names_them(names: list[str], expected: str) -> None:
    """The positive side names its classes in at most 60 characters, and the number of the others."""
    assert either(names) == expected
    assert sides(["well", *names]) == ("well", expected)


def test_control_characters_of_a_name_are_not_printed() -> None:
    """A class's name cannot clear the terminal."""
    (said,) = remarks(scored([], [-1.0] * 30), ("no", "\x1b[2J"))
    assert "\x1b" not in said
