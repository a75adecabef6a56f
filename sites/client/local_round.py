"""Local computations of a round: from a state to an encoded update, and from an aggregate to the next state."""

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation import round_context
from fedpp.aggregation.global_state import GlobalState, Rows, in_order, unflat
from fedpp.aggregation.ring import MIN_STEP, EncodedUpdate
from fedpp.aggregation.round_context import Aggregate, Round, ring_of
from fedpp.aggregation.server_step import step
from fedpp.cipher.components import Algebra
from fedpp.errors import FederationError, MaskError
from fedpp.protocol.messages import RoundRequest
from fedpp.protocol.run_spec import RunSpec


def round_of(nonce: str, request: RoundRequest, before: GlobalState) -> Round:
    """Return the context of this attempt at a round of the run."""
    return round_context.round_of(
        request.run_spec, run=nonce, number=request.round, attempt=request.attempt, base=before.digest, n=before.n
    )


def update_of(before: GlobalState, rows: Rows) -> dict[str, NDArray[np.float64]]:
    """Return the update, weights after training minus the global model's, in float64."""
    return {name: np.subtract(rows[name], values, dtype=np.float64) for name, values in before.rows.items()}


def encoded(run_spec: RunSpec, update: Rows, examples: int) -> EncodedUpdate:
    """Encode an update times its examples; raise `MaskError` where the ring is too coarse for a step of training.

    If small sites' updates were rounded to zero, the aggregate would be the largest site's update.
    """
    ring = ring_of(run_spec)
    rate = run_spec.training.hyperparameters.learning_rate
    if rate * examples * 2.0**ring.fraction < MIN_STEP:
        raise MaskError(
            f"a step of rate {rate:g} of {examples} examples is below {MIN_STEP} "
            f"units of an aggregate of {run_spec.examples}: use float64 weights, or a smaller max-update-value"
        )
    pieces = in_order(update, run_spec.network)
    values = np.empty(sum(piece.size for piece in pieces), ring.dtype)
    start = 0
    for piece in pieces:
        ring.encode(piece, examples, out=values[start : start + piece.size])
        start += piece.size
    return values


def advanced(
    run_spec: RunSpec,
    before: GlobalState,
    aggregate: Aggregate,
    values: EncodedUpdate,
    algebra: Algebra,
    *,
    attempt: int,
) -> GlobalState:
    """Return the state after a round, computed from its aggregate alike at every site."""
    mean = ring_of(run_spec).decode(values, aggregate.examples)
    return step(before, unflat(mean, run_spec.network, before.n), run_spec.server_optimizer, algebra, attempt=attempt)


def given(run_spec: RunSpec, before: GlobalState, made: bytes, *, attempt: int) -> GlobalState:
    """Return the state after a round as the coordinator computed it from updates in clear.

    Raises `FederationError` where that is not in plain numbers, and for a state of another round, attempt or run.
    """
    if before.n != 1:
        raise FederationError("a new model computed by the coordinator is for the frame form: send the aggregate")
    after = GlobalState.from_bytes(made)
    require_state(run_spec, after, before.round + 1)
    if (after.attempt, after.salt, after.classes) != (attempt, before.salt, before.classes):
        raise FederationError("the new model from the coordinator is of another attempt, or of another run")
    return after


def require_state(run_spec: RunSpec, state: GlobalState, number: int) -> None:
    """Raise `FederationError` for a state of another run, or of another round than this one."""
    if (state.domain, state.network, state.dtype, state.rule) != (
        run_spec.domain,
        run_spec.network,
        run_spec.training.dtype,
        run_spec.server_optimizer,
    ):
        raise FederationError("the state in the message is of another domain, network or server optimizer than the run")
    if state.round != number:
        raise FederationError(f"the state in the message is of round {state.round}, expected that of round {number}")
