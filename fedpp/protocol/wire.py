"""The names and records of the messages between coordinator and sites.

::

    message                 content of the question             content of the answer
    query.describe          "config": DescribeRequest           "site": SiteDescription, "proof"
    query.initial_weights   "config": InitialWeightsRequest     "arrays"
    train                   "config": TrainRequest, "arrays"    "arrays", "metrics": num-examples
    evaluate                "config": EvaluateRequest, "arrays" "metrics": Counts

Train and evaluate also carry the "participants" of the run. A site that will not or cannot answer sends "refusal" with
one line instead.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from typing import Any, Self, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedpp.config import DTYPES, SPLITS, Dtype
from fedpp.errors import ConfigError, FederationError
from fedpp.network import MOST_PARAMETERS, NetworkSpec
from fedpp.recipe import Recipe

ARRAYS, CONFIG, METRICS, SITE, REFUSAL = "arrays", "config", "metrics", "site", "refusal"
PROOF, PARTICIPANTS = "proof", "participants"
DESCRIBE, INITIAL_WEIGHTS = "describe", "initial_weights"
EXAMPLES = "num-examples"
MOST_CHARACTERS = 1000  # of a reason
_BOUNDS = {"seed": (0, 2**63 - 1), "epochs": (1, 1000), "batch_size": (1, 4096), "round": (1, 2**31)}
_MOST_AXES = 8

Arrays = Mapping[str, NDArray[np.floating]]
Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)


@dataclass(frozen=True)
class Request:
    """What every question about a network says."""

    domain: str  # fingerprint; a site of another domain refuses
    network: NetworkSpec
    dtype: Dtype

    def __post_init__(self) -> None:
        """Refuse settings that no site should work on."""
        values = vars(self)
        for name, (least, most) in _BOUNDS.items():
            value = values.get(name, least)
            if type(value) is not int or not least <= value <= most:
                raise FederationError(f"{name} must be a whole number from {least} to {most}, got {value!r:.40}")
        for name, value, known in (("dtype", self.dtype, DTYPES), ("split", values.get("split", SPLITS[0]), SPLITS)):
            if value not in known:
                raise FederationError(f"{name} must be one of {', '.join(known)}, got {value!r:.40}")
        if self.network.parameters() > MOST_PARAMETERS:
            raise FederationError(
                f"a network may have {MOST_PARAMETERS} parameters, got {self.network.parameters():.4g}: "
                "use smaller images or layers"
            )

    def to_record(self) -> ConfigRecord:
        """Return the record that carries this request."""
        values = asdict(self)
        recipe = values.pop("recipe", {})
        return ConfigRecord({**values, **recipe, "network": self.network.to_json()})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read what `to_record` returned; raise `FederationError` for anything else."""
        try:
            return cls(**{**record, "network": NetworkSpec.from_json(record["network"])})
        except (TypeError, KeyError, ConfigError, FederationError) as error:
            raise FederationError(f"the coordinator's request does not fit: {error}") from None

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
class InitialWeightsRequest(Request):
    """Ask for encrypted initial weights."""

    seed: int


@dataclass(frozen=True)
class LearningRequest(Request):
    """What every question to a trainer says: how its network learns, so that one trainer answers them all."""

    recipe: Recipe

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read what `to_record` returned; raise `FederationError` for anything else."""
        names = {field.name for field in fields(Recipe)}
        rest = {name: value for name, value in record.items() if name not in names}
        try:
            recipe = Recipe(**{name: record[name] for name in names})
        except (ConfigError, KeyError) as error:
            raise FederationError(f"the coordinator's request does not fit: {error}") from None
        return super().from_record({**rest, "recipe": recipe})


@dataclass(frozen=True)
class TrainRequest(LearningRequest):
    """Ask for one round of local training."""

    epochs: int
    seed: int
    round: int


@dataclass(frozen=True)
class EvaluateRequest(LearningRequest):
    """Ask for the counts of one split, after a round; the final test is one round later than the last."""

    split: str
    round: int = 1


def record(content: RecordDict, name: str, kind: type[Record]) -> Record:
    """Take one record out of a message's content; raise `FederationError` if it has none of this kind."""
    found = content.get(name)
    if not isinstance(found, kind):
        raise FederationError(f"a message came without {name}: use one fedpp at all sites")
    return found


def pack_arrays(arrays: Arrays) -> ArrayRecord:
    """Put arrays into a record, by name."""
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def unpack_arrays(content: RecordDict) -> dict[str, NDArray[np.floating]]:
    """Take the arrays out of a message's content, read-only; raise `FederationError` if it has none that fit."""
    return {name: _values(name, array) for name, array in record(content, ARRAYS, ArrayRecord).items()}


def rows_of(content: RecordDict, network: NetworkSpec, n: int, dtype: Dtype) -> dict[str, NDArray[np.floating]]:
    """Take a network's rows `[*shape, n]` out of a message's content; raise `FederationError` if they do not fit."""
    rows = unpack_arrays(content)
    expected = {spec.name: ((*spec.shape, n), dtype) for spec in network.weights()}
    if {name: (value.shape, str(value.dtype)) for name, value in rows.items()} != expected:
        raise FederationError("its arrays have other names, shapes or dtypes than the model")
    if not all(np.isfinite(value).all() for value in rows.values()):
        raise FederationError("its arrays hold values that are not finite")
    return rows


def _values(name: str, array: Array) -> NDArray[np.floating]:
    """Return an array's values without copying or parsing: `numpy.load` would allocate whatever a header says."""
    shape = array.shape
    if array.dtype not in DTYPES or not 1 <= len(shape) <= _MOST_AXES or min(shape) < 1:
        raise FederationError(f"array {name!r:.40} has dtype {array.dtype!r:.40} and shape {shape!r:.80}")
    dtype = np.dtype(array.dtype).newbyteorder("<")
    expected = BytesIO()
    np.lib.format.write_array_header_1_0(
        expected, {"descr": dtype.str, "fortran_order": False, "shape": tuple(map(int, shape))}
    )
    start = 10 + int.from_bytes(array.data[8:10], "little")  # magic, version and length, then the text
    same = _words(array.data[:start]) == _words(expected.getvalue())
    if not same or len(array.data) - start != math.prod(shape) * dtype.itemsize:
        raise FederationError(f"the data of array {name!r:.40} do not fit its shape {shape!r:.80}")
    return np.frombuffer(array.data, dtype, offset=start).reshape(shape)


def _words(header: bytes) -> tuple[bytes, list[bytes]]:
    return header[:8], header[10:].split()  # the text is padded with spaces


def one_line(text: str) -> str:
    """Return a text that came from others as one line of printable characters, cut where it is long."""
    line = " ".join(text[: 2 * MOST_CHARACTERS].split())
    return "".join(character for character in line if character.isprintable())[:MOST_CHARACTERS]


def refuse(reason: str, message: Message) -> Message:
    """Answer a message with the reason why it is not answered."""
    return Message(RecordDict({REFUSAL: ConfigRecord({"reason": reason})}), reply_to=message)


def content_of(reply: Message | None) -> RecordDict:
    """Return a reply's content; raise `FederationError` with the site's reason if it has none."""
    if reply is None:
        raise FederationError("no answer in time")
    if reply.has_error():
        raise FederationError(f"no answer: {one_line(str(reply.error.reason))}")
    if REFUSAL in reply.content:
        reason = record(reply.content, REFUSAL, ConfigRecord).get("reason")
        raise FederationError(one_line(str(reason or "it refused and gave no reason")))
    return reply.content
