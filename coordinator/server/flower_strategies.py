"""Aggregation by a strategy of Flower: it gets each site's new weights and makes the model that the sites evaluate.

The coordinator reads the updates for it, so it takes orthogonal frame mixing without secure aggregation. The strategy
gets one Flower message a site: its new weights (the rows of the last state plus its update, each `[*shape, 1]`, in the
model's order and the run's dtype); `num-examples`; and `train_loss`, for QFedAvg, which is the site's validation loss
of the last state (1.0 in the first round, and for a site that did not report it). Messages are in the order of the
sites' names, so that no result depends on which reply arrived first.

Each attempt makes a new strategy object with the strategy state of the last accepted round, so that a rejected attempt
leaves no trace. Its noise is drawn once an attempt, from NumPy's generator, which the system seeds.

Memory grows with the number of sites: all updates are held until the round's deadline, and all weights at once, several
times, while the strategy runs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore.run import Run
from numpy.typing import NDArray

from fedpp.aggregation.global_state import GlobalState, unflat
from fedpp.aggregation.ring import EncodedUpdate
from fedpp.aggregation.round_context import Aggregate, Contribution, Round
from fedpp.aggregation.update_check import norm
from fedpp.errors import ConfigError, FederationError, ModelError
from fedpp.learning.metrics import metrics
from fedpp.protocol import messages
from fedpp.texts import one_line

from .aggregate import outliers
from .chosen_strategy import ChosenStrategy
from .run_state import Checkpoint
from .strategy_state import restore, state_of

LOSS, UNKNOWN_LOSS = "train_loss", 1.0
_FAILURES = (AppExitException, ConfigError, ValueError, ArithmeticError, LookupError)


class FlowerAggregation:
    """Aggregation of one attempt's updates by a strategy of Flower, in whatever order they arrive."""

    def __init__(self, chosen: ChosenStrategy, due: Round, before: Checkpoint) -> None:
        """Start without updates, after this last accepted round."""
        self._chosen, self._due, self._before = chosen, due, before
        self._updates: dict[str, tuple[Contribution, EncodedUpdate]] = {}
        self._norms: dict[str, float] = {}

    def __len__(self) -> int:
        """Return how many updates were added."""
        return len(self._updates)

    def add(self, part: Contribution, update: EncodedUpdate) -> None:
        """Hold a site's update until all are there."""
        self._updates[part.site] = part, update
        self._norms[part.site] = norm([self._due.ring.decode(update, part.examples)])

    def contributions(self) -> Aggregate:
        """Return whose updates were added, in the order of the sites' names."""
        return Aggregate(tuple(self._updates[name][0] for name in sorted(self._updates)))

    def flagged(self) -> Mapping[str, str]:
        """Return the sites whose update is far longer than the others', and by how much; the strategy gets them."""
        return outliers(self._norms)

    def result(self) -> tuple[str, EncodedUpdate]:
        """Return the next state, as bytes; raise `FederationError` if the strategy makes no valid one."""
        state, _ = self._stepped
        return messages.AFTER, np.frombuffer(state.to_bytes(), np.uint8)

    def strategy_state(self) -> bytes:
        """Return the strategy's state for the next round."""
        return self._stepped[1]

    @cached_property
    def _stepped(self) -> tuple[GlobalState, bytes]:
        before = GlobalState.from_bytes(self._before.state)
        try:
            strategy = self._chosen.made(len(self))
            as_made = dict(vars(strategy))
            restore(strategy, self._before.strategy_state)
            with np.errstate(all="ignore"):  # values that are not finite are refused below
                arrays = self._aggregated(strategy, before)
        except _FAILURES as error:
            raise FederationError(f"{self._called} failed: {one_line(str(error)) or type(error).__name__}") from None
        if not arrays:
            raise FederationError(f"{self._called} makes no model from them: its settings require more, see the log")
        return self._next(before, arrays), state_of(strategy, as_made)

    @property
    def _called(self) -> str:
        return f"{self._chosen.kind.__name__} of the updates of {len(self)} sites"

    def _aggregated(self, strategy: Strategy, before: GlobalState) -> ArrayRecord | None:
        """Run one round of the strategy, with the replies that are there already."""
        nodes = dict(enumerate(sorted(self._updates), 1))
        requests = strategy.configure_train(self._due.number, _record(before.rows), ConfigRecord(), _RepliedGrid(nodes))
        by_node = {request.metadata.dst_node_id: request for request in requests}
        replies = [Message(self._content(name, before), reply_to=by_node[node]) for node, name in sorted(nodes.items())]
        return strategy.aggregate_train(self._due.number, replies)[0]

    def _content(self, name: str, before: GlobalState) -> RecordDict:
        part, encoded = self._updates[name]
        update = unflat(self._due.ring.decode(encoded, part.examples), before.network, before.n)
        rows = {of: (values + update[of]).astype(before.dtype) for of, values in before.rows.items()}
        reported = MetricRecord({messages.EXAMPLES: part.examples, LOSS: self._loss_of(name)})
        return RecordDict({messages.ARRAYS: _record(rows), messages.METRICS: reported})

    def _loss_of(self, name: str) -> float:
        counts = self._before.rounds[-1].validation.get(name) if self._before.rounds else None
        loss = None if counts is None else metrics(counts).loss
        return UNKNOWN_LOSS if loss is None else loss

    def _next(self, before: GlobalState, arrays: ArrayRecord) -> GlobalState:
        """Return the next state, from a strategy's arrays; raise `FederationError` if they cannot be one."""
        values = {name: array.numpy() for name, array in arrays.items()}
        if values.keys() != before.rows.keys():
            raise FederationError(f"{self._called} makes arrays with other names than the model's")
        for name, value in values.items():
            if value.dtype.kind != "f" or value.shape != before.rows[name].shape:
                raise FederationError(
                    f"{self._called} makes {name} of {value.dtype} and shape {value.shape}, due are real numbers of "
                    f"shape {before.rows[name].shape}"
                )
        with np.errstate(over="ignore"):
            rows = {name: values[name].astype(before.dtype) for name in before.rows}
        try:
            return replace(before, round=self._due.number, attempt=self._due.attempt, rows=rows)
        except ModelError:
            raise FederationError(f"{self._called} makes values that are not finite: see its settings") from None


def _not_supported(*_: Any, **__: Any) -> NoReturn:
    raise LookupError("it sends requests by itself, and fedpp has the replies already")


class _RepliedGrid(Grid):
    """Flower grid of the sites whose updates are there; it sends nothing."""

    def __init__(self, nodes: Iterable[int]) -> None:
        self._nodes = list(nodes)

    def get_node_ids(self) -> list[int]:
        """Return a node number for each site."""
        return self._nodes

    def get_nodes(self) -> list[NodeInfo]:
        """Return the same."""
        return [NodeInfo(node_id=node) for node in self._nodes]

    @property
    def run(self) -> Run:
        """Raise: it has no run."""
        _not_supported()

    set_run = create_message = _not_supported
    push_messages = pull_messages = send_and_receive = _not_supported


def _record(rows: Mapping[str, NDArray[np.floating]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(values)) for name, values in rows.items()})
