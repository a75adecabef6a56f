"""Client of the vault's part in masked runs: contract, statements, states and updates.

Statements, contracts and certificates are JSON texts here, since the ClientApp only relays them.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpp.errors import VaultError
from fedpp.vault_api import chunks, vault_pb2, vault_pb2_grpc
from fedpp.vault_api.vault_connection import EncodedUpdate, ReceivedUpdate, VaultConnection, blocks, pieces

Request = vault_pb2.RunRequest
UPDATE, LOGITS = "update", "logits"  # names of a round's arrays
LIST_BYTES = 2**20  # of a list in one message


class RunCalls(VaultConnection):
    """Calls of one vault about masked runs; `contract` is a contract's digest."""

    def __init__(self, address: str, tls: Path | None = None) -> None:
        """Prepare a connection."""
        super().__init__(address, tls)
        self._runs = vault_pb2_grpc.MaskedRunsStub(self._channel)

    def accept_run(self, contract_json: str, certificates: Sequence[str]) -> str:
        """Return the site's statement "accept" of a contract, whose cohort has these certificates."""
        first = vault_pb2.ContractRequest(contract=contract_json)
        rest = (vault_pb2.ContractRequest(certificates=some) for some in _lists(certificates))
        return str(self._reply(self._runs.AcceptRun, chain([first], rest)).statement)

    def reveal_coin(self, contract: str, statements: Sequence[str]) -> str:
        """Return the statement "coin", once the whole cohort has accepted."""
        return str(self._reply(self._runs.RevealCoin, _requests(Request(contract=contract), statements)).statement)

    def start_run(self, contract: str, statements: Sequence[str]) -> str:
        """Return the statement "start", which has the digest of the first state."""
        return str(self._reply(self._runs.StartRun, _requests(Request(contract=contract), statements)).statement)

    def run_stage(self, contract: str) -> bytes:
        """Return the newest state with what is due next, the bytes of a `RunStage`: weights are ciphertext rows."""
        return b"".join(block.data for block in self._replies(self._runs.Stage, Request(contract=contract)))

    def train_round(
        self,
        contract: str,
        round: int,  # noqa: A002  as in the contract
        statements: Sequence[str],
        update: NDArray[np.float64] | None = None,
        logits: NDArray[np.floating] | None = None,
    ) -> tuple[EncodedUpdate, str] | None:
        """Return the masked update of a round and the statement "train"; None where the vault has no update yet.

        `update` is weights after training minus the base's, as one vector; `logits` are the base's, of the split that
        is due. A vault that has made the update before masks that one, whatever is sent.
        """
        arrays = {name: array for name, array in ((UPDATE, update), (LOGITS, logits)) if array is not None}
        sent = (Request(array=part) for name, array in arrays.items() for part in chunks.to_chunks(name, array))
        requests = chain(_requests(Request(contract=contract, round=round), statements), sent)
        replies = self._replies(self._runs.TrainRound, requests)
        return _masked(replies)

    def release(
        self,
        contract: str,
        round: int,  # noqa: A002  as in the contract
        statements: Sequence[str],
        sum_hash: str,
    ) -> tuple[str, bytes]:
        """Return the statement "release" for the sum of this hash, and the site's own mask, sealed for the domain."""
        first = Request(contract=contract, round=round, sum_hash=sum_hash)
        reply = self._reply(self._runs.ReleaseMask, _requests(first, statements))
        return reply.statement, reply.sealed

    def step(
        self,
        contract: str,
        round: int,  # noqa: A002  as in the contract
        statements: Sequence[str],
        sealed: Sequence[bytes],
        low: EncodedUpdate,
        carry: NDArray[np.uint16],
    ) -> str:
        """Return the statement "step": the digest of the next state, and the counts that the sum opens.

        `sealed` are the own masks of all members in the cohort's order, `low` and `carry` the exact sum.
        """
        sent = chain(
            (Request(sealed=[mask]) for mask in sealed),
            (Request(low=data) for data in blocks(low)),
            (Request(carry=data) for data in blocks(carry.astype("<u2", copy=False))),
        )
        first = Request(contract=contract, round=round)
        return str(self._reply(self._runs.StepRound, chain(_requests(first, statements), sent)).statement)

    def where(self, nonce: str) -> tuple[list[str], list[str]]:
        """Return all statements, and all contracts, that the vault has of the runs of a nonce."""
        replies = list(self._replies(self._runs.FindStatements, vault_pb2.FindRequest(nonce=nonce)))
        statements = [reply.statement for reply in replies if reply.statement]
        return statements, [reply.contract for reply in replies if reply.contract]

    def seal_stage(self, contract: str) -> bytes:
        """Return the newest state, sealed for the domain."""
        return b"".join(block.data for block in self._replies(self._runs.SealStage, Request(contract=contract)))

    def load_stage(self, contract: str, statements: Sequence[str], sealed: bytes) -> None:
        """Give the vault a sealed state that t members certified, in place of its older one."""
        sent = (Request(data=data) for data in pieces(sealed))
        self._reply(self._runs.LoadStage, chain(_requests(Request(contract=contract), statements), sent))

    def burn(self, contract: str, aggregate: str) -> str:
        """Return the statement "burn": the site released nothing for this sum and never will."""
        return str(self._reply(self._runs.BurnRelease, Request(contract=contract, aggregate=aggregate)).statement)

    def abandon(self, contract: str) -> str:
        """Return the statement "abandon": the site leaves the run for good."""
        return str(self._reply(self._runs.AbandonRun, Request(contract=contract)).statement)

    def report_run(self, contract: str) -> str:
        """Return the statement "report" with the site's own figures, where the contract has per-site reports."""
        return str(self._reply(self._runs.ReportRun, Request(contract=contract)).statement)


def _requests(first: Request, statements: Sequence[str]) -> Iterator[Request]:
    yield first
    yield from (Request(statements=some) for some in _lists(statements))


def _lists(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield texts in lists that fit a message; one that fits none is the vault's to refuse."""
    some: list[str] = []
    size = 0
    for text in texts:
        if some and size + len(text) > LIST_BYTES:
            yield some
            some, size = [], 0
        some.append(text)
        size += len(text)
    if some:
        yield some


def _masked(replies: Iterable[vault_pb2.MaskedReply]) -> tuple[EncodedUpdate, str] | None:
    received: ReceivedUpdate | None = None
    statement = ""
    for reply in replies:
        if received is None:
            if not reply.length:
                return None
            if reply.bits not in {32, 64}:
                raise VaultError(f"the vault sent values of {reply.bits} bits: use one fedpp everywhere")
            received = ReceivedUpdate(np.empty(reply.length, f"<u{reply.bits // 8}"))
        received.take(reply.values)
        statement = reply.statement
    if received is None or not statement:
        raise VaultError("the vault sent a masked update without its statement: see its log, and try again")
    return received.complete(), statement
