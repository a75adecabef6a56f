"""Counts as the last words of a masked update, so that only their sum over the cohort is ever opened.

Words of one class task, in this order: the sum of losses in units of 2^-30 nats, as 16-bit limbs with the lowest first;
the confusion row by row; the histograms of the positive and of the negative scores. A multi-label task has its number
of examples, and then these words for each finding. All are counts, so words add up over sites as counts do. Counts of
training labels are words as they are.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.config.task import Task
from fedpp.errors import MaskError
from fedpp.protocol import label_counts
from fedpp.protocol.counts import LOSS_UNITS, MAX_EXAMPLES, SCORE_BINS, Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.label_counts import LabelCounts

_LIMB_BITS = 16
_LIMBS = 5  # 2^32 examples of 746 nats, in units of 2^-30, are below 2^72


def size(task: Task) -> int:
    """Return the number of words of a task's counts."""
    if task.multi_label:
        return 1 + len(task.classes) * _size(2)
    return _size(len(task.classes))


def encode(counts: AnyCounts, ring: Ring) -> EncodedUpdate:
    """Return the words of one site's counts; raise `MaskError` for counts that a sum of all sites could not hold.

    Law: `decode(encode(x) + encode(y)) == x + y`.
    """
    return _encoded(list(_words_of_all(counts)), ring)


def encode_labels(labels: LabelCounts, ring: Ring) -> EncodedUpdate:
    """Return the words of one site's counts of training labels; raise `MaskError` as `encode` does."""
    return _encoded(labels, ring)


def decode(words: EncodedUpdate, task: Task, ring: Ring) -> AnyCounts:
    """Return the counts that words add up to; raise `MaskError` or `FederationError` for what no counts can sum to."""
    values = _opened(words, size(task), ring)
    if not task.multi_label:
        return _counts(values, len(task.classes), ring)
    examples, *rest = values
    each = _size(2)
    findings = (_counts(rest[start : start + each], 2, ring) for start in range(0, len(rest), each))
    return FindingCounts(examples, tuple(findings))


def decode_labels(words: EncodedUpdate, task: Task, ring: Ring) -> LabelCounts:
    """Return the counts of training labels that words add up to; raise `MaskError` for what no counts can sum to."""
    return tuple(_opened(words, label_counts.size(task), ring))


def _encoded(words: Sequence[int], ring: Ring) -> EncodedUpdate:
    if max(words) > _largest(ring):
        raise MaskError(f"a site's counts are at most {_largest(ring)} each: count fewer sequences")
    return np.array(words, ring.dtype)


def _opened(words: EncodedUpdate, length: int, ring: Ring) -> list[int]:
    ring.require(words)
    if words.shape != (length,):
        raise MaskError(f"the counts of this task have {length} words, got {words.shape}")
    values: list[int] = words.tolist()
    if max(values) > ring.sites * _largest(ring):
        raise MaskError("an opened count is larger than all sites together can count: a masked update was altered")
    return values


def _size(classes: int) -> int:
    return _LIMBS + classes * classes + 2 * SCORE_BINS


def _largest(ring: Ring) -> int:
    """Return the largest word of one site: the sum of all sites' then stays below 2^bits."""
    return min(MAX_EXAMPLES, ((1 << ring.bits) - 1) // ring.sites)


def _words_of_all(counts: AnyCounts) -> Iterator[int]:
    if isinstance(counts, FindingCounts):
        yield counts.examples
    for of in counts.findings if isinstance(counts, FindingCounts) else (counts,):
        yield from _words(of)


def _words(counts: Counts) -> Iterator[int]:
    loss = round(counts.loss_sum * LOSS_UNITS)
    yield from ((loss >> (_LIMB_BITS * limb)) % 2**_LIMB_BITS for limb in range(_LIMBS))
    yield from (cell for row in counts.confusion for cell in row)
    yield from counts.positive_scores
    yield from counts.negative_scores


def _counts(values: list[int], classes: int, ring: Ring) -> Counts:
    limbs, rest = values[:_LIMBS], values[_LIMBS:]
    if max(limbs) > ring.sites * (2**_LIMB_BITS - 1):
        raise MaskError("an opened sum of losses is larger than all sites together can have: an update was altered")
    loss = sum(limb << (_LIMB_BITS * place) for place, limb in enumerate(limbs))
    cells, scores = rest[: classes * classes], rest[classes * classes :]
    confusion = tuple(tuple(cells[start : start + classes]) for start in range(0, len(cells), classes))
    positive, negative = tuple(scores[:SCORE_BINS]), tuple(scores[SCORE_BINS:])
    return Counts(sum(cells), loss / LOSS_UNITS, confusion, positive, negative)
