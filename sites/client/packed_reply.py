"""A reply as bytes: Flower's own form copies an array several times, and is limited to two gigabytes.

::

    4 bytes    length of the header, big-endian
    header     JSON: the records' names in order; the arrays, each as record, name, dtype, shape, form and length;
               and the length of the rest
    rest       all other records, in Flower's own form
    arrays     their data, in the order of the header
"""

import json
from io import BytesIO

from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

_LENGTH_BYTES = 4


def pack(reply: RecordDict) -> list[bytes]:
    """Return a reply as bytes in parts, arrays not copied.

    Law: `unpack(b"".join(pack(reply)))` is the reply, its records in their order.
    """
    others = RecordDict({name: record for name, record in reply.items() if not isinstance(record, ArrayRecord)})
    rest = recorddict_to_proto(others).SerializeToString()
    arrays = [(record, name, array) for record, of in reply.array_records.items() for name, array in of.items()]
    facts = [[record, name, of.dtype, of.shape, of.stype, len(of.data)] for record, name, of in arrays]
    header = json.dumps({"records": list(reply), "arrays": facts, "rest": len(rest)}).encode()
    return [len(header).to_bytes(_LENGTH_BYTES, "big"), header, rest, *(array.data for _, _, array in arrays)]


def unpack(packed: bytes) -> RecordDict:
    """Return the reply that `pack` was given, from its joined parts; the bytes must be complete."""
    stream = BytesIO(packed)
    facts = json.loads(stream.read(int.from_bytes(stream.read(_LENGTH_BYTES), "big")))
    others = recorddict_from_proto(ProtoRecordDict.FromString(stream.read(facts["rest"])))
    arrays = {name: ArrayRecord() for name in facts["records"] if name not in others}
    for record, name, dtype, shape, stype, length in facts["arrays"]:
        arrays[record][name] = Array(dtype, tuple(shape), stype, stream.read(length))
    return RecordDict({name: arrays[name] if name in arrays else others[name] for name in facts["records"]})
