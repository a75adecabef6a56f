"""Simulated clients, many in one process: each is a node of its own that uses the Fleet API as a SuperNode does.

Each has its node key and its certified identity, and pulls and pushes the same bytes as a site. Global states and
updates, which are equal for all of them, are computed once: one machine has not the memory of 64 sites.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, RLock
from typing import Any, TypeVar, cast

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.fleet_http_connection import http_request_response

from fedpp.aggregation.global_state import GlobalState
from fedpp.aggregation.ring import EncodedUpdate
from fedpp.config.task import Task
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.key_store import Site
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol import messages
from fedpp.protocol.coordinator_identity import CoordinatorIdentity
from fedpp.protocol.membership import PROTOCOL, Proof, Statement
from fedpp.protocol.run_spec import RunSpec
from fedpp.protocol.site_description import SiteDescription
from sites.node.node_identity import PRIVATE_KEY
from sites.node.reachability import Coordinator

from .simulated_client import SimulatedClient

DOMAIN = KeyDomain.of_secret(bytes(range(32)), n=2)
CLASSES = ("no", "yes")
TASK = Task(2, 16, 16, 1, CLASSES)
SEQUENCES = (2, 2, 1)  # train, validation and test, of each site
POLL_SECONDS, GONE_SECONDS = 1.0, 60.0  # after which a silent SuperLink is taken for gone
READY, LOST_REPLY = "simulated client ready", "a reply was lost"
LOST = (httpx.HTTPError, ObjectPullError, ObjectPushError, RunNotRunningException)

T = TypeVar("T")


class Shared:
    """Values shared by the clients, the newest of each kind, and a lock: one client replies at a time."""

    def __init__(self) -> None:
        """Start empty."""
        self.lock = RLock()
        self._known: dict[str, tuple[object, Any]] = {}
        self._contents: dict[str, bytes] = {}
        self.inflated: dict[str, InflatableObject] = {}
        self.held: dict[str, GlobalState] = {}

    def once(self, kind: str, key: object, make: Callable[[], T]) -> T:
        """Return the value made for this key; make it in place of the last one of its kind if there is none."""
        with self.lock:
            if kind not in self._known or self._known[kind][0] != key:
                self._known[kind] = key, make()
            return cast("T", self._known[kind][1])

    def keep(self, wanted: Collection[str]) -> None:
        """Drop all contents but those of these objects."""
        with self.lock:
            self._contents = {name: content for name, content in self._contents.items() if name in wanted}

    def same(self, name: str, content: bytes) -> bytes:
        """Return the single copy of an object's content."""
        with self.lock:
            return self._contents.setdefault(name, content)


@dataclass(frozen=True)
class Member(SimulatedClient):
    """Simulated client that shares states and updates with the others, in an honest run without retries."""

    shared: Shared = field(default_factory=Shared)

    def state(self, content: RecordDict, run_spec: RunSpec, number: int) -> GlobalState:
        """Return the state in the request."""
        return self.shared.once("state", number, lambda: SimulatedClient.state(self, content, run_spec, number))

    def encoded_update(self, request: messages.TrainRequest, before: GlobalState) -> EncodedUpdate:
        """Return the encoded update."""
        return self.shared.once("update", before.round, lambda: SimulatedClient.encoded_update(self, request, before))

    def advanced(self, content: RecordDict, request: messages.AcceptRequest, before: GlobalState) -> GlobalState:
        """Return the state after the round."""
        return self.shared.once(
            "after", request.round, lambda: SimulatedClient.advanced(self, content, request, before)
        )


@dataclass(frozen=True)
class Node:
    """Connection of a simulated client to SuperLink."""

    member: Member
    site: Site
    coordinator: CoordinatorIdentity
    receive: Callable[[], tuple[Message, ObjectTree] | None]
    send: Callable[[Message, ObjectTree, float], tuple[set[str], str]]
    bundle_of: Callable[[int], str]
    pull: Callable[[int, str], bytes]
    push: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]

    def serve(self, stopped: Event) -> None:
        """Reply to messages until stopped; as at a SuperNode, a reply that SuperLink does not take is lost."""
        while not stopped.is_set():
            try:
                received = self.receive()
                if received is None:
                    stopped.wait(POLL_SECONDS)
                else:
                    self._reply(*received)
            except LOST as error:
                print(f"{LOST_REPLY}, of {self.site.identity.name}: {error}", flush=True)

    def _reply(self, message: Message, tree: ObjectTree) -> None:
        run, shared = message.metadata.run_id, self.member.shared
        names = [of.object_id for of in iterate_object_tree(tree)]
        shared.keep(names)
        contents = pull_objects(names, lambda name: shared.same(name, self.pull(run, name)))
        self.confirm(run, message.metadata.message_id)
        with shared.lock, no_object_id_recompute():
            inflated = dict(shared.inflated)
            request = cast("Message", inflate_object_from_contents(tree.object_id, contents, objects=inflated))
            shared.inflated = {
                name: of for name, of in inflated.items() if name in names and isinstance(of, ArrayRecord)
            }
            request.metadata.__dict__["_message_id"] = tree.object_id  # which an object's content does not hold
            reply = Message(self._content(request), reply_to=request)
            reply.metadata.__dict__["_message_id"] = reply.object_id
            reply_tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        wanted, session = self.send(reply, reply_tree, 0.0)
        del reply, request, inflated
        push_objects(objects, partial(self.push, run, session), object_ids_to_push=wanted)

    def _content(self, request: Message) -> RecordDict:
        replies: Mapping[str, Callable[[], RecordDict]] = {
            f"query.{messages.DESCRIBE}": lambda: self._description(request),
            f"query.{messages.INITIAL_WEIGHTS}": lambda: self.member.initial(request.content),
            f"query.{messages.LOCAL_BASELINE}": self.member.local_baseline,
            "train": lambda: self.member.train(request.content),
            f"query.{messages.ACCEPT}": lambda: self.member.accept(request.content),
            "evaluate": lambda: self.member.evaluate(request.content),
        }
        return replies[request.metadata.message_type]()

    def _description(self, request: Message) -> RecordDict:
        run, card = request.metadata.run_id, self.site.domain.card()
        nonce, name = messages.DescribeRequest.read(request.content).nonce, self.site.identity.name
        facts = (PROTOCOL, card.fingerprint, name, "d" * 64, self.bundle_of(run), self.coordinator)
        statement = Statement(nonce, str(run), int(time.time()), *facts)
        signature = self.site.identity.sign("statement", statement.content())
        proof = Proof(statement, signature, self.site.certificate)
        return RecordDict(
            {
                messages.SITE: ConfigRecord(self.member.description.to_mapping()),
                messages.PROOF: ConfigRecord({"proof": proof.to_json()}),
            }
        )


def described(name: str) -> SiteDescription:
    """Return the description of a simulated client."""
    return SiteDescription(
        name=name,
        domain=DOMAIN.card().fingerprint,
        n=DOMAIN.card().n,
        task=TASK,
        sequences=SEQUENCES,
        patients=SEQUENCES,
    )


def main() -> int:
    """Run the clients whose node keys are named, until SIGTERM; return the exit status."""
    parser = argparse.ArgumentParser(prog="simulated_clients", description=__doc__.split("\n")[0])
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("identities", nargs="+", type=Path, help="folders of node keys, each named as its site")
    options = parser.parse_args()
    stopped, shared = Event(), Shared()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with ThreadPoolExecutor(len(options.identities)) as pool:
        clients = [pool.submit(_serve, options, identity, shared, stopped) for identity in options.identities]
        while not stopped.wait(POLL_SECONDS):
            for client in clients:
                if client.done():  # it has failed
                    stopped.set()
    for client in clients:
        client.result()
    return 0


def _serve(options: argparse.Namespace, identity: Path, shared: Shared, stopped: Event) -> None:
    key = cast("ec.EllipticCurvePrivateKey", load_ssh_private_key((identity / PRIVATE_KEY).read_bytes(), None))
    own, card = SiteIdentity.generate(identity.name), DOMAIN.card()
    site = Site(DOMAIN, own, DomainCA(DOMAIN.ca_seed()).certify(own.request(), card))
    member = Member(described(identity.name), DOMAIN, held=shared.held, shared=shared)
    keys = key, key.public_key()
    coordinator = Coordinator.parse(options.superlink, Path(options.ca)).identity()
    with http_request_response(options.superlink, False, options.ca, keys, max_wait_time=GONE_SECONDS) as connection:
        number, receive, send, get_run, _, pull, push, confirm = connection
        print(f"{READY}: {identity.name} is node {number}", flush=True)
        Node(member, site, coordinator, receive, send, lambda run: get_run(run).fab_hash, pull, push, confirm).serve(
            stopped
        )


if __name__ == "__main__":
    sys.exit(main())
