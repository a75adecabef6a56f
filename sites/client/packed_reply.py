"""A reply as bytes: Flower's own form copies an array several times, and is limited to two gigabytes.

It is facts and content for a container (`fedpp.container`). Facts: the records' names in order; the arrays, each as
record, name, dtype, shape, form and length; and the length of the rest. Content: all other records in Flower's own
form, then the arrays' data in the order of the facts.
"""

from io import BytesIO

from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedpp.container import Facts


def pack(reply: RecordDict) -> tuple[Facts, list[bytes]]:
    """Return a reply as facts and content in parts, arrays not copied.

    Law: with `facts, content = pack(reply)`, `unpack(facts, b"".join(content))` is the reply, its records in order.
    """
    others = RecordDict({name: record for name, record in reply.items() if not isinstance(record, ArrayRecord)})
    rest = recorddict_to_proto(others).SerializeToString()
    arrays = [(record, name, array) for record, of in reply.array_records.items() for name, array in of.items()]
    described = [[record, name, of.dtype, list(of.shape), of.stype, len(of.data)] for record, name, of in arrays]
    facts = {"records": list(reply), "arrays": described, "rest": len(rest)}
    return facts, [rest, *(array.data for _, _, array in arrays)]


def unpack(facts: Facts, content: bytes) -> RecordDict:
    """Return the reply that `pack` was given; facts and content must be complete."""
    stream = BytesIO(content)
    others = recorddict_from_proto(ProtoRecordDict.FromString(stream.read(facts["rest"])))
    arrays = {name: ArrayRecord() for name in facts["records"] if name not in others}
    for record, name, dtype, shape, stype, length in facts["arrays"]:
        arrays[record][name] = Array(dtype, tuple(shape), stype, stream.read(length))
    return RecordDict({name: arrays[name] if name in arrays else others[name] for name in facts["records"]})
