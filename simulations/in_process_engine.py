"""In-process engine of simulated federations: both real apps in this process, one message after the other.

It needs neither Ray nor Flower's simulation engine, so a small federation takes seconds. The apps see the same
messages as in a deployment; only the wire, the order of simultaneous replies and the processes differ.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedpp.cli import load_tensorflow
from fedpp.config.run_config import RunConfig, SiteConfig
from fedpp.protocol.run_record import FederationRecord


class Client(Protocol):
    """Node of an in-process grid."""

    def answer(self, request: Message) -> RecordDict | None:
        """Return the content of the reply; None for no reply."""


class InProcessGrid(Grid):
    """Grid of Flower whose nodes, numbered from 1, are in this process; a reply is ready when its request is sent."""

    run = Run.create_empty(1)

    def __init__(self, sites: Iterable[Client]) -> None:
        """Take the sites as nodes 1, 2 and so on."""
        self.sites = dict(enumerate(sites, 1))
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run whose number the nodes get."""
        self.run = run

    def create_message(self, *_: object, **__: object) -> Message:
        """Refuse: the coordinator makes its messages itself."""
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return list(self.sites)

    def get_nodes(self) -> list[NodeInfo]:
        """Return all nodes."""
        return [NodeInfo(node_id=node, last_activated_at="at first") for node in self.sites]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver the messages, and keep the replies until they are pulled; return the messages' ids."""
        ids = []
        for message in messages:
            ids.append(f"message {id(message)} {time.monotonic_ns()}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            content = self.sites[message.metadata.dst_node_id].answer(message)
            if content is not None:
                self._replies[ids[-1]] = Message(content, reply_to=message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages, each once."""
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Deliver the messages, and return the replies."""
        del timeout
        return self.pull_messages(self.push_messages(messages))


@dataclass(frozen=True)
class InProcessClient:
    """Node that runs the real ClientApp of a site."""

    config: SiteConfig
    number: int

    def answer(self, request: Message) -> RecordDict:
        """Return the content of the ClientApp's reply."""
        from sites.client.app import app

        return app(request, Context(1, self.number, {**self.config.to_mapping()}, RecordDict(), {})).content


def federate(sites: Sequence[SiteConfig], run: Mapping[str, str | int | float]) -> FederationRecord:
    """Run a federation of these sites, whose vaults are running, with this run configuration."""
    clients = [InProcessClient(site, number) for number, site in enumerate(sites, 1)]
    return federate_clients(clients, RunConfig.from_mapping(run))


def federate_clients(clients: Sequence[Client], config: RunConfig) -> FederationRecord:
    """Run a federation of these clients."""
    load_tensorflow(deterministic=True)
    from coordinator.server import app

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # Flower sets them in its processes
    return app.federate(InProcessGrid(clients), config)
