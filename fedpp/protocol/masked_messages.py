"""Messages of masked runs between coordinator and sites: their names, records and checks.

::

    message              content of the request                                content of the reply
    query.accept_run     "config": AcceptRunRequest                            "statement"
    query.reveal_coin    "config": StatementsRequest                           "statement"
    query.start_run      "config": StatementsRequest                           "statement"
    train.masked_round   "config": RoundRequest                                "arrays": masked; "statement"
    query.release        "config": ReleaseRequest                              "statement" with the sealed seed
    query.step           "config": StepRequest, "arrays": low, carry           "statement"
    query.where          "config": WhereRequest                                "statements" with contracts
    query.fetch          "config": ContractRequest                             "arrays": state, sealed
    query.load           "config": StatementsRequest, "arrays": state, sealed  "statement": nothing
    query.report         "config": StatementsRequest                           "statement"
    query.abandon        "config": ContractRequest                             "statement"

Statements, contracts and certificates are JSON texts. A request has the statements of all members since the last
round's training; a site that lacks earlier ones refuses with the text of `MissingLinksError`, and is sent those. A site
that lacks the state refuses with `LACKS_STATE`, and gets it, sealed by another member, with `query.load`; one whose app
lacks the contract refuses with `LACKS_CONTRACT`, and is asked to accept it again. Bytes sealed by a vault are
hexadecimal texts, but for the state.

Runs in clear have messages of their own (`fedpp.protocol.messages`); `query.describe` is the first one of both.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from fedpp.config.run_config import MAX_SITES
from fedpp.errors import FederationError, MissingLinksError
from fedpp.protocol.membership import Hash
from fedpp.protocol.messages import ARRAYS, REFUSAL, STATE, OfContent, pack_state, record, text_of, vector
from fedpp.protocol.state_certificate import LACKS_STATE
from fedpp.values import Listed, rule, whole

ACCEPT_RUN, REVEAL_COIN, START_RUN = "query.accept_run", "query.reveal_coin", "query.start_run"
TRAIN, RELEASE, STEP = "train.masked_round", "query.release", "query.step"
WHERE, FETCH, LOAD, REPORT = "query.where", "query.fetch", "query.load", "query.report"
ABANDON = "query.abandon"
STATEMENT, STATEMENTS, CONTRACTS, SEED = "statement", "statements", "contracts", "seed"
MASKED, LOW, CARRY = "masked", "low", "carry"  # arrays
LACKS_CONTRACT = "it lacks the contract of this run: send the contract again"

_SEALED = re.compile(r"(?:[0-9a-f]{2}){1,4096}")
Sealed = Annotated[
    str, rule("sealed bytes as hexadecimal digits", lambda v: isinstance(v, str) and _SEALED.fullmatch(v) is not None)
]
Texts = tuple[str, ...]
_OF_SITES = Listed(1, MAX_SITES)


@dataclass(frozen=True)
class AcceptRunRequest(OfContent):
    """Request to accept a run: its contract, and the certificates of its members, in the order of their names."""

    contract: str
    certificates: Annotated[Texts, _OF_SITES]


@dataclass(frozen=True)
class ContractRequest(OfContent):
    """Base of requests about a run that the site has accepted; alone it asks for the sealed state, or to leave."""

    contract: Hash  # digest


@dataclass(frozen=True)
class StatementsRequest(ContractRequest):
    """Request that carries statements of the members, by which the site checks that it may reply."""

    statements: Texts


@dataclass(frozen=True)
class RoundRequest(StatementsRequest):
    """Request for a round's masked update, which starts from the state that the statements certify."""

    round: Annotated[int, whole(1, 2**31 - 1)]


@dataclass(frozen=True)
class ReleaseRequest(RoundRequest):
    """Request to release the seed of the site's own mask for one sum, that of this hash."""

    sum_hash: Hash


@dataclass(frozen=True)
class StepRequest(RoundRequest):
    """Request to compute the next state from the sum in the message and the members' sealed seeds, in their order."""

    sealed: Annotated[tuple[Sealed, ...], _OF_SITES]


@dataclass(frozen=True)
class WhereRequest(OfContent):
    """Request for all statements and contracts that a site has of the run of this nonce."""

    nonce: Hash


def stated(statement: str, seed: bytes = b"", arrays: Mapping[str, Array] | None = None) -> RecordDict:
    """Return a reply's content: a statement, and the sealed seed or arrays that belong to it."""
    of_seed = {SEED: seed.hex()} if seed else {}
    content = RecordDict({STATEMENT: ConfigRecord({STATEMENT: statement, **of_seed})})
    if arrays:
        content[ARRAYS] = ArrayRecord(dict(arrays))
    return content


def statement_of(content: RecordDict) -> str:
    """Take the statement out of a reply; raise `FederationError` if it has none."""
    return text_of(content, STATEMENT)


def seed_of(content: RecordDict) -> str:
    """Take the sealed seed, hexadecimal, out of a reply; raise `FederationError` if it has none that fits."""
    sealed = record(content, STATEMENT, ConfigRecord).get(SEED)
    if not isinstance(sealed, str) or not _SEALED.fullmatch(sealed):
        raise FederationError("a message came without the sealed seed of a mask: use one fedpp at all sites")
    return sealed


def all_stated(statements: Sequence[str], contracts: Sequence[str]) -> RecordDict:
    """Return the content of a reply to `where`."""
    return RecordDict({STATEMENTS: ConfigRecord({STATEMENTS: list(statements), CONTRACTS: list(contracts)})})


def statements_of(content: RecordDict, name: str = STATEMENTS) -> list[str]:
    """Take the statements, or the contracts, out of a reply to `where`; raise `FederationError` if it has none."""
    texts = record(content, STATEMENTS, ConfigRecord).get(name)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise FederationError(f"a message came without {name}: use one fedpp at all sites")
    return [str(text) for text in texts]


def sealed_state(state: bytes) -> ArrayRecord:
    """Return the record of a sealed state; `fedpp.protocol.messages.state_of` takes it out of a message's content."""
    return ArrayRecord({STATE: pack_state(state)})


def summed(low: NDArray[np.unsignedinteger[Any]], carry: NDArray[np.uint16]) -> ArrayRecord:
    """Return the record of an exact sum: its low words of the ring, and what they carry."""
    return ArrayRecord({LOW: Array(low), CARRY: Array(carry)})


def sum_of(content: RecordDict, bits: int, length: int) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.uint16]]:
    """Take the exact sum out of a message's content; raise `FederationError` if it does not fit."""
    return _words(content, LOW, f"uint{bits}", length), _words(content, CARRY, "uint16", length)


def masked_of(content: RecordDict, bits: int, length: int) -> NDArray[np.unsignedinteger[Any]]:
    """Take a site's masked update out of a message's content; raise `FederationError` if it does not fit."""
    return _words(content, MASKED, f"uint{bits}", length)


def missing_links(reply: Message) -> Mapping[str, int] | None:
    """Return the places from which a site lacks statements, if it refuses for that reason, or None."""
    error = MissingLinksError.of_text(_refusal(reply))
    return None if error is None else error.places


def lacks_state(reply: Message) -> bool:
    """Tell whether a site refuses because it lacks the certified state that a round starts from."""
    return LACKS_STATE in _refusal(reply)


def lacks_contract(reply: Message) -> bool:
    """Tell whether a site refuses because its app lacks the contract, which its vault has accepted."""
    return LACKS_CONTRACT in _refusal(reply)


def _refusal(reply: Message) -> str:
    """Return the reason why a site refuses, or nothing."""
    if not reply.has_content() or REFUSAL not in reply.content.config_records:
        return ""
    return str(record(reply.content, REFUSAL, ConfigRecord).get("reason", ""))


def _words(content: RecordDict, name: str, kind: str, length: int) -> NDArray[Any]:
    array = record(content, ARRAYS, ArrayRecord).get(name)
    if array is None:
        raise FederationError(f"a message came without {name}: use one fedpp at all sites")
    return vector(array, name, kind, length)
