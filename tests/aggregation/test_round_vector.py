"""The vector of a masked round: what a sum opens is what the same sum in clear is, to the bit."""

from collections.abc import Sequence

import numpy as np
import pytest
from global_states import NETWORK, drawn, flat
from hypothesis import given
from hypothesis import strategies as st

from fedpp.aggregation import count_words, round_vector
from fedpp.aggregation.pair_masks import masked, unmasked
from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.errors import FedppError, MaskError
from fedpp.learning.metrics import count
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import total

N = 2
WEIGHTS = (3, 5, 4)
CLOSING = pytest.mark.parametrize("due", ["validation", "test"])


def ring_of(bits: int) -> Ring:
    return Ring(bits, sum(WEIGHTS), sites=len(WEIGHTS), bound=16.0)


def counts_of(seed: int) -> Counts:
    generator = np.random.default_rng(seed)
    p = generator.random(9)
    return count(generator.integers(0, 2, 9), np.stack([p, 1 - p], axis=1))


def vectors(due: round_vector.Due, bits: int, seed: int = 0) -> list[EncodedUpdate]:
    """Return each site's vector."""
    return [
        round_vector.encoded(
            due, NETWORK, drawn(N, seed + w) if due == "train" else None, counts_of(seed + w), w, ring_of(bits)
        )
        for w in WEIGHTS
    ]


def summed(of: Sequence[EncodedUpdate]) -> EncodedUpdate:
    return sum(of[1:], of[0])


@pytest.mark.parametrize("due", ["train", "validation", "test"])
@pytest.mark.parametrize("bits", [32, 64])
def test_a_vector_has_its_length(due: round_vector.Due, bits: int):
    """An update stands in training rounds alone; counts stand in every round."""
    size = NETWORK.parameters() * N if due == "train" else 0
    assert round_vector.length(due, NETWORK, N) == size + count_words.size(NETWORK.task)
    assert {vector.shape for vector in vectors(due, bits)} == {(round_vector.length(due, NETWORK, N),)}


@given(st.sampled_from([32, 64]), st.sampled_from(["train", "validation", "test"]), st.integers(0, 2**32))
def test_masked_rounds_open_what_clear_ones_add(bits: int, due: round_vector.Due, seed: int):
    """Mean update and counts of a masked sum are those of the sum in clear, to the bit."""
    ring, of_sites = ring_of(bits), vectors(due, bits, seed)
    seeds = [bytes([site + 1]) * 32 for site in range(3)]
    keys = {(i, j): bytes([100 + 16 * i + j]) * 32 for i in range(3) for j in range(i + 1, 3)}
    low = np.zeros_like(of_sites[0])
    for site, vector in enumerate(of_sites):
        pairs = [(key, 1 if site == i else -1) for (i, j), key in keys.items() if site in {i, j}]
        ring.add(low, np.concatenate(list(masked(vector, ring, seeds[site], pairs))))
    opened = unmasked(low, ring, seeds)
    assert np.array_equal(opened, summed(of_sites))
    mean, counts, labels = round_vector.opened(due, NETWORK, N, opened, WEIGHTS, ring)
    assert labels is None
    assert counts == total([counts_of(seed + weight) for weight in WEIGHTS])
    if due != "train":
        assert mean is None
        return
    encoded = [ring.encode(flat(drawn(N, seed + weight), NETWORK), weight) for weight in WEIGHTS]
    expected = ring.decode(summed(encoded), sum(WEIGHTS))
    assert mean is not None
    assert np.array_equal(flat(mean, NETWORK), expected)
    clear = sum(weight * flat(drawn(N, seed + weight), NETWORK) for weight in WEIGHTS) / sum(WEIGHTS)
    np.testing.assert_allclose(expected, clear, atol=1e-6 if bits == 32 else 1e-15)


def test_training_labels_are_the_last_words():
    """A round that opens them has as many words more; what a sum opens is the sum of the sites' counts."""
    ring, usual = ring_of(64), vectors("train", 64)
    of_sites = [(2, 1), (0, 7), (40, 3)]
    longer = [
        round_vector.encoded("train", NETWORK, drawn(N, weight), counts_of(weight), weight, ring, labels)
        for weight, labels in zip(WEIGHTS, of_sites, strict=True)
    ]
    assert {vector.shape for vector in longer} == {(round_vector.length("train", NETWORK, N, labels=True),)}
    for vector, without, labels in zip(longer, usual, of_sites, strict=True):
        assert np.array_equal(vector, np.append(without, np.array(labels, "<u8")))
    mean, counts, labels = round_vector.opened("train", NETWORK, N, summed(longer), WEIGHTS, ring, labels=True)
    expected = round_vector.opened("train", NETWORK, N, summed(usual), WEIGHTS, ring)
    assert (counts, labels) == (expected[1], (42, 11))
    assert mean is not None
    assert expected[0] is not None
    assert np.array_equal(flat(mean, NETWORK), flat(expected[0], NETWORK))
    for wrong, due in ((summed(usual), True), (summed(longer), False)):
        with pytest.raises(MaskError, match="values, got"):
            round_vector.opened("train", NETWORK, N, wrong, WEIGHTS, ring, labels=due)


def test_an_update_stands_in_training_rounds_alone():
    """A missing update and one too many are refused."""
    for due, update in (("train", None), ("validation", drawn(N, 0)), ("test", drawn(N, 0))):
        with pytest.raises(MaskError, match=f"for {due}"):
            round_vector.encoded(due, NETWORK, update, counts_of(0), 3, ring_of(64))


@pytest.mark.parametrize("bits", [32, 64])
def test_a_sum_that_no_cohort_has_is_refused(bits: int):
    """Another length, a value beyond all updates, and impossible counts end the round."""
    ring, good = ring_of(bits), summed(vectors("train", bits))
    round_vector.opened("train", NETWORK, N, good, WEIGHTS, ring)
    beyond, counts = good.copy(), good.copy()
    beyond[7] = sum(ring.max_magnitude(weight) for weight in WEIGHTS) + 1
    counts[-1:] += counts.dtype.type(1)
    for wrong in (good[1:], beyond, counts):
        with pytest.raises(FedppError):
            round_vector.opened("train", NETWORK, N, wrong, WEIGHTS, ring)
    with pytest.raises(MaskError, match="values, got"):
        round_vector.opened("test", NETWORK, N, good, WEIGHTS, ring)
