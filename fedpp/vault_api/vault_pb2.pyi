from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoReply(_message.Message):
    __slots__ = ("domain", "dataset", "frames", "height", "width", "channels", "classes", "sequences", "patients", "dtype", "card", "gaps", "multi_label", "patch", "site")
    class SequencesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class PatientsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    PATIENTS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    MULTI_LABEL_FIELD_NUMBER: _ClassVar[int]
    PATCH_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    domain: str
    dataset: str
    frames: int
    height: int
    width: int
    channels: int
    classes: _containers.RepeatedScalarFieldContainer[str]
    sequences: _containers.ScalarMap[str, int]
    patients: _containers.ScalarMap[str, int]
    dtype: str
    card: str
    gaps: str
    multi_label: bool
    patch: int
    site: str
    def __init__(self, domain: _Optional[str] = ..., dataset: _Optional[str] = ..., frames: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ..., classes: _Optional[_Iterable[str]] = ..., sequences: _Optional[_Mapping[str, int]] = ..., patients: _Optional[_Mapping[str, int]] = ..., dtype: _Optional[str] = ..., card: _Optional[str] = ..., gaps: _Optional[str] = ..., multi_label: _Optional[bool] = ..., patch: _Optional[int] = ..., site: _Optional[str] = ...) -> None: ...

class InitialWeightsRequest(_message.Message):
    __slots__ = ("network", "seed", "dtype")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    network: str
    seed: int
    dtype: str
    def __init__(self, network: _Optional[str] = ..., seed: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class SignRequest(_message.Message):
    __slots__ = ("nonce", "protocol", "bundle", "run", "coordinator")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    protocol: int
    bundle: str
    run: str
    coordinator: str
    def __init__(self, nonce: _Optional[str] = ..., protocol: _Optional[int] = ..., bundle: _Optional[str] = ..., run: _Optional[str] = ..., coordinator: _Optional[str] = ...) -> None: ...

class SignReply(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: str
    def __init__(self, proof: _Optional[str] = ...) -> None: ...

class ArrayChunk(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("split", "logits", "run", "round")
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    split: str
    logits: ArrayChunk
    run: str
    round: int
    def __init__(self, split: _Optional[str] = ..., logits: _Optional[_Union[ArrayChunk, _Mapping]] = ..., run: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class EvaluateReply(_message.Message):
    __slots__ = ("examples", "multi_label", "counts")
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    MULTI_LABEL_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    examples: int
    multi_label: bool
    counts: _containers.RepeatedCompositeFieldContainer[Counts]
    def __init__(self, examples: _Optional[int] = ..., multi_label: _Optional[bool] = ..., counts: _Optional[_Iterable[_Union[Counts, _Mapping]]] = ...) -> None: ...

class Counts(_message.Message):
    __slots__ = ("examples", "loss_sum", "confusion", "positive_scores", "negative_scores")
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_SUM_FIELD_NUMBER: _ClassVar[int]
    CONFUSION_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_SCORES_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_SCORES_FIELD_NUMBER: _ClassVar[int]
    examples: int
    loss_sum: float
    confusion: _containers.RepeatedScalarFieldContainer[int]
    positive_scores: _containers.RepeatedScalarFieldContainer[int]
    negative_scores: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, examples: _Optional[int] = ..., loss_sum: _Optional[float] = ..., confusion: _Optional[_Iterable[int]] = ..., positive_scores: _Optional[_Iterable[int]] = ..., negative_scores: _Optional[_Iterable[int]] = ...) -> None: ...

class Block(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ContractRequest(_message.Message):
    __slots__ = ("contract", "certificates")
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    contract: str
    certificates: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, contract: _Optional[str] = ..., certificates: _Optional[_Iterable[str]] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("contract", "round", "statements", "sum_hash", "aggregate", "sealed", "array", "low", "carry", "data")
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATEMENTS_FIELD_NUMBER: _ClassVar[int]
    SUM_HASH_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    CARRY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    contract: str
    round: int
    statements: _containers.RepeatedScalarFieldContainer[str]
    sum_hash: str
    aggregate: str
    sealed: _containers.RepeatedScalarFieldContainer[bytes]
    array: ArrayChunk
    low: bytes
    carry: bytes
    data: bytes
    def __init__(self, contract: _Optional[str] = ..., round: _Optional[int] = ..., statements: _Optional[_Iterable[str]] = ..., sum_hash: _Optional[str] = ..., aggregate: _Optional[str] = ..., sealed: _Optional[_Iterable[bytes]] = ..., array: _Optional[_Union[ArrayChunk, _Mapping]] = ..., low: _Optional[bytes] = ..., carry: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class StatementReply(_message.Message):
    __slots__ = ("statement", "sealed")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    statement: str
    sealed: bytes
    def __init__(self, statement: _Optional[str] = ..., sealed: _Optional[bytes] = ...) -> None: ...

class MaskedReply(_message.Message):
    __slots__ = ("values", "bits", "length", "statement")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    values: bytes
    bits: int
    length: int
    statement: str
    def __init__(self, values: _Optional[bytes] = ..., bits: _Optional[int] = ..., length: _Optional[int] = ..., statement: _Optional[str] = ...) -> None: ...

class FindRequest(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    def __init__(self, nonce: _Optional[str] = ...) -> None: ...

class FindReply(_message.Message):
    __slots__ = ("contract", "statement")
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    contract: str
    statement: str
    def __init__(self, contract: _Optional[str] = ..., statement: _Optional[str] = ...) -> None: ...

class LoadReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
