"""A site's participation in a run: the checks before it replies to a message, and what its reply is computed with.

The run must be of the site's domain and dataset (`local_training`), and a run in clear allowed by the policy, among
enough sites that proved to be members. `participating` checks that and connects to the vault, once a message.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedpp.aggregation.global_state import GlobalState, Rows
from fedpp.aggregation.round_context import Round
from fedpp.cipher.domain_card import DomainCard
from fedpp.cipher.evaluation_key import AnyKey
from fedpp.config.hyperparameters import Dtype, Hyperparameters
from fedpp.config.model_spec import ModelSpec
from fedpp.config.run_config import SiteConfig
from fedpp.dataset.encrypted_dataset import EncryptedDataset, open_key
from fedpp.errors import DomainMismatchError, FederationError
from fedpp.protocol import messages
from fedpp.protocol.coordinator_identity import SIMULATED, CoordinatorIdentity, CoordinatorNames
from fedpp.protocol.finding_counts import AnyCounts
from fedpp.protocol.label_counts import LabelCounts, of_counts
from fedpp.protocol.membership import Run
from fedpp.protocol.participants import Participants
from fedpp.protocol.run_spec import RunSpec
from fedpp.vault_api.vault_client import Membership, VaultClient

from . import local_round
from .reply_cache import ReplyCache
from .reply_policy import Query, hide_figures

if TYPE_CHECKING:
    from fedpp.learning.encrypted_training import EncryptedTrainer


@dataclass(frozen=True)
class LocalTraining:
    """What a site trains, on which data and under which key: the part that runs in clear and masked runs share."""

    run_spec: RunSpec
    key: AnyKey
    dataset: EncryptedDataset

    def trainer(self, rows: Rows) -> "EncryptedTrainer":
        """Return the run's trainer with these weights."""
        run_spec = self.run_spec
        trainer = _trainer(run_spec.network, self.key, run_spec.training.hyperparameters, run_spec.training.dtype)
        trainer.load(rows)
        return trainer

    def fit(self, trainer: "EncryptedTrainer", seed: tuple[int, ...], labels: LabelCounts | None) -> None:
        """Train for the epochs of one round; the run's training labels weigh the loss where it says so."""
        trainer.balance(labels)
        with hide_figures():
            trainer.fit(self.dataset, epochs=self.run_spec.training.epochs, seed=seed)

    def logits(self, trainer: "EncryptedTrainer", split: str) -> NDArray[np.floating]:
        """Return the encrypted predictions of a trainer's weights on a split, rows `[k, classes, n]`."""
        with hide_figures():
            return trainer.logits(self.dataset, self.dataset.indices(split))


@dataclass(frozen=True)
class Participation(LocalTraining):
    """The run, data, keys and vault with which a site replies to one message of a run in clear."""

    query: Query
    nonce: str  # of the run
    vault: VaultClient
    cache: ReplyCache

    def round(self, request: messages.RoundRequest, before: GlobalState) -> Round:
        """Return the context of this attempt at a round."""
        return local_round.round_of(self.nonce, request, before)

    def state(self, request: messages.RoundRequest) -> GlobalState:
        """Return the state of the round before, from the message or held here; it must be `base` if that is named."""
        content, number = self.query.content, request.round - 1
        received = has_state(content) or not request.base
        sent = messages.state_of(content) if received else self.cache.held(request.base)
        if sent is None:
            raise FederationError(messages.LOST_BASE)
        state = GlobalState.from_bytes(sent)
        local_round.require_state(self.run_spec, state, number)
        self.cache.require_same(state)
        if request.base not in {"", state.digest}:
            raise FederationError(
                f"the state of round {number} in the message is not the accepted one, whose digest the request names: "
                "the site that sent it runs another fedpp, or cheats"
            )
        if received:
            self.cache.hold(state, sent)
        return state

    def label_counts(self, number: int) -> LabelCounts | None:
        """Return the counts of the site's training labels, where the run balances them, as the vault counts them."""
        if not self.run_spec.training.hyperparameters.balanced:
            return None
        positions, task = len(self.dataset.indices("train")), self.dataset.manifest.task
        nothing = np.zeros((positions, len(task.classes), self.key.n))
        return of_counts(self.vault.evaluate("train", nothing, self.query.run, number))

    def counts(self, trainer: "EncryptedTrainer", split: str, number: int) -> AnyCounts:
        """Return the evaluation counts of a trainer's weights on a split, which the vault counts for this round."""
        return self.vault.evaluate(split, self.logits(trainer, split), self.query.run, number)


@contextmanager
def participating(query: Query, run_spec: RunSpec) -> Iterator[Participation]:
    """Connect to the vault for one message; raise `FedppError` unless the run fits the site and its policy."""
    local = local_training(query, run_spec)
    query.policy.require_secure_aggregation(masked=False)
    if run_spec.masked:
        raise FederationError("a run with secure aggregation follows a contract: use one fedpp everywhere")
    participants = Participants.from_record(messages.record(query.content, messages.PARTICIPANTS, ConfigRecord))
    membership = Membership(participants, query.run, query.bundle)
    with VaultClient(query.site.vault) as vault:
        query.policy.require_participants(_other_sites(vault, membership, coordinator_of(query.site)))
        cache = ReplyCache(query.site.work, participants.nonce)
        yield Participation(run_spec, local.key, local.dataset, query, participants.nonce, vault, cache)


def local_training(query: Query, run_spec: RunSpec) -> LocalTraining:
    """Open the site's key and dataset; raise `FedppError` unless the run is of their domain and task."""
    key, dataset = open_dataset(query)
    if run_spec.domain != key.domain:
        raise DomainMismatchError(
            f"this site belongs to domain {key.domain[:16]}, the run to {run_spec.domain[:16]}: "
            "start a run of this domain, or join with the run's evaluation key"
        )
    if misfit := run_spec.network.misfit(dataset.manifest.task):
        raise FederationError(misfit)
    return LocalTraining(run_spec, key, dataset)


def open_dataset(query: Query) -> tuple[AnyKey, EncryptedDataset]:
    """Open the site's evaluation key and dataset; raise `PolicyError` unless the policy lists the dataset."""
    dataset = EncryptedDataset.open_with(query.site.dataset, query.site.at_rest_key)
    query.policy.require_dataset(dataset.manifest.fingerprint)
    return open_key(query.site.evaluation_key, dataset.manifest), dataset


def has_state(content: RecordDict) -> bool:
    """Tell whether a message holds a state."""
    arrays = content.get(messages.ARRAYS)
    return isinstance(arrays, ArrayRecord) and messages.STATE in arrays


def coordinator_of(site: SiteConfig) -> CoordinatorIdentity:
    """Return the coordinator as the site knows it; a simulation has none."""
    return CoordinatorIdentity.from_json(site.coordinator) if site.coordinator else SIMULATED


def _other_sites(vault: VaultClient, membership: Membership, identity: CoordinatorIdentity) -> int:
    """Return how many other members participate; raise `FederationError` if one did not prove its membership."""
    info = vault.info()
    card = DomainCard.from_json(info.card)
    nonce = membership.participants.nonce
    coordinator = CoordinatorNames.only(identity)
    run = Run(card.ca_key, card.fingerprint, nonce, membership.run, membership.bundle, coordinator)
    return membership.participants.others(info.site, run, datetime.now(UTC))


# A simulation's process serves all rounds and sites; tracing the network again takes seconds.
@lru_cache(maxsize=1)
def _trainer(network: ModelSpec, key: AnyKey, hyperparameters: Hyperparameters, dtype: Dtype) -> "EncryptedTrainer":
    from fedpp.learning.encrypted_training import EncryptedTrainer

    return EncryptedTrainer(network, key.algebra(), hyperparameters, dtype)
