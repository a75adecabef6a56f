"""Methods of the vault's part in masked runs: requests are read and bounded here, `masked_runs.run_member` replies.

Every call is recorded before its reply leaves. Lists are counted, and arrays compared with what the round takes, before
they are read to their end. No TensorFlow is loaded here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation.linear_check import CARRY
from fedpp.aggregation.ring import CHUNK
from fedpp.config.run_config import MAX_SITES
from fedpp.errors import VaultError
from fedpp.protocol.run_contract import RunContract
from fedpp.values import is_hex
from fedpp.vault_api import chunks, vault_pb2, vault_pb2_grpc
from fedpp.vault_api.run_calls import LOGITS, UPDATE

from .masked_runs.run_member import RunMember
from .memory_budget import MemoryBudget
from .vault_calls import REPLIED, Append, Call, recording

MEMORY_BYTES = 2**30  # for the arrays of all running calls, and again for the states
MEMORY_SECONDS = 600.0  # longest wait for it
MAX_LIST_BYTES = 2**25  # of statements or certificates in one request
MAX_SEALED_MASK = 4096  # bytes
_COPIES = 3  # of a request's arrays in memory while they are received

Request = vault_pb2.RunRequest
Requests = Iterator[vault_pb2.RunRequest]


class VaultRuns(vault_pb2_grpc.MaskedRunsServicer):
    """Service of one site's part in masked runs."""

    def __init__(self, member: RunMember, record: Append, require_writing: Callable[[], None]) -> None:
        """Reply by a member's state machine; `record` writes to the audit log."""
        self._member, self._append, self._require_writing = member, record, require_writing
        # A budget of its own for states, whose senders may be slow, and must not delay rounds.
        self._memory, self._states_memory = (MemoryBudget(MEMORY_BYTES, MEMORY_SECONDS) for _ in range(2))

    def AcceptRun(  # noqa: N802  gRPC's name
        self, requests: Iterator[vault_pb2.ContractRequest], context: grpc.ServicerContext
    ) -> vault_pb2.StatementReply:
        """Sign a contract."""
        with self._recording("AcceptRun", context) as call:
            first = next(requests, vault_pb2.ContractRequest())
            texts = _Texts(first.certificates)
            for part in requests:
                texts.add(part.certificates)
            statement = self._member.accept(first.contract, texts.all)
            contract = RunContract.from_json(first.contract)
            lifted = ", ".join(f"{at.site} in round {at.round}" for at in contract.lifted)
            call.add(contract=contract.digest, **({"lifted": lifted} if lifted else {}))
            return _stated(call, statement)

    def RevealCoin(self, requests: Requests, context: grpc.ServicerContext) -> vault_pb2.StatementReply:  # noqa: N802
        """Reveal the site's coin."""
        with self._recording("RevealCoin", context) as call:
            first, statements = _with_statements(call, requests)
            return _stated(call, self._member.coin(first.contract, statements))

    def StartRun(self, requests: Requests, context: grpc.ServicerContext) -> vault_pb2.StatementReply:  # noqa: N802
        """Sign the first state."""
        with self._recording("StartRun", context) as call:
            first, statements = _with_statements(call, requests)
            return _stated(call, self._member.start(first.contract, statements))

    def Stage(self, request: Request, context: grpc.ServicerContext) -> Iterator[vault_pb2.Block]:  # noqa: N802
        """Stream the newest stage."""
        with recording("Stage", context, self._append) as call:
            call.add(contract=_digest(request))
            content = self._member.stage(request.contract)
            call.reply(len(content))
            for start in range(0, len(content), chunks.CHUNK_BYTES):
                yield vault_pb2.Block(data=content[start : start + chunks.CHUNK_BYTES])

    def TrainRound(self, requests: Requests, context: grpc.ServicerContext) -> Iterator[vault_pb2.MaskedReply]:  # noqa: N802
        """Stream the masked update of a round."""
        with self._recording("TrainRound", context) as call:
            first = _first(call, requests)
            shapes = self._member.shapes(first.contract, first.round)
            size = int(np.prod(shapes.update)) * 8 + int(np.prod(shapes.logits)) * 8
            with self._memory.taking(_COPIES * size):
                texts = _Texts(first.statements)
                arrays = _arrays(requests, texts, {UPDATE: shapes.update, LOGITS: shapes.logits})
                update = arrays[UPDATE].astype(np.float64, copy=False) if UPDATE in arrays else None
                made = self._member.train(first.contract, first.round, texts.all, update, arrays.get(LOGITS))
                if made is None:
                    call.reply(0)
                    yield vault_pb2.MaskedReply()
                    return
                values, statement = made
                call.reply(values.nbytes)
                yield vault_pb2.MaskedReply(bits=8 * values.itemsize, length=values.size)
                for start in range(0, values.size, CHUNK):
                    yield vault_pb2.MaskedReply(values=values[start : start + CHUNK].tobytes())
                yield vault_pb2.MaskedReply(statement=statement)

    def ReleaseMask(self, requests: Requests, context: grpc.ServicerContext) -> vault_pb2.StatementReply:  # noqa: N802
        """Release the site's own mask."""
        with self._recording("ReleaseMask", context) as call:
            first, statements = _with_statements(call, requests)
            if not is_hex(first.sum_hash):
                raise VaultError(f"the hash of a sum is 64 hexadecimal digits, got {first.sum_hash!r:.80}")
            statement, sealed = self._member.release(first.contract, first.round, statements, first.sum_hash)
            return _stated(call, statement, sealed)

    def StepRound(self, requests: Requests, context: grpc.ServicerContext) -> vault_pb2.StatementReply:  # noqa: N802
        """Open the sum and sign the next state."""
        with self._recording("StepRound", context) as call:
            first = _first(call, requests)
            shapes = self._member.shapes(first.contract, first.round)
            (length,) = shapes.sum
            with self._memory.taking(_COPIES * length * (shapes.dtype.itemsize + CARRY.itemsize)):
                texts, sealed = _Texts(first.statements), list(first.sealed)
                low, carry = bytearray(first.low), bytearray(first.carry)
                for part in requests:
                    texts.add(part.statements)
                    sealed += part.sealed
                    low += part.low
                    carry += part.carry
                    if max(len(low) // shapes.dtype.itemsize, len(carry) // CARRY.itemsize) > length:
                        raise VaultError(f"a sum of this round has {length} values, got more")
                    if len(sealed) > MAX_SITES or any(len(each) > MAX_SEALED_MASK for each in part.sealed):
                        raise VaultError(f"a round has {MAX_SITES} sealed masks of {MAX_SEALED_MASK} bytes at most")
                values = _vector(low, shapes.dtype), _vector(carry, CARRY)
                return _stated(call, self._member.step(first.contract, first.round, texts.all, sealed, *values))

    def FindStatements(  # noqa: N802
        self, request: vault_pb2.FindRequest, context: grpc.ServicerContext
    ) -> Iterator[vault_pb2.FindReply]:
        """Stream all contracts and statements of the runs of a nonce, or of the contract of a digest."""
        with recording("FindStatements", context, self._append) as call:
            if not is_hex(request.nonce):
                raise VaultError(f"a run's nonce is 64 hexadecimal digits, got {request.nonce!r:.80}")
            contracts, statements = self._member.contracts(request.nonce), self._member.where(request.nonce)
            call.reply(sum(map(len, [*contracts, *statements])), nonce=request.nonce)
            yield from (vault_pb2.FindReply(contract=contract) for contract in contracts)
            yield from (vault_pb2.FindReply(statement=statement) for statement in statements)

    def SealStage(self, request: Request, context: grpc.ServicerContext) -> Iterator[vault_pb2.Block]:  # noqa: N802
        """Stream the newest stage, sealed."""
        with self._recording("SealStage", context) as call:
            call.add(contract=_digest(request))
            blocks = self._member.sealed_stage(request.contract)
            first = next(blocks)
            call.end(REPLIED)  # before anything leaves, so that its size is not known yet
            for block in chain([first], blocks):
                yield vault_pb2.Block(data=block)

    def LoadStage(self, requests: Requests, context: grpc.ServicerContext) -> vault_pb2.LoadReply:  # noqa: N802
        """Take a sealed stage."""
        with self._recording("LoadStage", context) as call:
            first = _first(call, requests)
            most = self._member.longest_stage(first.contract)
            with self._states_memory.taking(_COPIES * most):
                texts, sealed = _Texts(first.statements), bytearray()
                for part in requests:
                    texts.add(part.statements)
                    sealed += part.data
                    if len(sealed) > most:
                        raise VaultError(f"a sealed state of this run has at most {most} bytes, got more")
                self._member.load_stage(first.contract, texts.all, [bytes(sealed)])
            call.reply(0)
            return vault_pb2.LoadReply()

    def BurnRelease(self, request: Request, context: grpc.ServicerContext) -> vault_pb2.StatementReply:  # noqa: N802
        """Sign that nothing is released for a sum."""
        with self._recording("BurnRelease", context) as call:
            call.add(contract=_digest(request))
            if not is_hex(request.aggregate):
                raise VaultError(f"a sum is named by 64 hexadecimal digits, got {request.aggregate!r:.80}")
            return _stated(call, self._member.burn(request.contract, request.aggregate))

    def AbandonRun(self, request: Request, context: grpc.ServicerContext) -> vault_pb2.StatementReply:  # noqa: N802
        """Leave a run."""
        with self._recording("AbandonRun", context) as call:
            call.add(contract=_digest(request))
            return _stated(call, self._member.abandon(request.contract))

    def ReportRun(self, request: Request, context: grpc.ServicerContext) -> vault_pb2.StatementReply:  # noqa: N802
        """Sign the site's own figures."""
        with self._recording("ReportRun", context) as call:
            call.add(contract=_digest(request))
            return _stated(call, self._member.report(request.contract))

    @contextmanager
    def _recording(self, method: str, context: grpc.ServicerContext) -> Iterator[Call]:
        """Record a call that signs or seals, which a read-only vault refuses."""
        with recording(method, context, self._append) as call:
            self._require_writing()
            yield call


class _Texts:
    """Statements or certificates of one request, as they come in; more than `MAX_LIST_BYTES` are refused."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.all: list[str] = []
        self._bytes = 0
        self.add(texts)

    def add(self, texts: Sequence[str]) -> None:
        self.all += texts
        self._bytes += sum(map(len, texts))
        if self._bytes > MAX_LIST_BYTES:
            raise VaultError(f"the statements of a request have at most {MAX_LIST_BYTES} characters, got more")


def _first(call: Call, requests: Requests) -> Request:
    """Return the first message, with the contract and round that the call is recorded with."""
    first = next(requests, Request())
    call.add(contract=_digest(first), round=first.round)
    return first


def _digest(request: Request) -> str:
    if not is_hex(request.contract):
        raise VaultError(f"a contract is named by 64 hexadecimal digits, got {request.contract!r:.80}")
    return str(request.contract)


def _with_statements(call: Call, requests: Requests) -> tuple[Request, list[str]]:
    """Return the first message and all statements."""
    first = _first(call, requests)
    texts = _Texts(first.statements)
    for part in requests:
        texts.add(part.statements)
    return first, texts.all


def _arrays(requests: Requests, texts: _Texts, expected: dict[str, tuple[int, ...]]) -> dict[str, NDArray[np.floating]]:
    """Return the arrays of a request, each of its expected shape, and add its statements to those that are known."""

    def parts() -> Iterator[vault_pb2.ArrayChunk]:
        for request in requests:
            texts.add(request.statements)
            if request.HasField("array"):
                name, shape = request.array.name, tuple(request.array.shape)
                if name and expected.pop(name, None) != shape:
                    raise VaultError(f"array {name!r:.40} of shape {shape[:8]} is not of this round: train again")
                yield request.array

    return dict(chunks.from_chunks(parts()))


def _stated(call: Call, statement: str, sealed: bytes = b"") -> vault_pb2.StatementReply:
    call.reply(len(statement) + len(sealed))
    return vault_pb2.StatementReply(statement=statement, sealed=sealed)


def _vector(content: bytearray, dtype: np.dtype[np.unsignedinteger[Any]]) -> NDArray[np.unsignedinteger[Any]]:
    if len(content) % dtype.itemsize:
        raise VaultError(f"values of {dtype.itemsize} bytes do not fill {len(content)}: use one fedpp everywhere")
    return np.frombuffer(content, dtype)
