"""A round's new model by a strategy of Flower: it is shown each site's weights, and its word is what the sites judge.

So the coordinator reads the updates and makes the model, which is possible in the frame form without masking alone.
What the strategy is told of a site, in a real message of Flower: its new weights, the rows of the state before and its
update, each `[*shape, 1]` in the network's order and the run's dtype; `num-examples`; and `train_loss`, for QFedAvg,
which is the site's validation loss of the state before (1.0 in the first round, and of a site that did not tell it).
Messages come in the order of the sites' names: no result depends on who answered first.

A strategy is made anew for each attempt, and recalls what the one of the last adopted round remembered: an attempt that
is thrown away leaves no trace. Its noise is drawn once an attempt, from NumPy's generator, which the system seeds.

Memory grows with the number of sites here: the updates of all of them are held until the round's deadline, and the
weights of all of them at once, several times, while a strategy works.
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

from .aggregate import far_off
from .chosen_strategy import ChosenStrategy
from .run_state import Checkpoint
from .strategy_state import recall, remembered

LOSS, UNKNOWN_LOSS = "train_loss", 1.0
_FAILURES = (AppExitException, ConfigError, ValueError, ArithmeticError, LookupError)


class FlowerAggregation:
    """The updates of one attempt, and what a strategy makes of them, in whatever order they come."""

    def __init__(self, chosen: ChosenStrategy, due: Round, before: Checkpoint) -> None:
        """Begin without an update, after this last round."""
        self._chosen, self._due, self._before = chosen, due, before
        self._updates: dict[str, tuple[Contribution, EncodedUpdate]] = {}
        self._norms: dict[str, float] = {}

    def __len__(self) -> int:
        """Return how many updates were added."""
        return len(self._updates)

    def add(self, part: Contribution, tag: int, words: EncodedUpdate) -> None:
        """Keep a site's update until all are there."""
        del tag  # words in clear have none
        self._updates[part.site] = part, words
        self._norms[part.site] = norm([self._due.ring.decode(words, part.examples)])

    def total(self) -> Aggregate:
        """Return whose updates were added, in the order of the sites' names."""
        return Aggregate.of([(self._updates[name][0], 0) for name in sorted(self._updates)])

    def flagged(self) -> Mapping[str, str]:
        """Return whose update is far longer than the others', and by how much; the strategy is shown it as well."""
        return far_off(self._norms)

    def result(self) -> tuple[str, EncodedUpdate]:
        """Return the next state, as bytes; raise `FederationError` if the strategy makes none that could be one."""
        state, _ = self._stepped
        return messages.AFTER, np.frombuffer(state.to_bytes(), np.uint8)

    def memory(self) -> bytes:
        """Return what the strategy remembers for the next round."""
        return self._stepped[1]

    @cached_property
    def _stepped(self) -> tuple[GlobalState, bytes]:
        before = GlobalState.from_bytes(self._before.state)
        try:
            strategy = self._chosen.made(len(self))
            as_made = dict(vars(strategy))
            recall(strategy, self._before.memory)
            with np.errstate(all="ignore"):  # what is not finite is refused below
                arrays = self._aggregated(strategy, before)
        except _FAILURES as error:
            raise FederationError(f"{self._called} failed: {one_line(str(error)) or type(error).__name__}") from None
        if not arrays:
            raise FederationError(f"{self._called} makes no model of them: its settings want more, as the log says")
        return self._next(before, arrays), remembered(strategy, as_made)

    @property
    def _called(self) -> str:
        return f"{self._chosen.kind.__name__} of the updates of {len(self)} sites"

    def _aggregated(self, strategy: Strategy, before: GlobalState) -> ArrayRecord | None:
        """Let the strategy take one round of Flower's, whose answers are there already."""
        nodes = dict(enumerate(sorted(self._updates), 1))
        questions = strategy.configure_train(self._due.number, _record(before.rows), ConfigRecord(), _Answered(nodes))
        by_node = {question.metadata.dst_node_id: question for question in questions}
        replies = [Message(self._content(name, before), reply_to=by_node[node]) for node, name in sorted(nodes.items())]
        return strategy.aggregate_train(self._due.number, replies)[0]

    def _content(self, name: str, before: GlobalState) -> RecordDict:
        part, words = self._updates[name]
        update = unflat(self._due.ring.decode(words, part.examples), before.network, before.n)
        rows = {of: (values + update[of]).astype(before.dtype) for of, values in before.rows.items()}
        told = MetricRecord({messages.EXAMPLES: part.examples, LOSS: self._loss_of(name)})
        return RecordDict({messages.ARRAYS: _record(rows), messages.METRICS: told})

    def _loss_of(self, name: str) -> float:
        counts = self._before.rounds[-1].validation.get(name) if self._before.rounds else None
        loss = None if counts is None else metrics(counts).loss
        return UNKNOWN_LOSS if loss is None else loss

    def _next(self, before: GlobalState, arrays: ArrayRecord) -> GlobalState:
        """Return the next state of what a strategy answered; raise `FederationError` for what can be none."""
        values = {name: array.numpy() for name, array in arrays.items()}
        if values.keys() != before.rows.keys():
            raise FederationError(f"{self._called} makes arrays of other names than the network's")
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


class _Answered(Grid):
    """Flower's grid of the sites whose updates are there, and of nobody else; nothing is sent."""

    def __init__(self, nodes: Iterable[int]) -> None:
        self._nodes = list(nodes)

    def get_node_ids(self) -> list[int]:
        """Return a number for each site."""
        return self._nodes

    def get_nodes(self) -> list[NodeInfo]:
        """Return the same."""
        return [NodeInfo(node_id=node) for node in self._nodes]

    @property
    def run(self) -> Run:
        """Raise: it is of no run."""
        _not_asked()

    def set_run(self, run: Run) -> None:
        """Raise: it is of no run."""
        _not_asked()

    def create_message(self, *given: Any, **named: Any) -> Message:
        """Raise: nothing is sent."""
        _not_asked()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Raise: nothing is sent."""
        _not_asked()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Raise: nothing was sent."""
        _not_asked()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Raise: nothing is sent."""
        _not_asked()


def _not_asked() -> NoReturn:
    raise LookupError("it asks sites by itself, and fedpp has asked them already")


def _record(rows: Mapping[str, NDArray[np.floating]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(values)) for name, values in rows.items()})
