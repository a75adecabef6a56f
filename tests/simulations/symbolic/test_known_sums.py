"""An adversary knows the combinations of what it has seen in which every mask cancels, and no others."""

import pytest

from simulations.symbolic.known_sums import Mask, Symbol, Update, known_sums, violation

AT = ("run", "1", "W")


def masked(site: int, *, released: bool) -> dict[Symbol, int]:
    """Return a masked update of a site among three honest ones."""
    vector: dict[Symbol, int] = {Update(site, "W", "p"): 1}
    if not released:
        vector[Mask((site,), AT)] = 1
    for other in range(3):
        if other != site:
            vector[Mask((min(site, other), max(site, other)), AT)] = 1 if site < other else -1
    return vector


def test_the_sum_is_known_when_every_own_mask_is_released():
    """Then the pair masks cancel, and the plain sum of all updates is the only known combination."""
    (known,) = known_sums(masked(site, released=True) for site in range(3))
    assert known == {(Update(site, "W", "p"), 1) for site in range(3)}


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_one_own_mask_hides_the_sum(kept: int):
    """With the mask of one site unknown nothing is known."""
    assert known_sums(masked(site, released=site != kept) for site in range(3)) == ()


def test_a_missing_update_hides_the_sum():
    """Two of three released updates reveal nothing: their masks with the third do not cancel."""
    assert known_sums(masked(site, released=True) for site in range(2)) == ()


def test_two_sums_give_their_difference():
    """Sums of three sites and of two of them, under masks of their own, give the third site's update."""
    sums = [{Update(0, "W", "p"): 1, Update(1, "W", "p"): 1}, {Update(i, "W", "p"): 1 for i in range(3)}]
    assert frozenset({(Update(2, "W", "p"), 1)}) in known_sums(sums)


@pytest.mark.parametrize(
    ("sums", "found"),
    [
        ([{(0, "W", "p"): 1, (1, "W", "p"): 1}], ""),
        ([{(0, "W", "p"): 1, (1, "W", "p"): 1}, {(0, "V", "p"): 1, (1, "V", "p"): 1}], ""),
        ([{(0, "W", "p"): 1, (1, "W", "p"): 1}, {(2, "W", "p"): 1, (3, "W", "p"): 1}], ""),
        ([{(0, "W", "p"): 1}], "a known sum has too few honest sites"),
        ([{(0, "W", "p"): 1, (1, "V", "p"): 1}], "a known sum mixes base models"),
        (
            [{(0, "W", "p"): 1, (1, "W", "p"): 1}, {(0, "W", "q"): 1, (1, "W", "q"): 1}],
            "two known sums of one base model share a site",
        ),
        ([{(0, "W", "p"): 1, (1, "W", "p"): 2}], "two known sums of one base model share a site"),
    ],
)
def test_a_violation_is_named(sums: list[dict[tuple[int, str, str], int]], found: str):
    """Allowed are plain sums of two honest sites or more at one base model, each site in one of them."""
    vectors = [{Update(*update): c for update, c in vector.items()} for vector in sums]
    assert violation(known_sums(vectors), 2) == found
