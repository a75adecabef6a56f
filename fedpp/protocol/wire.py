"""The names and records of the messages between coordinator and sites.

::

    message                 content of the question             content of the answer
    query.describe          (nothing)                           "site": SiteDescription
    query.initial_weights   "config": InitialWeightsRequest     "arrays"
    train                   "config": TrainRequest, "arrays"    "arrays", "metrics": num-examples
    evaluate                "config": EvaluateRequest, "arrays" "metrics": Counts

A site that will not or cannot answer sends "refusal" with one line instead.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from fedpp.config import Dtype, NetworkSpec
from fedpp.errors import FederationError

ARRAYS, CONFIG, METRICS, SITE, REFUSAL = "arrays", "config", "metrics", "site", "refusal"
DESCRIBE, INITIAL_WEIGHTS = "describe", "initial_weights"
EXAMPLES = "num-examples"

Arrays = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True)
class Request:
    """What every question about a network says."""

    domain: str  # fingerprint; a site of another domain refuses
    network: NetworkSpec
    dtype: Dtype

    def to_record(self) -> ConfigRecord:
        """Return the record that carries this request."""
        return ConfigRecord({**asdict(self), "network": self.network.to_json()})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read what `to_record` returned; raise `FederationError` for anything else."""
        try:
            return cls(**{**record, "network": NetworkSpec.from_json(record["network"])})
        except (TypeError, KeyError) as error:
            raise FederationError(f"the coordinator's request does not fit: {error}") from None


@dataclass(frozen=True)
class InitialWeightsRequest(Request):
    """Ask for encrypted initial weights."""

    seed: int


@dataclass(frozen=True)
class TrainRequest(Request):
    """Ask for one round of local training."""

    learning_rate: float
    epochs: int
    batch_size: int
    seed: int
    round: int


@dataclass(frozen=True)
class EvaluateRequest(Request):
    """Ask for the counts of one split."""

    batch_size: int
    split: str


def pack_arrays(arrays: Arrays) -> ArrayRecord:
    """Put arrays into a record, by name."""
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def unpack_arrays(content: RecordDict) -> dict[str, NDArray[np.floating]]:
    """Take the arrays out of a message's content; raise `FederationError` if it has none."""
    record = content.array_records.get(ARRAYS)
    if record is None:
        raise FederationError("a message came without arrays: use one fedpp at all sites")
    return {name: array.numpy() for name, array in record.items()}


def refuse(reason: str, message: Message) -> Message:
    """Answer a message with the reason why it is not answered."""
    return Message(RecordDict({REFUSAL: ConfigRecord({"reason": reason})}), reply_to=message)


def content_of(reply: Message) -> RecordDict:
    """Return a reply's content; raise `FederationError` with the site's reason if it has none."""
    if reply.has_error():
        raise FederationError(f"no answer: {reply.error.reason}")
    if REFUSAL in reply.content:
        raise FederationError(str(reply.content[REFUSAL]["reason"]))
    return reply.content
