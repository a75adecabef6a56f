"""Client of the vault: the requests that the trainer may send to the secret zone."""

from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedpp.config.hyperparameters import Dtype
from fedpp.config.model_spec import ModelSpec
from fedpp.config.task import Task
from fedpp.errors import ConfigError, FederationError, VaultError
from fedpp.protocol.coordinator_identity import CoordinatorIdentity
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.membership import Proof
from fedpp.protocol.participants import Participants
from fedpp.vault_api import chunks, vault_pb2, vault_pb2_grpc
from fedpp.vault_api.run_calls import RunCalls

SECONDS = 60.0  # timeout of a call
SEEDS = 2**64
ROUNDS = 2**32


@dataclass(frozen=True)
class Membership:
    """Proofs that a run's sites are members, and the run and bundle that the proofs must be for."""

    participants: Participants
    run: str  # Flower's number
    bundle: str  # SHA-256 of the app bundle that runs here


@dataclass(frozen=True)
class SiteInfo:
    """Public facts about a vault's domain and dataset; counts are by split."""

    domain: str  # fingerprint of the domain's card
    dataset: str  # fingerprint of the manifest
    task: Task
    sequences: dict[str, int]
    patients: dict[str, int]
    dtype: str
    card: str  # the domain's card, JSON
    site: str = ""  # public name of the vault's identity, if it has one

    @classmethod
    def of(cls, reply: vault_pb2.InfoReply) -> Self:
        """Read a vault's reply."""
        values = {field.name: getattr(reply, field.name) for field in fields(cls) if field.name != "task"}
        shape = (reply.frames, reply.height, reply.width, reply.channels)
        task = Task(*shape, tuple(reply.classes), reply.gaps != "none", reply.multi_label, reply.patch)
        return cls(**{**values, "sequences": dict(reply.sequences), "patients": dict(reply.patients), "task": task})


class VaultClient(RunCalls):
    """Connection to one vault; a call that fails is a `VaultError` of one line.

    Numbers that no message holds are a `ConfigError`, and counts that contradict each other a `FederationError`.
    """

    def __init__(self, address: str, tls: Path | None = None) -> None:
        """Prepare a connection to `unix:PATH`, or to `HOST:PORT` with a folder of certificates (`vault_channel`)."""
        super().__init__(address, tls)
        self._vault = vault_pb2_grpc.VaultStub(self._channel)

    def info(self) -> SiteInfo:
        """Return what is public about the domain and the dataset."""
        return SiteInfo.of(self._reply(self._vault.Info, vault_pb2.InfoRequest(), SECONDS))

    def initial_weights(self, network: ModelSpec, seed: int, dtype: Dtype) -> dict[str, NDArray[np.floating]]:
        """Return encrypted initial weights, rows `[*shape, n]` by name; raise `ConfigError` for a seed out of range."""
        if not 0 <= seed < SEEDS:
            raise ConfigError(f"a seed is a whole number from 0 to 2**64 - 1, got {seed}")
        request = vault_pb2.InitialWeightsRequest(network=network.to_json(), seed=seed, dtype=dtype)
        return dict(chunks.from_chunks(self._replies(self._vault.InitialWeights, request)))

    def sign(self, nonce: str, run: str, protocol: int, bundle: str, coordinator: CoordinatorIdentity) -> Proof:
        """Return the site's proof of membership, for the run of this nonce and number and the bundle of this hash.

        It names the coordinator as the site knows it.
        """
        if not 0 <= protocol < ROUNDS:
            raise ConfigError(f"a protocol's number is a whole number from 0 to 2**32 - 1, got {protocol}")
        request = vault_pb2.SignRequest(
            nonce=nonce, run=run, protocol=protocol, bundle=bundle, coordinator=coordinator.to_json()
        )
        reply = self._reply(self._vault.Sign, request, SECONDS)
        try:
            return Proof.from_json(reply.proof)
        except FederationError as error:
            raise VaultError(f"the reply of the vault at {self._address} is not a proof: {error}") from None

    def evaluate(self, split: str, logits: NDArray[np.floating], run: str = "", round: int = 0) -> AnyCounts:  # noqa: A002
        """Return the evaluation counts of encrypted logits, rows `[k, classes, n]` in the dataset's order of a split.

        `run` is Flower's number of the run, or empty for a local training, whose epoch is the `round`.
        """
        if not 0 <= round < ROUNDS:
            raise ConfigError(f"a round is a whole number from 0 to 2**32 - 1, got {round}")
        first = vault_pb2.EvaluateRequest(split=split, run=run, round=round)
        rest = (vault_pb2.EvaluateRequest(logits=chunk) for chunk in chunks.to_chunks("logits", logits))
        reply = self._reply(self._vault.Evaluate, chain([first], rest))
        if not reply.counts:
            raise VaultError(f"the vault at {self._address} sent no counts: use one fedpp everywhere")
        if reply.multi_label:
            return FindingCounts(reply.examples, tuple(map(_counts, reply.counts)))
        return _counts(reply.counts[0])


def _counts(message: vault_pb2.Counts) -> Counts:
    classes = round(len(message.confusion) ** 0.5)
    return Counts(
        message.examples,
        message.loss_sum,
        tuple(tuple(message.confusion[k * classes : (k + 1) * classes]) for k in range(classes)),
        tuple(message.positive_scores),
        tuple(message.negative_scores),
    )
