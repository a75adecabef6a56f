"""The names and records of the messages between coordinator and sites.

::

    message      content the coordinator sends        content a site answers
    query.describe          (nothing)                 "site": its description
    query.initial_weights   "config"                  "arrays"
    train                   "arrays", "config"        "arrays", "metrics" (num-examples)
    evaluate                "arrays", "config"        "metrics" (counts)

A site that will not or cannot answer sends "refusal" with one line instead.
"""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from fedpp.errors import FederationError

ARRAYS, CONFIG, METRICS, SITE, REFUSAL = "arrays", "config", "metrics", "site", "refusal"
DESCRIBE, INITIAL_WEIGHTS = "describe", "initial_weights"
EXAMPLES = "num-examples"

Arrays = Mapping[str, NDArray[np.generic]]


def pack_arrays(arrays: Arrays) -> ArrayRecord:
    """Put arrays into a record, by name."""
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def unpack_arrays(record: ArrayRecord) -> dict[str, NDArray[np.generic]]:
    """Take the arrays out of a record."""
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
