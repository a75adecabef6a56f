"""The names and records of the messages between coordinator and sites.

::

    message                content of the question                              content of the answer
    query.describe         "config": DescribeRequest                            "site": SiteDescription, "proof"
    query.initial_weights  "config": InitialRequest(, "arrays": model)          "arrays": state
    query.local_baseline   "config": LocalBaselineRequest                       "metrics": Counts
    train                  "config": TrainRequest, "arrays": (state)            "arrays": words, "mask", "origin",
                                                                                "metrics"
    query.accept           "config": AcceptRequest, "arrays": (state,) words    "metrics": Counts, "verdict"
                           or after, "sum": Sum                                 (, "arrays": state)
    evaluate               "config": EvaluateRequest, "arrays": state           "metrics": Counts

A state is the global model with what its optimizer remembers, as bytes: sealed by a vault, or in clear where the run's
masking is off. Words are an update, or a sum of updates, masked or not; after is the next state, where the coordinator
made it of the updates. `evaluate` is for the final model and the test split. All but the first carry the
"participants" of the run. A site that will not or cannot answer sends "refusal" with one line instead.

A question names the state that it is about by its digest, as its `base`, but for a first one, sealed, which the sites
alone know. The state itself goes to a site once: a site that named it before is sent its name alone, refuses with
`LOST_BASE` if it has lost it, and is asked again with the state.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any, Self, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from numpy.typing import NDArray

from fedpp.config.run_config import MAX_ATTEMPTS
from fedpp.errors import FederationError
from fedpp.protocol.run_spec import RunSpec
from fedpp.texts import one_line
from fedpp.values import is_hex, is_hex_number

ARRAYS, CONFIG, METRICS, SITE, REFUSAL = "arrays", "config", "metrics", "site", "refusal"
PROOF, PARTICIPANTS, MASK, SUM, VERDICT = "proof", "participants", "mask", "sum", "verdict"
ORIGIN = "origin"
STATE, WORDS, AFTER = "state", "words", "after"  # arrays
MODEL_FORMS = ("", "clear", "sealed")
DESCRIBE, INITIAL_WEIGHTS, ACCEPT, LOCAL_BASELINE = "describe", "initial_weights", "accept", "local_baseline"
EXAMPLES = "num-examples"
LOST_BASE = "it does not hold the state that the question names: send it"
MAX_STATE_BYTES = 2**34

_LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
_OFFLINE = (ErrorCode.NODE_UNAVAILABLE, *_LOST)

Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)


@dataclass(frozen=True)
class Request:
    """What every question about a network says."""

    run_spec: RunSpec

    def to_record(self) -> ConfigRecord:
        """Return the record that carries this request."""
        return ConfigRecord({**vars(self), "run_spec": self.run_spec.to_json()})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read what `to_record` returned; raise `FederationError` for anything else."""
        text = record.get("run_spec")
        run_spec = RunSpec.from_json(text if isinstance(text, str) else "")
        try:
            return cls(**{**record, "run_spec": run_spec})
        except (TypeError, FederationError) as error:
            raise FederationError(f"the coordinator's request does not fit: {one_line(str(error))}") from None

    @classmethod
    def of(cls, content: RecordDict) -> Self:
        """Take the request out of a message's content; raise `FederationError` if it has none that fits."""
        return cls.from_record(record(content, CONFIG, ConfigRecord))


@dataclass(frozen=True)
class DescribeRequest:
    """Ask a site what it is, and to prove it for one run."""

    nonce: str  # of the run
    protocol: int

    def to_record(self) -> ConfigRecord:
        """Return the record that carries this request."""
        return ConfigRecord(asdict(self))

    @classmethod
    def of(cls, content: RecordDict) -> Self:
        """Take the request out of a message's content; raise `FederationError` if it has none that fits."""
        values = record(content, CONFIG, ConfigRecord)
        nonce, protocol = values.get("nonce"), values.get("protocol")
        if not isinstance(nonce, str) or type(protocol) is not int or len(values) != 2:
            raise FederationError("the coordinator's request does not fit: use one fedpp everywhere")
        return cls(nonce, protocol)


@dataclass(frozen=True)
class InitialRequest(Request):
    """Ask for the state of round 0: of fresh weights, or of the model that comes along, which may be sealed."""

    model: str  # "", "clear" or "sealed"

    def __post_init__(self) -> None:
        """Refuse what is no form of a model."""
        if self.model not in MODEL_FORMS:
            raise FederationError(f"a model comes sealed or in clear, got {self.model!r:.40}")


@dataclass(frozen=True)
class RoundRequest(Request):
    """A request about one attempt at a round, which starts from the state of the round before."""

    round: int
    attempt: int = 1
    base: str = ""  # digest of that state; none if it comes along and the coordinator does not know it

    def __post_init__(self) -> None:
        """Refuse a round that no run has, and a base that is no digest."""
        _require_round(self.round, self.attempt)
        _require_base(self.base)


@dataclass(frozen=True)
class TrainRequest(RoundRequest):
    """Request for local training: its reply is the site's update."""


@dataclass(frozen=True)
class EvaluateRequest(RoundRequest):
    """Request for the test counts of the final model, in a round after the last one."""


@dataclass(frozen=True)
class AcceptRequest(RoundRequest):
    """Request to compute the new global model of a round, and to accept or reject it by its validation counts."""

    keep: bool = False  # whether the reply holds the new state

    def __post_init__(self) -> None:
        """Refuse what no round is about, and a `keep` that is neither true nor false."""
        super().__post_init__()
        if type(self.keep) is not bool:
            raise FederationError(f"keep must be true or false, got {self.keep!r:.40}")


@dataclass(frozen=True)
class LocalBaselineRequest(Request):
    """Ask for the test counts of a model that the site trains alone, for as many rounds as the run has."""

    rounds: int

    def __post_init__(self) -> None:
        """Refuse a number of rounds that no run has."""
        _require_round(self.rounds, 1)


@dataclass(frozen=True)
class Mask:
    """What a site says of its words: what is public of their mask; of words in clear, a fresh nonce, 0 and 1."""

    nonce: str  # 64 hex digits
    tag: int
    least: int  # fewest sites of a sum that the mask comes off in

    def to_record(self) -> ConfigRecord:
        """Return the record that carries it."""
        return ConfigRecord({"nonce": self.nonce, "tag": f"{self.tag:x}", "least": self.least})

    @classmethod
    def of(cls, content: RecordDict) -> Self:
        """Take it out of a message's content; raise `FederationError` if it has none that fits."""
        values = record(content, MASK, ConfigRecord)
        nonce, tag, least = values.get("nonce"), values.get("tag"), values.get("least")
        if not (
            is_hex(nonce)
            and is_hex_number(tag)
            and isinstance(least, int)
            and type(least) is not bool
            and len(values) == 3
        ):
            raise FederationError("its mask does not fit: use one fedpp everywhere")
        return cls(nonce, int(tag, 16), least)


@dataclass(frozen=True)
class Origin:
    """What a site's update is of: its key domain, and the round, in the text that its mask is bound to."""

    domain: str  # fingerprint
    round: str

    def to_record(self) -> ConfigRecord:
        """Return the record that carries it."""
        return ConfigRecord({**vars(self)})

    @classmethod
    def of(cls, content: RecordDict) -> Self:
        """Take it out of a message's content; raise `FederationError` if it has none that fits."""
        values = record(content, ORIGIN, ConfigRecord)
        domain, text = values.get("domain"), values.get("round")
        if not (isinstance(domain, str) and isinstance(text, str) and len(values) == 2):
            raise FederationError("it does not say which round its update is of: use one fedpp everywhere")
        return cls(domain, text)


@dataclass(frozen=True)
class Verdict:
    """What a site found of a new global model: its state's SHA-256, and why it does not adopt it, or nothing."""

    digest: str
    reason: str

    def to_record(self) -> ConfigRecord:
        """Return the record that carries it."""
        return ConfigRecord({**vars(self)})

    @classmethod
    def of(cls, content: RecordDict) -> Self:
        """Take it out of a message's content; raise `FederationError` if it has none that fits."""
        values = record(content, VERDICT, ConfigRecord)
        digest, reason = values.get("digest"), values.get("reason")
        if not (is_hex(digest) and isinstance(reason, str) and len(values) == 2):
            raise FederationError("its verdict does not fit: use one fedpp everywhere")
        line = one_line(reason)
        if reason and not line:  # it would turn into a yes
            raise FederationError("its verdict does not fit: its reason does not show")
        return cls(digest, line)


def _require_base(base: object) -> None:
    if base != "" and not is_hex(base):
        raise FederationError(f"base must be a digest of 64 hex digits, or nothing, got {base!r:.80}")


def _require_round(number: object, attempt: object) -> None:
    for name, value, most in (("round", number, 2**31 - 1), ("attempt", attempt, MAX_ATTEMPTS)):
        if type(value) is not int or not 1 <= value <= most:
            raise FederationError(f"{name} must be a whole number from 1 to {most}, got {value!r:.40}")


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
    """Take the words of a sum or an update out of a message's content; raise `FederationError` if they do not fit."""
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
    """Answer a message with the reason why it is not answered."""
    return Message(RecordDict({REFUSAL: ConfigRecord({"reason": reason})}), reply_to=message)


def is_offline(reply: Message) -> bool:
    """Tell whether a reply is SuperLink's own word that the site cannot be reached, or that its answer is lost."""
    return reply.has_error() and reply.error.code in _OFFLINE


def is_lost(reply: Message) -> bool:
    """Tell whether a reply is SuperLink's own word that the site's answer, or the question, was lost on its way."""
    return reply.has_error() and reply.error.code in _LOST


def lost_base(reply: Message) -> bool:
    """Tell whether a site says that it does not hold the state which it was asked about."""
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
