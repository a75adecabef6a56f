"""A coordinator's run in this process: real Flower messages, and simulated clients without a network."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from conftest import TINY
from flwr.app import ConfigRecord, Message, RecordDict
from masked_sites import DOMAIN as KEYS
from members import TOLD, proof

from fedpp.aggregation.global_state import GlobalState
from fedpp.config.run_config import RunConfig
from fedpp.keys.site_identity import SiteIdentity
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol import messages
from fedpp.protocol.coordinator_identity import CoordinatorNames
from fedpp.protocol.site_description import SiteDescription
from simulations.benchmarks.simulated_client import SimulatedClient
from simulations.in_process_engine import InProcessGrid

CARD = KEYS.card()
NAMES = CoordinatorNames.only(TOLD).to_json()
DOMAIN = CARD.fingerprint


def config(out: Path, **changes: object) -> RunConfig:
    usual = {"rounds": 2, "epochs": 1, "quorum": 1, "retries": 1, "wait_seconds": 2.0, "round_seconds": 0.2}
    usual |= {"batch_size": 2, "learning_rate": 0.1, "dtype": "float64", **TINY.choices.values()}
    usual |= {"secure_aggregation": False}
    changed = {name.replace("-", "_"): value for name, value in changes.items()}
    return RunConfig.of(
        **{"card": CARD.to_json(), "out": str(out), "sites": 2, "coordinator": NAMES, **usual, **changed}
    )


def model_of(out: Path) -> EncryptedModel:
    """Return the model of a run in clear."""
    return EncryptedModel.load(out / "model.npz")


def describe(name: str, **changes: object) -> SiteDescription:
    values = {"name": name, "domain": DOMAIN, "n": 2, "sequences": (3, 2, 1), "patients": (3, 2, 1)}
    return SiteDescription.of(**{**TINY.task.values(), **values, **changes})


@dataclass
class Site:
    """A site with valid replies, except for the kinds of messages that have another reply in `instead`, or None.

    A reply to `train` may be given as a change of the valid one.
    """

    description: SiteDescription
    instead: Mapping[str, RecordDict | Callable[[RecordDict], RecordDict] | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    scored: list[tuple[str, int]] = field(default_factory=list)
    seen: list[RecordDict] = field(default_factory=list)
    step: float = 1.0
    held: dict[str, GlobalState] = field(default_factory=dict)

    def answer(self, message: Message) -> RecordDict | None:
        kind = message.metadata.message_type
        self.asked.append(kind)
        self.seen.append(message.content)
        if kind in self.instead:
            instead = self.instead[kind]
            return instead(self.player().train(message.content)) if callable(instead) else instead
        if kind == "query.describe":
            return described(self.description, message)
        player = self.player()
        if kind == "query.local_baseline":
            return player.local_baseline()
        if kind == "query.accept":
            request = messages.AcceptRequest.read(message.content)
            self.scored.append(("validation", request.round))
            return player.accept(message.content, self.reason_of(request))
        if kind == "evaluate":
            self.scored.append(("test", messages.EvaluateRequest.read(message.content).round))
        handlers = {"query.initial_weights": player.initial, "train": player.train, "evaluate": player.evaluate}
        return handlers[kind](message.content)

    def player(self) -> SimulatedClient:
        """Return its simulated client."""
        return SimulatedClient(self.description, KEYS, self.step, self.held)

    def reason_of(self, request: messages.AcceptRequest) -> str:
        """Return the reason to reject a model: there is none."""
        del request
        return ""


def identity_of(name: str) -> SiteIdentity:
    return SiteIdentity(name, sha256(name.encode()).digest())


def described(description: SiteDescription, message: Message) -> RecordDict:
    """Reply with a site's description and its own proof."""
    nonce = messages.DescribeRequest.read(message.content).nonce
    return answered(description, proof(identity_of(description.name), CARD, nonce).to_json())


def answered(description: SiteDescription, proved: str) -> RecordDict:
    records = {messages.SITE: ConfigRecord(description.to_mapping()), messages.PROOF: ConfigRecord({"proof": proved})}
    return RecordDict(records)


def refusal(**values: str) -> RecordDict:
    return RecordDict({messages.REFUSAL: ConfigRecord(values)})


class LocalGrid(InProcessGrid):
    """In-process grid whose nodes join, and reply, after a number of looks at the nodes (default: 0)."""

    def __init__(
        self, sites: Iterable[Site], joins: Mapping[int, int] | None = None, delays: Mapping[int, int] | None = None
    ) -> None:
        super().__init__(sites)
        self._joins, self._delays, self._looks = joins or {}, delays or {}, 0

    def get_node_ids(self) -> list[int]:
        self._looks += 1
        return [node for node in self.sites if self._looks > self._joins.get(node, 0)]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        late = {node for node, look in self._delays.items() if self._looks <= look}
        replied = [name for name in message_ids if name in self._replies]
        return super().pull_messages(n for n in replied if self._replies[n].metadata.src_node_id not in late)


class Crashed(BaseException):
    """Simulated crash, which no error handler catches."""


class CrashingGrid(LocalGrid):
    """A grid that fails after so many calls of the coordinator."""

    def __init__(self, sites: Iterable[Site], calls: int) -> None:
        super().__init__(sites)
        self.left = calls

    def _call(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crashed

    def get_node_ids(self) -> list[int]:
        self._call()
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self._call()
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self._call()
        pulled = super().pull_messages(message_ids)
        self._call()  # a reply that was taken from SuperLink is lost
        return pulled
