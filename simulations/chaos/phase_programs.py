"""Programs of a small federation without Flower's servers: vaults, nodes, coordinator, each of which can be killed.

They are the real ServerApp, the real ClientApps and the real vaults in processes of their own, forked from one that has
done its imports. Messages pass a Unix socket. So a run takes seconds, and hundreds of kills take minutes.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from threading import Lock, Thread

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

from fedpp.cli import load_tensorflow
from fedpp.config.run_config import RunConfig, SiteConfig
from fedpp.protocol import masked_messages, messages
from simulations.in_process_engine import InProcessClient, InProcessGrid

from .vault_process import IMPORTED

PHASES = {
    masked_messages.ACCEPT_RUN: "contract",
    masked_messages.REVEAL_COIN: "coins",
    masked_messages.START_RUN: "first state",
    masked_messages.TRAIN: "train",
    masked_messages.RELEASE: "release",
    masked_messages.STEP: "step",
    masked_messages.FETCH: "fetch",
}
CLOSING = "end"  # the rounds after the last one of training
REPEAT_SECONDS = 0.1  # until a site that refused is asked again: a killed vault is back at once
CONTEXT = get_context("forkserver")


def preload() -> None:
    """Let the processes be forked from one that has imported all but TensorFlow."""
    CONTEXT.set_forkserver_preload([*IMPORTED, "coordinator.server.app", __name__])


def phase_of(message: Message, rounds: int) -> str:
    """Return the phase of a run with so many rounds of training that a request belongs to, or nothing."""
    phase = PHASES.get(message.metadata.message_type, "")
    if phase not in {"train", "release", "step"}:
        return phase
    config = messages.record(message.content, messages.CONFIG, ConfigRecord)
    return CLOSING if int(str(config["round"])) > rounds else phase


def serve_nodes(sites: Sequence[SiteConfig], address: str, ready: Connection) -> None:
    """Serve the ClientApps of these sites; one trains at a time, since they share TensorFlow."""
    load_tensorflow(deterministic=True)
    import_module("sites.client.app")  # before the first request
    _be_task()
    logging.getLogger("fedpp.site").setLevel(logging.CRITICAL)  # it reports each killed vault
    clients, training = [InProcessClient(site, number) for number, site in enumerate(sites, 1)], Lock()

    def reply(connection: Connection) -> None:
        with connection, suppress(OSError, EOFError):  # the coordinator was killed
            number, request = connection.recv()
            with training if request.metadata.message_type == masked_messages.TRAIN else nullcontext():
                connection.send(clients[number - 1].answer(request))

    with Listener(address, backlog=64) as listener:
        ready.send(True)
        while True:
            Thread(target=reply, args=(listener.accept(),), daemon=True).start()


@dataclass(frozen=True)
class RemoteNode:
    """Node whose ClientApp `serve_nodes` runs."""

    address: str
    number: int

    def answer(self, request: Message) -> RecordDict:
        """Return the content of the reply."""
        with Client(self.address) as connection:
            connection.send((self.number, request))
            content: RecordDict = connection.recv()
            return content


class PhaseGrid(InProcessGrid):
    """Grid whose nodes are asked at the same time, and which reports the phase of each request before it is sent.

    A node whose number is a file in the folder `away` is offline. A grid that is `held` waits at each new phase.
    """

    def __init__(self, nodes: Sequence[RemoteNode], away: Path, rounds: int, report: Connection, *, held: bool) -> None:
        """Take the nodes."""
        super().__init__(nodes)
        self._away, self._rounds, self._report, self._held, self._phase = away, rounds, report, held, ""
        self._pool = ThreadPoolExecutor(len(nodes))

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes that are connected."""
        return [node for node in self.sites if not (self._away / str(node)).exists()]

    def get_nodes(self) -> list[NodeInfo]:
        """Return the nodes that are connected."""
        return [node for node in super().get_nodes() if node.node_id in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver the messages to connected nodes, all at once; return their ids when all have replied."""
        requests = list(messages)
        for request in requests:
            self._enter(phase_of(request, self._rounds))
        connected = self.get_node_ids()
        sent = [request for request in requests if request.metadata.dst_node_id in connected]
        return [name for names in self._pool.map(self._deliver, sent) for name in names]

    def _deliver(self, message: Message) -> list[str]:
        return super().push_messages([message])

    def _enter(self, phase: str) -> None:
        if phase:
            self._report.send(phase)
            if self._held and phase != self._phase:
                self._report.recv()
            self._phase = phase


def coordinate(
    address: str, nodes: int, away: Path, run: Mapping[str, str | int | float], report: Connection, *, held: bool
) -> None:
    """Carry out a run, or what is left of it, as the ServerApp does."""
    from coordinator.server import app
    from coordinator.server.masked import cohort_requests
    from fedpp.errors import FedppError

    _be_task()
    cohort_requests.REPEAT_SECONDS = REPEAT_SECONDS
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what it prints is in the run's log, too
    config = RunConfig.from_mapping(run)
    remote = [RemoteNode(address, number) for number in range(1, nodes + 1)]
    grid = PhaseGrid(remote, away, config.rounds, report, held=held)
    try:
        app.federate(grid, config)
    except FedppError:  # the progress says why
        raise SystemExit(1) from None


def _be_task() -> None:
    """Take the numbers that Flower sets in its processes."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
