"""Masked runs at the ClientApp: it trains on its vault's state, and else relays between coordinator and vault.

The vault checks every statement, and alone clips, masks, releases and steps (`sites.vault.masked_runs`): the ClientApp
holds no secret of a run. It keeps the contracts that its vault accepted, by their digest, in the folder `contracts` of
its work folder, since a request to train has the digest alone.
"""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedpp.aggregation.global_state import in_order
from fedpp.aggregation.run_stage import RunStage
from fedpp.errors import FederationError, VaultError
from fedpp.files import make_folder, replace
from fedpp.protocol import masked_messages, messages
from fedpp.protocol.run_contract import RunContract
from fedpp.vault_api.vault_client import VaultClient

from .local_round import update_of
from .participation import LocalTraining, local_training
from .reply_policy import Query

MAX_CONTRACTS = 32  # that are kept: more than a vault has unfinished
CONTRACTS = "contracts"  # folder in the site's work folder
REFUSED = " refused: "  # in the text of `VaultError`, before what the vault itself says
_BITS = {"uint32": 32, "uint64": 64}

Trained = tuple[NDArray[np.float64] | None, NDArray[np.floating]]


def accept_run(query: Query) -> RecordDict:
    """Keep a contract that fits the site and its app, and reply with the vault's statement that it accepts."""
    request = masked_messages.AcceptRunRequest.read(query.content)
    contract = RunContract.from_json(request.contract)
    if contract.bundle != query.bundle:
        raise FederationError(
            f"the contract is for app bundle {contract.bundle[:16]}, this site runs {query.bundle[:16]}: submit the "
            "bundle that the sites approved"
        )
    local_training(query, contract.spec)
    with _vault(query) as vault:
        statement = vault.accept_run(request.contract, request.certificates)
    _keep(query.site.work / CONTRACTS, contract)
    return masked_messages.stated(statement)


def reveal_coin(query: Query) -> RecordDict:
    """Relay the vault's coin."""
    request = masked_messages.StatementsRequest.read(query.content)
    with _vault(query) as vault:
        return masked_messages.stated(vault.reveal_coin(request.contract, request.statements))


def start_run(query: Query) -> RecordDict:
    """Relay the vault's statement of the run's first state."""
    request = masked_messages.StatementsRequest.read(query.content)
    with _vault(query) as vault:
        return masked_messages.stated(vault.start_run(request.contract, request.statements))


def train_round(query: Query) -> RecordDict:
    """Reply with the masked update of a round and the vault's statement; train first if the vault has no update yet.

    A repeated request waits while the first one trains, and then finds the update in the vault.
    """
    request = masked_messages.RoundRequest.read(query.content)
    due = request.contract, request.round, request.statements
    with _turn(query, request.contract) as contract:
        local = local_training(query, contract.spec)
        with _vault(query) as vault:
            found = vault.train_round(*due)
            if found is None:
                stage = RunStage.from_bytes(vault.run_stage(request.contract))
                found = vault.train_round(*due, *_trained(local, stage, request.round))
    if found is None:
        raise FederationError("its vault requests an update that it has received: its log says why")
    masked, statement = found
    return masked_messages.stated(statement, arrays={masked_messages.MASKED: Array(masked)})


def _trained(local: LocalTraining, stage: RunStage, number: int) -> Trained:
    """Return the update as one vector, if the round trains, and its base's predictions on the split that is due."""
    if stage.number != number - 1 or stage.due == "end":
        raise FederationError(f"round {number} is not due here: the newest state is that of round {stage.number}")
    before, training = stage.state, local.run_spec.training
    trainer = local.trainer(before.rows)
    logits = local.logits(trainer, stage.split)
    if stage.due != "train":
        return None, logits
    local.fit(trainer, (training.seed, number), stage.labels)
    update = update_of(before, trainer.rows())
    return np.concatenate(in_order(update, local.run_spec.network)).astype(np.float64, copy=False), logits


def release(query: Query) -> RecordDict:
    """Relay the vault's statement about the round's sum, and the sealed seed of its own mask."""
    request = masked_messages.ReleaseRequest.read(query.content)
    with _vault(query) as vault:
        statement, sealed = vault.release(request.contract, request.round, request.statements, request.sum_hash)
    return masked_messages.stated(statement, sealed)


def step(query: Query) -> RecordDict:
    """Relay the round's sum to the vault, and its statement of the next state."""
    request = masked_messages.StepRequest.read(query.content)
    sealed = [bytes.fromhex(seed) for seed in request.sealed]
    low, carry = _sum_of(query.content)
    with _vault(query) as vault:
        statement = vault.step(request.contract, request.round, request.statements, sealed, low, carry)
    return masked_messages.stated(statement)


def where(query: Query) -> RecordDict:
    """Relay all statements and contracts that the vault has of a run."""
    request = masked_messages.WhereRequest.read(query.content)
    with _vault(query) as vault:
        return masked_messages.all_stated(*vault.where(request.nonce))


def fetch(query: Query) -> RecordDict:
    """Relay the newest state, sealed by the vault."""
    request = masked_messages.ContractRequest.read(query.content)
    with _vault(query) as vault:
        sealed = vault.seal_stage(request.contract)
    return RecordDict({messages.ARRAYS: masked_messages.sealed_state(sealed)})


def load(query: Query) -> RecordDict:
    """Relay a sealed state, which its signers certify, to a vault that lacks it."""
    request = masked_messages.StatementsRequest.read(query.content)
    with _vault(query) as vault:
        vault.load_stage(request.contract, request.statements, messages.state_of(query.content))
    return RecordDict({masked_messages.STATEMENT: ConfigRecord()})


def report(query: Query) -> RecordDict:
    """Relay the vault's statement of the site's own figures, of a run whose sites all report theirs."""
    request = masked_messages.StatementsRequest.read(query.content)
    with _vault(query) as vault:
        return masked_messages.stated(vault.report_run(request.contract))


def abandon(query: Query) -> RecordDict:
    """Relay the vault's statement that it leaves a contract, which the coordinator gives up."""
    request = masked_messages.ContractRequest.read(query.content)
    with _vault(query) as vault:
        return masked_messages.stated(vault.abandon(request.contract))


HANDLERS: Mapping[str, Callable[[Query], RecordDict]] = {
    masked_messages.ACCEPT_RUN: accept_run,
    masked_messages.REVEAL_COIN: reveal_coin,
    masked_messages.START_RUN: start_run,
    masked_messages.TRAIN: train_round,
    masked_messages.RELEASE: release,
    masked_messages.STEP: step,
    masked_messages.WHERE: where,
    masked_messages.FETCH: fetch,
    masked_messages.LOAD: load,
    masked_messages.REPORT: report,
    masked_messages.ABANDON: abandon,
}
"""The handler of each message of a masked run, by Flower's type of the message."""


@contextmanager
def _vault(query: Query) -> Iterator[VaultClient]:
    """Connect to the vault; what it refuses in a masked run is for the coordinator, which makes up for some of it.

    Its refusals are fixed texts or name public facts alone (`sites.vault.masked_runs`). A text with a path is not sent.
    """
    try:
        with VaultClient(query.site.vault) as vault:
            yield vault
    except VaultError as error:
        _, refused, reason = str(error).partition(REFUSED)
        if not refused or "/" in reason:
            raise
        raise FederationError(f"its vault refuses: {reason}") from error


def _sum_of(content: RecordDict) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.uint16]]:
    """Take the exact sum out of a message, of whatever ring and length it says: the vault knows which are due."""
    low = messages.record(content, messages.ARRAYS, ArrayRecord).get(masked_messages.LOW)
    if low is None or low.dtype not in _BITS or len(low.shape) != 1:
        raise FederationError("a message came without the sum of a round: use one fedpp at all sites")
    return masked_messages.sum_of(content, _BITS[low.dtype], low.shape[0])


def _keep(folder: Path, contract: RunContract) -> None:
    """Write a contract under its digest; of others the oldest are deleted beyond `MAX_CONTRACTS`."""
    make_folder(folder, 0o700)
    kept = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in kept[MAX_CONTRACTS - 1 :]:
        old.unlink(missing_ok=True)
    path = folder / f"{contract.digest}.json"
    if not path.exists():
        try:
            replace(path, contract.to_json().encode())
        except OSError as error:
            raise FederationError(
                f"this site cannot keep the run's contract: {error.strerror}: check its disk"
            ) from None


@contextmanager
def _turn(query: Query, digest: str) -> Iterator[RunContract]:
    """Yield the contract of this digest, and hold its file's lock: a site trains one round of a run at a time."""
    path = query.site.work / CONTRACTS / f"{digest}.json"
    if not path.exists():
        raise FederationError(masked_messages.LACKS_CONTRACT)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read()
        if sha256(text.encode()).hexdigest() != digest:
            raise FederationError(masked_messages.LACKS_CONTRACT)
        yield RunContract.from_json(text)
