"""The site's ClientApp: it trains on ciphertext and asks the vault for what needs the domain secret.

It is told four addresses (`SiteConfig`): the encrypted dataset, the evaluation key, the vault, and the site's
policy, without whose leave it answers nothing. It never holds the domain secret; what the evaluation key lets
its reader see is said in docs/threats.md. In a deployment the addresses stand in the SuperNode's node
configuration; in a simulation, whose nodes know a number only, in files of a folder that `FEDPP_SITES` names.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedpp.cipher.dataset import EncryptedDataset
from fedpp.cipher.evaluation_key import AnyKey, open_key
from fedpp.cipher.params import DomainCard
from fedpp.config import BUNDLE, SITES_FOLDER, SPLITS, Dtype, SiteConfig
from fedpp.errors import (
    ConfigError,
    DatasetError,
    DomainMismatchError,
    FederationError,
    FedppError,
    KeyFileError,
    ModelError,
    PolicyError,
    VaultError,
)
from fedpp.network import NetworkSpec, Task
from fedpp.policy import SitePolicy, question_of, today
from fedpp.protocol import wire
from fedpp.protocol.membership import NO_BUNDLE, Run
from fedpp.protocol.participants import Participants
from fedpp.protocol.site import SiteDescription
from fedpp.protocol.vault_client import SiteInfo, VaultClient
from fedpp.recipe import Recipe

if TYPE_CHECKING:
    from fedpp.learning.training import EncryptedTrainer

FAILED = "it failed: its own log says where"
# What the coordinator is told of errors whose text may hold paths of the hospital.
REASONS: Mapping[type[FedppError], str] = {
    ConfigError: "its settings do not fit: its own log says which",
    DatasetError: "its dataset cannot be read: its own log says why",
    KeyFileError: "its keys cannot be read: its own log says why",
    VaultError: "its vault does not answer, or refuses: its own log says why",
}

_log = logging.getLogger("fedpp.site")

app = ClientApp()


def answering(
    handler: Callable[[RecordDict, SiteConfig, str], RecordDict],
) -> Callable[[Message, Context], Message]:
    """Turn a handler into a ClientApp function that logs an error here, and answers what others may know of it."""

    def answer(message: Message, context: Context) -> Message:
        try:
            site = site_config(context)
            policy = SitePolicy.load(site.policy)
            policy.require_current(today())
            policy.require_answer(question_of(message.metadata.message_type))
            return Message(handler(message.content, site, run_number(message)), reply_to=message)
        except FedppError as error:
            _log.warning("%s refused: %s", handler.__name__, wire.one_line(str(error)))
            public = isinstance(error, DomainMismatchError | FederationError | ModelError | PolicyError)  # hold no path
            return wire.refuse(str(error) if public else REASONS.get(type(error), FAILED), message)
        except Exception:  # noqa: BLE001  Flower would send its text to the coordinator
            _log.exception("%s failed", handler.__name__)
            return wire.refuse(FAILED, message)

    return answer


def run_number(message: Message) -> str:
    """Return Flower's number of the run that a message is of, as the SuperNode was told it."""
    return str(message.metadata.run_id)


def site_config(context: Context) -> SiteConfig:
    """Return the addresses of this node's site."""
    node = dict(context.node_config)
    if "partition-id" not in node:
        return SiteConfig.from_mapping(node)
    folder = os.environ.get(SITES_FOLDER)
    if folder is None:
        raise ConfigError(f"a simulated node needs the folder of site files in {SITES_FOLDER}")
    return SiteConfig.from_mapping(json.loads((Path(folder) / f"{node['partition-id']}.json").read_text()))


@app.query(wire.DESCRIBE)
@answering
def describe(content: RecordDict, site: SiteConfig, run: str) -> RecordDict:
    """Answer the site's description and its proof, after checking that key, dataset and vault belong together.

    Every byte of the dataset is read, once a run: a damaged shard is found before training and not in its midst.
    """
    request = wire.DescribeRequest.of(content)
    key, dataset = _open(site)
    with VaultClient(site.vault) as vault:
        info = vault.info()
        _require_one_site(key, dataset, info)
        dataset.verify()
        proof = vault.sign(request.nonce, run, request.protocol, os.environ.get(BUNDLE, NO_BUNDLE))
    description = SiteDescription(
        name=info.site,
        domain=key.domain,
        n=key.n,
        frames=info.frames,
        height=info.height,
        width=info.width,
        channels=info.channels,
        classes=info.classes,
        multi_label=info.multi_label,
        gaps=info.gaps,
        patch=info.patch,
        sequences=tuple(info.sequences.get(split, 0) for split in SPLITS),
        patients=tuple(info.patients.get(split, 0) for split in SPLITS),
    )
    proved = ConfigRecord({"proof": proof.to_json()})
    return RecordDict({wire.SITE: ConfigRecord(description.to_mapping()), wire.PROOF: proved})


@app.query(wire.INITIAL_WEIGHTS)
@answering
def initial_weights(content: RecordDict, site: SiteConfig, _run: str) -> RecordDict:
    """Answer the initial weights, encrypted by the vault."""
    request = wire.InitialWeightsRequest.of(content)
    _open_for(request, site)
    with VaultClient(site.vault) as vault:
        rows = vault.initial_weights(request.network, request.seed, request.dtype)
    return RecordDict({wire.ARRAYS: wire.pack_arrays(rows)})


@app.train()
@answering
def train(content: RecordDict, site: SiteConfig, run: str) -> RecordDict:
    """Train on the site's own ciphertext, and answer the new weights and the number of sequences."""
    request = wire.TrainRequest.of(content)
    trainer, dataset = _loaded(request, content, site, run)
    trainer.fit(
        dataset,
        epochs=request.epochs,
        seed=(request.seed, request.round),
    )
    examples = MetricRecord({wire.EXAMPLES: len(dataset.indices("train"))})
    return RecordDict({wire.ARRAYS: wire.pack_arrays(trainer.rows()), wire.METRICS: examples})


@app.evaluate()
@answering
def evaluate(content: RecordDict, site: SiteConfig, run: str) -> RecordDict:
    """Predict a split on ciphertext, let the vault score it, and answer the counts."""
    request = wire.EvaluateRequest.of(content)
    trainer, dataset = _loaded(request, content, site, run)
    logits = trainer.logits(dataset, dataset.indices(request.split))
    with VaultClient(site.vault) as vault:
        counts = vault.score(request.split, logits, run, request.round)
    return RecordDict({wire.METRICS: MetricRecord(counts.to_mapping())})


def _open(site: SiteConfig) -> tuple[AnyKey, EncryptedDataset]:
    dataset = EncryptedDataset.open_with(site.dataset, site.at_rest_key)
    SitePolicy.load(site.policy).require_dataset(dataset.manifest.fingerprint)
    return open_key(site.evaluation_key, dataset.manifest), dataset


def _require_one_site(key: AnyKey, dataset: EncryptedDataset, info: SiteInfo) -> None:
    """Refuse a key, a dataset and a vault that do not belong together."""
    for what, domain in (("vault", info.domain), ("dataset", dataset.manifest.domain)):
        if domain != key.domain:
            raise DomainMismatchError(
                f"its {what} belongs to domain {domain[:16]}, its evaluation key to "
                f"{key.domain[:16]}: give the trainer the key, dataset and vault of one domain"
            )
    if info.dataset != dataset.manifest.fingerprint:  # the vault would score with another dataset's labels
        raise FederationError(
            f"its vault serves dataset {info.dataset[:16]}, its trainer reads "
            f"{dataset.manifest.fingerprint[:16]}: give both the same"
        )


def _open_for(request: wire.Request, site: SiteConfig) -> tuple[AnyKey, EncryptedDataset]:
    """Return the site's key and dataset, after checking that the request's domain and network fit them."""
    key, dataset = _open(site)
    if request.domain != key.domain:
        raise DomainMismatchError(
            f"this site belongs to domain {key.domain[:16]}, the run to {request.domain[:16]}: "
            "ask for a run of this domain, or join with the run's evaluation key"
        )
    if misfit := request.network.misfit(Task.of(dataset.manifest)):
        raise FederationError(misfit)
    return key, dataset


def _loaded(
    request: wire.TrainRequest | wire.EvaluateRequest, content: RecordDict, site: SiteConfig, run: str
) -> tuple["EncryptedTrainer", EncryptedDataset]:
    """Return the trainer with the message's weights, and the dataset, after checking that they belong to the run."""
    key, dataset = _open_for(request, site)
    rows = wire.rows_of(content, request.network, key.n, request.dtype)
    _require_company(content, site, run)
    trainer = _trainer(request.network, key, request.recipe, request.dtype)
    trainer.load(rows)
    return trainer, dataset


def _require_company(content: RecordDict, site: SiteConfig, run: str) -> None:
    """Refuse to work for a run of fewer other members than the policy wants; each must have proved itself."""
    participants = Participants.from_record(wire.record(content, wire.PARTICIPANTS, ConfigRecord))
    with VaultClient(site.vault) as vault:
        info = vault.info()
    card = DomainCard.from_json(info.card)
    expected = Run(card.certifying_key, card.fingerprint, participants.nonce, run, os.environ.get(BUNDLE, NO_BUNDLE))
    SitePolicy.load(site.policy).require_participants(participants.others(info.site, expected, datetime.now(UTC)))


# A simulation's processes live through all rounds and sites; tracing the network again takes seconds.
@lru_cache(maxsize=1)
def _trainer(network: NetworkSpec, key: AnyKey, recipe: Recipe, dtype: Dtype) -> "EncryptedTrainer":
    from fedpp.learning.training import EncryptedTrainer

    return EncryptedTrainer(network, key.algebra(), recipe, dtype)
