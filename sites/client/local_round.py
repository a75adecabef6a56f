"""A site's part in a round: from a state to an update in words, and from a sum of words to the next state."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation import update_check
from fedpp.aggregation.global_state import GlobalState, Rows, in_order, unflat
from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.aggregation.round_context import Aggregate, Round
from fedpp.aggregation.server_step import step
from fedpp.cipher.components import Algebra
from fedpp.errors import FederationError, MaskError
from fedpp.protocol.run_spec import RunSpec

MIN_STEP = 4  # units of a word that a step of training changes a value by, about


@dataclass(frozen=True)
class Position:
    """Which attempt of which round of which run."""

    run: str  # nonce
    number: int
    attempt: int


def ring_of(run_spec: RunSpec) -> Ring:
    """Return how this run's words are written."""
    return Ring.of(run_spec.dtype, examples=run_spec.examples, sites=run_spec.sites, bound=run_spec.bound)


def round_of(run_spec: RunSpec, at: Position, before: GlobalState) -> Round:
    """Return what a mask of this attempt is bound to."""
    length = run_spec.network.parameters() * before.n
    return Round(at.run, at.number, at.attempt, before.digest, run_spec.digest, length, ring_of(run_spec))


def update_of(before: GlobalState, rows: Rows) -> dict[str, NDArray[np.float64]]:
    """Return by how much training changed the global model, in float64."""
    return {name: np.subtract(rows[name], values, dtype=np.float64) for name, values in before.rows.items()}


def encoded(run_spec: RunSpec, update: Rows, examples: int) -> EncodedUpdate:
    """Return an update times its examples as words; raise `MaskError` where they are too coarse for a step of training.

    Rounded away, the updates of small sites would leave the largest one's alone in a sum.
    """
    ring = ring_of(run_spec)
    if run_spec.hyperparameters.learning_rate * examples * 2.0**ring.fraction < MIN_STEP:
        raise MaskError(
            f"a step of rate {run_spec.hyperparameters.learning_rate:g} of {examples} examples is below {MIN_STEP} "
            f"units of a sum of {run_spec.examples}: take float64 weights, or a smaller max-update-value"
        )
    values = in_order(update, run_spec.network)
    words = np.empty(sum(some.size for some in values), ring.dtype)
    start = 0
    for some in values:
        ring.encode(some, examples, out=words[start : start + some.size])
        start += some.size
    return words


def advanced(
    run_spec: RunSpec, before: GlobalState, total: Aggregate, words: EncodedUpdate, algebra: Algebra, *, attempt: int
) -> GlobalState:
    """Return the state after a round, of the sum of its updates: every site computes the same."""
    mean = ring_of(run_spec).decode(words, total.examples)
    return step(before, unflat(mean, run_spec.network, before.n), run_spec.rule, algebra, attempt=attempt)


def given(run_spec: RunSpec, before: GlobalState, made: bytes, *, attempt: int) -> GlobalState:
    """Return the state after a round that the coordinator made of the updates, which it must be shown for that.

    Raises `FederationError` where it is not, and for a state of another round, attempt or run.
    """
    if run_spec.masked or before.n != 1:
        raise FederationError(
            "a new model that the coordinator made is for the frame form without masking; other sites take a sum"
        )
    after = GlobalState.from_bytes(made)
    require_state(run_spec, after, before.round + 1)
    if (after.attempt, after.salt, after.classes) != (attempt, before.salt, before.classes):
        raise FederationError("the new model that the coordinator made is of another attempt, or of another run")
    return after


def require_state(run_spec: RunSpec, state: GlobalState, number: int) -> None:
    """Refuse a state of another run, or of another round than is due."""
    if (state.domain, state.network, state.dtype, state.rule) != (
        run_spec.domain,
        run_spec.network,
        run_spec.dtype,
        run_spec.rule,
    ):
        raise FederationError("the state that came is of another domain, network or server optimizer than the run")
    if state.round != number:
        raise FederationError(f"the state that came is of round {state.round}, due is that of round {number}")


def require_adoptable(run_spec: RunSpec, before: GlobalState, after: GlobalState) -> None:
    """Refuse a new global model that went too far from the one before."""
    update_check.require_update(before.rows, update_of(before, after.rows), run_spec.max_norm)
