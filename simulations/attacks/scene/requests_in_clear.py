"""Requests of a coordinator that chooses weights: they reach unaltered ClientApps as those of a run in clear.

The real coordinator admits the sites, and is left there; the attacker continues with its records of the participants.
"""

from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from fedpp.aggregation.global_state import GlobalState, initial, unflat
from fedpp.aggregation.round_context import ring_of
from fedpp.cli import load_tensorflow
from fedpp.config.model_spec import ModelChoices
from fedpp.config.run_config import RunConfig
from fedpp.errors import FederationError
from fedpp.protocol import messages
from fedpp.protocol.counts import Counts
from fedpp.protocol.run_spec import RunSpec
from simulations.in_process_engine import InProcessClient, InProcessGrid

from .laboratory import DOMAIN, SEQUENCES, Hospital

CHOICES = ModelChoices(architecture="cnn", filters=(1,), kernel=1, dense=1, lstm=1)
RATE = 0.01
Rows = dict[str, NDArray[np.float64]]


class _AdmittedError(Exception):
    """The sites are admitted, and a request holds the record of the participants."""


class _Grid(InProcessGrid):
    """Grid that ends the coordinator's work when the sites are admitted."""

    participants: ConfigRecord
    run_spec: RunSpec

    def push_messages(self, sent: Iterable[Message]) -> list[str]:
        """Deliver the messages that ask for descriptions."""
        requests = list(sent)
        for request in requests:
            if messages.PARTICIPANTS in request.content:
                self.participants = messages.record(request.content, messages.PARTICIPANTS, ConfigRecord)
                self.run_spec = messages.InitialRequest.read(request.content).run_spec
                raise _AdmittedError
        return super().push_messages(requests)


@dataclass
class ChoosingCoordinator:
    """A coordinator that asks one of its sites about weights of its choice, in runs of one evaluation each."""

    sites: Sequence[InProcessClient]
    folder: Path
    runs: int = 0
    asked: int = 0  # in the newest run
    grid: _Grid = field(init=False)

    def __post_init__(self) -> None:
        """Start the first run."""
        load_tensorflow(deterministic=True)
        self.start()

    @classmethod
    def of(cls, hospitals: Sequence[Hospital], folder: Path) -> Self:
        """Return a coordinator of these hospitals, which writes into a folder."""
        return cls([InProcessClient(of.config, number) for number, of in enumerate(hospitals, 1)], folder)

    def start(self) -> None:
        """Let the real coordinator admit the sites to another run in clear."""
        from coordinator.server.app import federate

        self.runs, self.asked = self.runs + 1, 0
        config = RunConfig.of(
            **CHOICES.values(),
            sites=len(self.sites),
            dtype="float64",
            learning_rate=RATE,
            batch_size=64,
            epochs=1,
            secure_aggregation=False,
            card=DOMAIN.card().to_json(),
            out=str(self.folder / f"run {self.runs}"),
        )
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = self.runs, self.runs, 1
        self.grid = _Grid(self.sites)
        self.grid.set_run(Run.create_empty(self.runs))
        with suppress(_AdmittedError), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            federate(self.grid, config)

    def zeros(self) -> Rows:
        """Return rows of zero for each weight."""
        return {spec.name: np.zeros((*spec.shape, DOMAIN.n)) for spec in self.grid.run_spec.network.weights()}

    def evaluation(self, rows: Rows) -> Counts:
        """Return the test counts of these weights at the first site; raise `FederationError` if it refuses."""
        self.asked += 1
        state = self._state(rows).to_bytes()
        try:
            reply = self._reply(MessageType.EVALUATE, messages.EvaluateRequest(self.grid.run_spec, self.asked), state)
        except FederationError:
            reply = self._evaluation_as_masked(state)
        self.start()  # a site keeps the first model that it evaluates as the run's last one
        return Counts.from_mapping(dict(messages.record(reply, messages.METRICS, MetricRecord)))

    def _evaluation_as_masked(self, state: bytes) -> RecordDict:
        """Have the site seal the weights as a run's initial model, and evaluate that as its final one."""
        run_spec = self.grid.run_spec.changed(masked=True)
        initial_weights = f"{MessageType.QUERY}.{messages.INITIAL_WEIGHTS}"
        sealed = self._reply(initial_weights, messages.InitialRequest(run_spec), state)
        request = messages.EvaluateRequest(run_spec, self.asked)
        return self._reply(MessageType.EVALUATE, request, messages.state_of(sealed))

    def keep(self, rows: Rows) -> bytes:
        """Have the first site evaluate these weights as the run's final model, and return them as they were sent."""
        self.asked += 1
        state = self._state(rows).to_bytes()
        self._reply(MessageType.EVALUATE, messages.EvaluateRequest(self.grid.run_spec, self.asked), state)
        return state

    def update(self, rows: Rows) -> Rows:
        """Return the update of these weights at the first site; raise `FederationError` if it refuses."""
        self.asked += 1
        run_spec, state = self.grid.run_spec, self._state(rows).to_bytes()
        reply = self._reply(MessageType.TRAIN, messages.TrainRequest(run_spec, self.asked), state)
        ring, length = ring_of(run_spec), run_spec.network.parameters() * DOMAIN.n
        words = messages.words_of(reply, ring.bits, length)
        values = ring.decode(words, run_spec.weight(SEQUENCES["train"]))
        return dict(unflat(values, run_spec.network, DOMAIN.n))

    def _reply(self, kind: str, request: messages.Request, state: bytes) -> RecordDict:
        content = RecordDict(
            {
                messages.CONFIG: request.to_record(),
                messages.PARTICIPANTS: self.grid.participants,
                messages.ARRAYS: ArrayRecord({messages.STATE: messages.pack_state(state)}),
            }
        )
        reply = self.grid.sites[1].answer(Message(content, dst_node_id=1, message_type=kind))
        if reply is None:
            raise FederationError("no reply")
        return messages.content_of(Message(reply, reply_to=Message(content, dst_node_id=1, message_type=kind)))

    def _state(self, rows: Rows) -> GlobalState:
        run_spec = self.grid.run_spec
        state = initial(
            rows,
            network=run_spec.network,
            domain=run_spec.domain,
            dtype=run_spec.training.dtype,
            classes=run_spec.network.task.classes,
            rule=run_spec.server_optimizer,
            salt="0" * 64,
        )
        return replace(state, round=self.asked - 1)
