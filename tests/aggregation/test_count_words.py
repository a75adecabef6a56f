"""Evaluation counts as words: what a sum of words opens is the sum of the counts, and nothing impossible opens."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpp.aggregation import count_words
from fedpp.aggregation.ring import Ring
from fedpp.config.task import Task
from fedpp.errors import FedppError, MaskError
from fedpp.learning.metrics import count, count_findings, presence, softmax
from fedpp.protocol.counts import MAX_EXAMPLES, SCORE_BINS, UNKNOWN, Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts, total

LARGEST_LOSS = 746.0  # of an example, nats


def task_of(classes: int, *, multi_label: bool) -> Task:
    return Task(1, 2, 2, 1, tuple(f"class {number}" for number in range(classes)), multi_label=multi_label)


def ring_of(bits: int, sites: int = 5) -> Ring:
    return Ring(bits, 1000, sites=sites, bound=4.0)


def counted(task: Task, examples: int, seed: int) -> AnyCounts:
    """Count drawn predictions, some of them far off."""
    generator, classes = np.random.default_rng(seed), len(task.classes)
    logits = generator.normal(size=(examples, classes)) * generator.choice([0.1, 1, 30], size=(examples, 1))
    if task.multi_label:
        return count_findings(generator.integers(UNKNOWN, 2, size=logits.shape), presence(logits))
    return count(generator.integers(0, classes, examples), softmax(logits))


tasks = st.one_of(
    st.builds(task_of, st.integers(2, 5), multi_label=st.just(False)),
    st.builds(task_of, st.integers(1, 4), multi_label=st.just(True)),
)


@given(tasks, st.sampled_from([32, 64]), st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 2**32))
def test_a_sum_of_words_opens_the_sum_of_the_counts(task: Task, bits: int, sites: list[int], seed: int):
    """The law, for any task, both rings, and sites without examples among them: equal in each figure."""
    ring, of_sites = ring_of(bits), [counted(task, examples, seed + site) for site, examples in enumerate(sites)]
    words = np.zeros(count_words.size(task), ring.dtype)
    for counts in of_sites:
        ring.add(words, count_words.encode(counts, ring))
    assert count_words.decode(words, task, ring) == total(of_sites)


def test_words_stand_in_their_documented_order():
    """The words of one example of each of two classes, and of a finding, written out."""
    ring, loss = ring_of(32), (5 << 64) + (4 << 48) + (3 << 32) + (2 << 16) + 1
    bins = [0] * SCORE_BINS
    counts = Counts(2**32, loss / 2**30, ((2**32 - 3, 2), (1, 0)), (1, *bins[1:]), (2**32 - 1, *bins[1:]))
    cells = [2**32 - 3, 2, 1, 0]
    limbs = [int(counts.loss_sum * 2**30) >> (16 * limb) & 0xFFFF for limb in range(5)]
    assert limbs[-2:] == [4, 5]
    words = count_words.encode(counts, ring_of(64))
    assert words.tolist() == [*limbs, *cells, 1, *bins[1:], 2**32 - 1, *bins[1:]]
    of_finding = count([1, 0], [[0.1, 0.9], [0.7, 0.3]])
    words = count_words.encode(FindingCounts(3, (of_finding, Counts.zero(2))), ring)
    each = 5 + 4 + 2 * SCORE_BINS
    assert words.tolist() == [3, *count_words.encode(of_finding, ring).tolist(), *([0] * each)]
    assert count_words.size(task_of(2, multi_label=True)) == 1 + 2 * each
    assert count_words.size(task_of(3, multi_label=False)) == 5 + 9 + 2 * SCORE_BINS


@pytest.mark.parametrize("sites", [1, 2, 1000])
def test_the_largest_counts_of_all_sites_do_not_wrap(sites: int):
    """Counts at the limit of a 32-bit ring are encoded, their sum over all sites opens, and one more is refused."""
    ring = ring_of(32, sites)
    most = (2**32 - 1) // sites

    def counts_of(examples: int) -> Counts:
        histogram = (examples,) + (0,) * (SCORE_BINS - 1)
        return Counts(examples, 1.0, ((examples, 0), (0, 0)), (0,) * SCORE_BINS, histogram)

    words = count_words.encode(counts_of(most), ring)
    opened = count_words.decode(words * ring.dtype.type(sites), task_of(2, multi_label=False), ring)
    assert opened.examples == most * sites
    with pytest.raises(MaskError, match=f"at most {most}"):
        count_words.encode(counts_of(most + 1), ring)


def test_the_largest_loss_has_a_word_for_each_limb():
    """The largest sum of losses that counts can have opens as it was."""
    histogram, task = (MAX_EXAMPLES,) + (0,) * (SCORE_BINS - 1), task_of(2, multi_label=False)
    counts = Counts(
        MAX_EXAMPLES, LARGEST_LOSS * MAX_EXAMPLES, ((MAX_EXAMPLES, 0), (0, 0)), (0,) * SCORE_BINS, histogram
    )
    assert count_words.decode(count_words.encode(counts, ring_of(64)), task, ring_of(64)) == counts


@pytest.mark.parametrize(("bits", "multi_label"), [(32, False), (64, False), (32, True)])
def test_impossible_words_do_not_open(bits: int, multi_label: bool):
    """Each single word that is one off, or far too large, and words of another size or ring are refused."""
    task, ring = task_of(2, multi_label=multi_label), ring_of(bits)
    words = count_words.encode(counted(task, 20, 1), ring)
    count_words.decode(words, task, ring)
    first = int(multi_label)
    for place in (*range(first + 5, words.size, 7), first + 5, words.size - 1):
        for change in (1, -1, 2 ** (bits - 1)):
            wrong = words.copy()
            wrong[place : place + 1] += wrong.dtype.type(change % 2**bits)
            with pytest.raises(FedppError):
                count_words.decode(wrong, task, ring)
    other: list[Any] = [words[1:], np.append(words, words[:1]), words.astype(f"<u{(96 - bits) // 8}"), words[None]]
    for wrong in other:
        with pytest.raises(MaskError):
            count_words.decode(wrong, task, ring)


def test_a_loss_beyond_its_examples_does_not_open():
    """Limbs that no cohort can have, or a sum above the largest loss of the examples, are refused."""
    task, ring = task_of(2, multi_label=False), ring_of(32)
    words = count_words.encode(counted(task, 20, 1), ring)
    for limb, value, message in ((0, 5 * 65535 + 1, "sum of losses is larger"), (4, 1, "not possible")):
        wrong = words.copy()
        wrong[limb] = value
        with pytest.raises(FedppError, match=message):
            count_words.decode(wrong, task, ring)


def test_more_examples_than_all_sites_can_have_do_not_open():
    """The number of examples of a multi-label task, which no histogram repeats, is bounded by itself."""
    task, ring = task_of(2, multi_label=True), ring_of(64)
    words = count_words.encode(counted(task, 20, 1), ring)
    words[0] = 5 * MAX_EXAMPLES
    assert count_words.decode(words, task, ring).examples == 5 * MAX_EXAMPLES
    words[0] += 1
    with pytest.raises(MaskError, match="larger than all sites"):
        count_words.decode(words, task, ring)
