"""Vector of a masked round: the update of the model, if the round trains, and then the evaluation counts of its base.

Both come off the masks as one, so counts are opened for the cohort together and for no site alone.
"""

import numpy as np

from fedpp.aggregation import count_words
from fedpp.aggregation.global_state import Rows, Vector, in_order, unflat
from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.aggregation.run_schedule import Due
from fedpp.aggregation.step_bounds import require_reachable
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import MaskError
from fedpp.protocol.finding_counts import AnyCounts


def length(due: Due, network: ModelSpec, n: int) -> int:
    """Return the number of values of a round's vector, for rows of n slots."""
    return _update_size(due, network, n) + count_words.size(network.task)


def encoded(
    due: Due, network: ModelSpec, update: Rows | None, counts: AnyCounts, weight: int, ring: Ring
) -> EncodedUpdate:
    """Return x_i: one site's update times its weight, if the round trains, and the words of its counts."""
    if (update is None) == (due == "train"):
        raise MaskError(f"a site has an update in training rounds, and in no other: this one is for {due}")
    parts = [] if update is None else in_order(update, network)
    words = count_words.encode(counts, ring)
    vector = np.empty(sum(part.size for part in parts) + words.size, ring.dtype)
    start = 0
    for part in parts:
        ring.encode(part, weight, vector[start : start + part.size])
        start += part.size
    vector[start:] = words
    return vector


def opened(
    due: Due, network: ModelSpec, n: int, aggregate: EncodedUpdate, weights: tuple[int, ...], ring: Ring
) -> tuple[dict[str, Vector] | None, AnyCounts]:
    """Return the mean update, if the round trained, and the cohort's counts, from an unmasked sum.

    Raises `MaskError` or `FederationError` for a sum that no sites with these weights can have.
    """
    size = _update_size(due, network, n)
    if aggregate.shape != (size + count_words.size(network.task),):
        raise MaskError(f"the vector of this round has {length(due, network, n)} values, got {aggregate.shape}")
    update, words = aggregate[:size], aggregate[size:]
    require_reachable(update, ring, weights)
    counts = count_words.decode(words, network.task, ring)
    return (unflat(ring.decode(update, sum(weights)), network, n) if size else None), counts


def _update_size(due: Due, network: ModelSpec, n: int) -> int:
    return network.parameters() * n if due == "train" else 0
