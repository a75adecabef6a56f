"""Vector of a masked round: the update of the model, if the round trains, and then the evaluation counts of its base.

The first round of a run whose loss is balanced ends with the counts of the training labels. All come off the masks as
one, so counts are opened for the cohort together and for no site alone.
"""

import numpy as np

from fedpp.aggregation import count_words
from fedpp.aggregation.global_state import Rows, Vector, in_order, unflat
from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.aggregation.run_schedule import Due
from fedpp.aggregation.step_bounds import require_reachable
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import MaskError
from fedpp.protocol import label_counts
from fedpp.protocol.finding_counts import AnyCounts
from fedpp.protocol.label_counts import LabelCounts


def opens_labels(due: Due, hyperparameters: Hyperparameters, known: LabelCounts | None) -> bool:
    """Tell whether a round opens counts of training labels: the first one that trains, of a run that needs them."""
    return due == "train" and hyperparameters.balanced and known is None


def length(due: Due, network: ModelSpec, n: int, *, labels: bool = False) -> int:
    """Return the number of values of a round's vector, for rows of n slots, with or without the training labels."""
    return _update_size(due, network, n) + count_words.size(network.task) + _label_size(network, labels=labels)


def encoded(
    due: Due,
    network: ModelSpec,
    update: Rows | None,
    counts: AnyCounts,
    weight: int,
    ring: Ring,
    labels: LabelCounts | None = None,
) -> EncodedUpdate:
    """Return x_i: one site's update times its weight, if the round trains, and the words of its counts."""
    if (update is None) == (due == "train"):
        raise MaskError(f"a site has an update in training rounds, and in no other: this one is for {due}")
    parts = [] if update is None else in_order(update, network)
    words = count_words.encode(counts, ring)
    if labels is not None:
        words = np.concatenate([words, count_words.encode_labels(labels, ring)])
    vector = np.empty(sum(part.size for part in parts) + words.size, ring.dtype)
    start = 0
    for part in parts:
        ring.encode(part, weight, vector[start : start + part.size])
        start += part.size
    vector[start:] = words
    return vector


def opened(
    due: Due,
    network: ModelSpec,
    n: int,
    aggregate: EncodedUpdate,
    weights: tuple[int, ...],
    ring: Ring,
    *,
    labels: bool = False,
) -> tuple[dict[str, Vector] | None, AnyCounts, LabelCounts | None]:
    """Return the mean update, if the round trained, and the cohort's counts, from an unmasked sum.

    Raises `MaskError` or `FederationError` for a sum that no sites with these weights can have.
    """
    size = _update_size(due, network, n)
    if aggregate.shape != (whole := length(due, network, n, labels=labels),):
        raise MaskError(f"the vector of this round has {whole} values, got {aggregate.shape}")
    update, words, last = np.split(aggregate, [size, whole - _label_size(network, labels=labels)])
    require_reachable(update, ring, weights)
    counts = count_words.decode(words, network.task, ring)
    of_training = count_words.decode_labels(last, network.task, ring) if labels else None
    return (unflat(ring.decode(update, sum(weights)), network, n) if size else None), counts, of_training


def _update_size(due: Due, network: ModelSpec, n: int) -> int:
    return network.parameters() * n if due == "train" else 0


def _label_size(network: ModelSpec, *, labels: bool) -> int:
    return label_counts.size(network.task) if labels else 0
