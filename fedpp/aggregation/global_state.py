"""The global model of a round and all that decides the next: one value, one byte string, one digest at every site.

What is in it: rows, the moments of the server's optimizer as rows, and what they belong to. No slot of a message
stands in clear: second moments are the rows of their slots, and the rows of what rounding took from those (a row rounds
at its largest slot, and a decoy's second moment can be 1e10 times the message's).

Bytes: a line of canonical JSON with every array's name, dtype and shape, the arrays' little-endian bytes in that order,
and the SHA-256 of all that, which tells damage and proves nothing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedpp.arrays import are_finite
from fedpp.config.hyperparameters import ServerOptimizerConfig
from fedpp.config.model_spec import MAX_PARAMETERS, ModelSpec
from fedpp.config.run_config import DTYPES, MAX_ATTEMPTS, Dtype
from fedpp.errors import ConfigError, ModelError
from fedpp.learning.model_file import EncryptedModel
from fedpp.values import is_hex

Rows = Mapping[str, NDArray[np.floating]]
Vector = NDArray[np.float64]

FORMAT = "fedpp-state-1"
SALT_BYTES = 32
UNSALTED = "0" * 64
MAX_ROUND = 2**31
MAX_HEADER = 2**20  # bytes
_MAX_SLOTS = 8
_SUM_BYTES = 32
_HEADER = {"attempt", "classes", "domain", "dtype", "format", "n", "network", "round", "rule", "salt"}
_Expected = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape of each array, in the order of the bytes


@dataclass(frozen=True, eq=False)
class GlobalState:
    """What all sites hold after a round; the same bytes mean the same state.

    `rows` are `[*shape, n]` of the run's dtype. `moments` are float64: `first/NAME` is `[*shape, n]`, a row;
    `second/NAME` is `[2, *shape, n]`, rows and what rounding took from them.
    """

    round: int  # 0: before the first
    attempt: int  # at this round, from 1: which of them the sites adopted
    salt: str  # hex, drawn at round 0: who could guess the rows must not know them by the state's digest
    domain: str  # fingerprint; none of a plaintext reference's
    network: ModelSpec
    dtype: Dtype
    classes: tuple[str, ...]
    rule: ServerOptimizerConfig
    rows: Rows
    moments: Rows

    def __post_init__(self) -> None:
        """Refuse what does not fit together; the arrays become read-only."""
        n = next((value.shape[-1] for value in self.rows.values() if value.ndim), 0)
        _require_facts(self.round, self.attempt, self.salt, self.domain, self.network, self.dtype, n, self.classes)
        arrays = {**self.rows, **self.moments}
        expected = _expected(self.network, self.dtype, n, self.rule)
        if {name: (str(value.dtype), value.shape) for name, value in arrays.items()} != expected:
            raise ModelError("the state's arrays have other names, dtypes or shapes than its network and rule")
        if not are_finite(arrays.values()):
            raise ModelError("the state's arrays hold values that are not finite: go back to the round before")
        ordered = {name: _read_only(arrays[name]) for name in expected}
        object.__setattr__(self, "rows", {name: ordered.pop(name) for name in list(ordered) if name in self.rows})
        object.__setattr__(self, "moments", ordered)

    @property
    def n(self) -> int:
        """Return the number of slots."""
        return int(next(iter(self.rows.values())).shape[-1])

    def model(self) -> EncryptedModel:
        """Return the model alone, without what the server's optimizer remembers."""
        return EncryptedModel(self.network, self.domain, self.classes, dict(self.rows))

    @property
    def digest(self) -> str:
        """Return the SHA-256 of `to_bytes()`, in hex."""
        return self._sums[1]

    def to_bytes(self) -> bytes:
        """Return the state as bytes. Law: `from_bytes(to_bytes())` is the same state, and has the same bytes."""
        return b"".join((*self._parts(), self._sums[0]))

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read what `to_bytes` returned; raise `ModelError` for anything else."""
        whole, end = memoryview(content)[:-_SUM_BYTES], content[-_SUM_BYTES:]
        if len(content) < _SUM_BYTES or sha256(whole).digest() != end:
            raise _damaged()
        begin = content.find(b"\n", 0, MAX_HEADER) + 1
        try:
            facts = _facts(content[:begin])
            expected = _expected(facts["network"], facts["dtype"], facts.pop("n"), facts["rule"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, ConfigError):
            raise _damaged() from None
        arrays = _arrays(content, begin, expected)
        rows = {spec.name: arrays.pop(spec.name) for spec in facts["network"].weights()}
        state = cls(**facts, rows=rows, moments=arrays)
        if state._header() != content[:begin]:  # another text of the same facts
            raise _damaged()
        return state

    def __eq__(self, other: object) -> bool:
        """Compare to the bit."""
        return isinstance(other, GlobalState) and self.digest == other.digest

    def __hash__(self) -> int:
        """Hash the bytes."""
        return hash(self.digest)

    @cached_property
    def _sums(self) -> tuple[bytes, str]:
        """Return the SHA-256 at the end of the bytes, and that of all of them, in hex."""
        total = sha256()
        for part in self._parts():
            total.update(part)
        end = total.digest()
        total.update(end)
        return end, total.hexdigest()

    def _parts(self) -> Iterator[bytes | memoryview]:
        yield self._header()
        yield from (_little(value).data for of in (self.rows, self.moments) for value in of.values())

    def _header(self) -> bytes:
        expected = _expected(self.network, self.dtype, self.n, self.rule)
        facts = {
            "attempt": self.attempt,
            "arrays": [[name, dtype, shape] for name, (dtype, shape) in expected.items()],
            "classes": self.classes,
            "domain": self.domain,
            "dtype": self.dtype,
            "format": FORMAT,
            "n": self.n,
            "network": self.network.to_json(),
            "round": self.round,
            "rule": self.rule.to_mapping(),
            "salt": self.salt,
        }
        return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def begun_with(model: EncryptedModel, rule: ServerOptimizerConfig) -> GlobalState:
    """Return round 0 of an earlier run's model, which is in clear: what its digest tells is no secret."""
    return initial(
        model.rows,
        network=model.network,
        domain=model.domain,
        dtype=model.dtype,
        classes=model.classes,
        rule=rule,
        salt=UNSALTED,
    )


def initial(
    rows: Rows,
    *,
    network: ModelSpec,
    domain: str,
    dtype: Dtype,
    classes: tuple[str, ...],
    rule: ServerOptimizerConfig,
    salt: str,
) -> GlobalState:
    """Return round 0: the initial weights, rows `[*shape, n]` in the run's dtype, and moments of zero."""
    own = {name: np.asarray(value, dtype) for name, value in rows.items()}
    n = next((value.shape[-1] for value in own.values() if value.ndim), 0)
    moments = {
        name: np.zeros(shape) for name, (_, shape) in _expected(network, dtype, n, rule).items() if name not in own
    }
    return GlobalState(0, 1, salt, domain, network, dtype, classes, rule, own, moments)


def in_order(rows: Rows, network: ModelSpec) -> list[NDArray[np.floating]]:
    """Return the values of each weight's rows, or update, as vectors in the network's order.

    Law: `unflat` of them together, in float64, is the rows. Raises `ModelError` if they do not fit the network.
    """
    n = next((value.shape[-1] for value in rows.values() if value.ndim), 0)
    expected = {spec.name: (*spec.shape, n) for spec in network.weights()}
    if {name: value.shape for name, value in rows.items()} != expected:
        raise ModelError("the rows have other names or shapes than the network's weights")
    return [rows[name].reshape(-1) for name in expected]


def unflat(vector: Vector, network: ModelSpec, n: int) -> dict[str, Vector]:
    """Return the rows `[*shape, n]` in a vector, as views of it."""
    if vector.shape != (network.parameters() * n,) or vector.dtype != np.float64:
        raise ModelError(
            f"an update of this network is a vector of {network.parameters() * n} float64 values, "
            f"got {vector.dtype} of shape {vector.shape}"
        )
    rows, start = {}, 0
    for spec in network.weights():
        size = prod(spec.shape) * n
        rows[spec.name] = vector[start : start + size].reshape(*spec.shape, n)
        start += size
    return rows


def _expected(network: ModelSpec, dtype: Dtype, n: int, rule: ServerOptimizerConfig) -> _Expected:
    specs = network.weights()
    arrays: _Expected = {spec.name: (dtype, (*spec.shape, n)) for spec in specs}
    parts: dict[str, tuple[int, ...]] = {"first": (), "second": (2,)}
    for moment in rule.moments:
        arrays |= {f"{moment}/{spec.name}": ("float64", (*parts[moment], *spec.shape, n)) for spec in specs}
    return arrays


def _require_facts(
    number: Any,
    attempt: Any,
    salt: Any,
    domain: Any,
    network: ModelSpec,
    dtype: Any,
    n: Any,
    classes: tuple[Any, ...],
) -> None:
    """Raise `ModelError` for what no state can be: facts may come from a file."""
    if type(number) is not int or not 0 <= number <= MAX_ROUND:
        raise ModelError(f"a state's round is a whole number from 0 to {MAX_ROUND}, got {number!r:.40}")
    if type(attempt) is not int or not 1 <= attempt <= MAX_ATTEMPTS:
        raise ModelError(f"a state's attempt is a whole number from 1 to {MAX_ATTEMPTS}, got {attempt!r:.40}")
    if not is_hex(salt):
        raise ModelError(f"a state's salt is 64 hex digits, got {salt!r:.80}")
    if domain != "" and not is_hex(domain):
        raise ModelError(f"a state's domain is a fingerprint of 64 hex digits, got {domain!r:.80}")
    if dtype not in DTYPES:
        raise ModelError(f"a state's dtype is one of {', '.join(DTYPES)}, got {dtype!r:.40}")
    if type(n) is not int or not 1 <= n <= _MAX_SLOTS:
        raise ModelError(f"a state has 1 to {_MAX_SLOTS} slots, got {n!r:.40}")
    if network.parameters() > MAX_PARAMETERS:
        raise ModelError(f"a network may have {MAX_PARAMETERS} parameters: use smaller images or layers")
    if len(classes) != network.classes or not all(isinstance(name, str) for name in classes):
        raise ModelError(f"a state names the {network.classes!r:.40} classes of its network, got {len(classes)} names")


def _facts(header: bytes) -> dict[str, Any]:
    """Return what a header says, of which only the arrays are left out: they follow from the rest."""
    facts = json.loads(header)
    if (
        not isinstance(facts, dict)
        or facts.pop("format") != FORMAT
        or facts.keys() != _HEADER - {"format"} | {"arrays"}
    ):
        raise ValueError
    del facts["arrays"]
    facts["network"] = ModelSpec.from_json(facts["network"])
    facts["rule"] = ServerOptimizerConfig.from_mapping(facts["rule"])
    if not isinstance(facts["classes"], list):
        raise TypeError
    facts["classes"] = tuple(facts["classes"])
    _require_facts(
        *(facts[name] for name in ("round", "attempt", "salt", "domain", "network", "dtype", "n", "classes"))
    )
    return facts


def _arrays(content: bytes, start: int, expected: _Expected) -> dict[str, NDArray[np.floating]]:
    """Return the arrays behind the header, as views of the content, aligned or not: a claim allocates nothing."""
    sizes = [np.dtype(dtype).itemsize * prod(shape) for dtype, shape in expected.values()]
    if start + sum(sizes) + _SUM_BYTES != len(content):
        raise _damaged()
    arrays: dict[str, NDArray[np.floating]] = {}
    for (name, (dtype, shape)), size in zip(expected.items(), sizes, strict=True):
        stored = np.frombuffer(content, np.dtype(dtype).newbyteorder("<"), prod(shape), start)
        arrays[name] = stored.reshape(shape).astype(dtype, copy=False)
        start += size
    return arrays


def _little(value: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.ascontiguousarray(value, value.dtype.newbyteorder("<"))


def _read_only(value: NDArray[np.floating]) -> NDArray[np.floating]:
    view = value.view()
    view.flags.writeable = False
    return view


def _damaged() -> ModelError:
    return ModelError(f"not a state of fedpp ({FORMAT}), or damaged: take it from another site, or go back a round")
