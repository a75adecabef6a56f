"""Messages between coordinator and sites in a run in clear: their names, records and checks.

::

    message                content of the request                               content of the reply
    query.describe         "config": DescribeRequest                            "site": SiteDescription, "proof"
    query.initial_weights  "config": InitialRequest(, "arrays": model)          "arrays": state
    query.local_baseline   "config": LocalBaselineRequest                       "metrics": Counts
    train                  "config": TrainRequest, "arrays": (state)            "arrays": words, "origin", "metrics"
    query.accept           "config": AcceptRequest, "arrays": (state,) words    "metrics": Counts, "verdict"
                           or after, "sum": Sum                                 (, "arrays": state)
    evaluate               "config": EvaluateRequest, "arrays": state           "metrics": Counts

A state is the global model with its server optimizer's moments, as bytes. Words are an encoded update, or an aggregate
of them; after is the next state, where the coordinator computed it from the updates. `evaluate` is for the final model
and the test split. All requests but the first carry the "participants" of the run. A site that refuses, or fails,
replies with one "refusal". Masked runs share `query.describe`; they have others (`fedpp.protocol.masked_messages`).

A request names its state by the digest, its `base`. A state is sent to a site once. A site that reported its digest
before gets the digest alone; if it has lost the state, it refuses with `LOST_BASE`, and gets the request again with the
state.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Annotated, Any, ClassVar, Self, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from numpy.typing import NDArray

from fedpp.config.run_config import MAX_ATTEMPTS, MAX_EXAMPLES
from fedpp.config.task import MAX_CLASSES
from fedpp.errors import FederationError
from fedpp.protocol.run_spec import RunSpec
from fedpp.texts import one_line
from fedpp.values import Declared, Listed, hexadecimal, is_hex, rule, whole

ARRAYS, CONFIG, METRICS, SITE, REFUSAL = "arrays", "config", "metrics", "site", "refusal"
PROOF, PARTICIPANTS, ORIGIN, SUM, VERDICT = "proof", "participants", "origin", "sum", "verdict"
STATE, WORDS, AFTER = "state", "words", "after"  # arrays
DESCRIBE, INITIAL_WEIGHTS, ACCEPT, LOCAL_BASELINE = "describe", "initial_weights", "accept", "local_baseline"
EXAMPLES, LABELS = "num-examples", "labels"
LOST_BASE = "it does not hold the state that the question names: send it"
MAX_STATE_BYTES = 2**34

_LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
_OFFLINE = (ErrorCode.NODE_UNAVAILABLE, *_LOST)

_ROUND, _ATTEMPT = whole(1, 2**31 - 1), whole(1, MAX_ATTEMPTS)
_BASE = rule("a digest of 64 hexadecimal digits, or nothing", lambda value: value == "" or is_hex(value))

Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)


class OfContent(Declared, label="the coordinator's request does not fit", error=FederationError):
    """Base of what one record of a message's content carries."""

    _record: ClassVar[str] = CONFIG

    def to_record(self) -> ConfigRecord:
        """Return the record that carries it."""
        return ConfigRecord(self.to_mapping())

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Take it out of a message's content; raise `FederationError` if none fits."""
        return cls.from_mapping(record(content, cls._record, ConfigRecord))


@dataclass(frozen=True)
class Request(OfContent):
    """Base of the requests of a run: its specification, which travels as JSON, since records are flat."""

    run_spec: RunSpec

    def to_record(self) -> ConfigRecord:
        """Return the record that carries this request."""
        return ConfigRecord({**self.to_mapping(), "run_spec": self.run_spec.to_json()})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what a record holds; raise `FederationError` for anything else."""
        try:
            return super().from_mapping({**values, "run_spec": RunSpec.from_json(values.get("run_spec"))})
        except FederationError as error:
            reason = one_line(str(error).removeprefix(f"{cls._label}: ").removeprefix("run specification: "))
            raise cls._refused(reason) from None


@dataclass(frozen=True)
class DescribeRequest(OfContent):
    """Request for a site's description, and for its proof of membership in one run."""

    nonce: str  # of the run
    protocol: int


@dataclass(frozen=True)
class InitialRequest(Request):
    """Request for the state of round 0: of the model that comes along, or else of fresh weights."""


@dataclass(frozen=True)
class RoundRequest(Request):
    """Base of requests about one attempt at a round, which starts from the state of the round before."""

    round: Annotated[int, _ROUND]
    attempt: Annotated[int, _ATTEMPT] = 1
    base: Annotated[str, _BASE] = ""  # digest of that state, or nothing: that which comes along


@dataclass(frozen=True)
class TrainRequest(RoundRequest):
    """Request for local training: its reply is the site's update, in round 1 with its labels if the run needs them."""

    labels: Annotated[tuple[Annotated[int, whole(0, MAX_EXAMPLES)], ...], Listed(0, 2 * MAX_CLASSES)] = ()


@dataclass(frozen=True)
class EvaluateRequest(RoundRequest):
    """Request for the test counts of the final model, in a round after the last one."""


@dataclass(frozen=True)
class AcceptRequest(RoundRequest):
    """Request to compute the new global model of a round, and to accept or reject it by its validation counts."""

    keep: bool = False  # whether the reply holds the new state


@dataclass(frozen=True)
class LocalBaselineRequest(Request):
    """Request for the test counts of a model that the site trains on its own data, for as many rounds as the run."""

    rounds: Annotated[int, _ROUND]


@dataclass(frozen=True)
class Origin(OfContent, label="its origin does not fit"):
    """Origin of a site's update: its key domain, and the round's context as JSON."""

    _record: ClassVar[str] = ORIGIN

    domain: str  # fingerprint
    round: str


@dataclass(frozen=True)
class Verdict(OfContent, label="its verdict does not fit"):
    """Verdict of a site on a new global model: its state's SHA-256, and the reason for a rejection, or nothing."""

    _record: ClassVar[str] = VERDICT

    digest: Annotated[str, hexadecimal()]
    reason: str

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Take it out of a message's content; raise `FederationError` if none fits."""
        verdict = super().read(content)
        line = one_line(verdict.reason)
        if verdict.reason and not line:  # it would turn into an acceptance
            raise cls._refused("its reason does not show")
        return replace(verdict, reason=line)


def record(content: RecordDict, name: str, kind: type[Record]) -> Record:
    """Take one record out of a message's content; raise `FederationError` if it has none of this kind."""
    found = content.get(name)
    if not isinstance(found, kind):
        raise FederationError(f"a message came without {name}: use one fedpp at all sites")
    return found


def text_of(content: RecordDict, name: str) -> str:
    """Take the text that a record of this name holds under it; raise `FederationError` if there is none."""
    text = record(content, name, ConfigRecord).get(name)
    if not isinstance(text, str):
        raise FederationError(f"a message came without the text {name}: use one fedpp at all sites")
    return text


def pack_state(state: bytes) -> Array:
    """Return a state as an array of bytes."""
    return Array(np.frombuffer(state, np.uint8))


def state_of(content: RecordDict, name: str = STATE) -> bytes:
    """Take the state of this name out of a message's content; raise `FederationError` if it has none that fits."""
    array = record(content, ARRAYS, ArrayRecord).get(name)
    if array is None or len(array.shape) != 1 or not 0 < array.shape[0] <= MAX_STATE_BYTES:
        raise FederationError("a message came without a state: use one fedpp at all sites")
    return vector(array, name, "uint8", array.shape[0]).tobytes()


def words_of(content: RecordDict, bits: int, length: int) -> NDArray[np.unsignedinteger[Any]]:
    """Take an encoded update or aggregate out of a message's content; raise `FederationError` if it does not fit."""
    array = record(content, ARRAYS, ArrayRecord).get(WORDS)
    if array is None:
        raise FederationError("a message came without words: use one fedpp at all sites")
    return vector(array, WORDS, f"uint{bits}", length)


def vector(array: Array, name: str, kind: str, length: int) -> NDArray[Any]:
    """Return an array's values without copying or parsing: `numpy.load` would allocate whatever a header says."""
    if array.dtype != kind or tuple(array.shape) != (length,):
        raise FederationError(
            f"its {name} are {array.dtype!r:.40} of shape {tuple(array.shape)!r:.80}, due are {length} of {kind}"
        )
    dtype = np.dtype(kind).newbyteorder("<")
    expected = BytesIO()
    np.lib.format.write_array_header_1_0(expected, {"descr": dtype.str, "fortran_order": False, "shape": (length,)})
    start = 10 + int.from_bytes(array.data[8:10], "little")  # magic, version and length, then the text
    same = _parts(array.data[:start]) == _parts(expected.getvalue())
    if not same or len(array.data) - start != length * dtype.itemsize:
        raise FederationError(f"the data of its {name} do not fit their shape ({length},)")
    return np.frombuffer(array.data, dtype, offset=start)


def _parts(header: bytes) -> tuple[bytes, list[bytes]]:
    return header[:8], header[10:].split()  # the text is padded with spaces


def refuse(reason: str, message: Message) -> Message:
    """Return a reply with the reason why the request is refused."""
    return Message(RecordDict({REFUSAL: ConfigRecord({"reason": reason})}), reply_to=message)


def is_offline(reply: Message) -> bool:
    """Tell whether SuperLink reports that the site cannot be reached, or that its reply is lost."""
    return reply.has_error() and reply.error.code in _OFFLINE


def is_lost(reply: Message) -> bool:
    """Tell whether SuperLink reports that the site's reply, or the request, was lost on its way."""
    return reply.has_error() and reply.error.code in _LOST


def lost_base(reply: Message) -> bool:
    """Tell whether a site reports that it does not hold the state that the request names."""
    return reply.has_content() and dict(reply.content.config_records.get(REFUSAL, {})) == {"reason": LOST_BASE}


def content_of(reply: Message | None) -> RecordDict:
    """Return a reply's content; raise `FederationError` with the site's reason if it has none."""
    if reply is None:
        raise FederationError("no reply in time")
    if reply.has_error():
        raise FederationError(f"no reply: {one_line(str(reply.error.reason))}")
    if REFUSAL in reply.content:
        reason = record(reply.content, REFUSAL, ConfigRecord).get("reason")
        raise FederationError(one_line(str(reason or "it refused and gave no reason")))
    return reply.content
