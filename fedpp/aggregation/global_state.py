"""Global state: the global model after a round and the server optimizer's moments, as one value with one byte string.

All sites compute it alike, so one digest identifies it. No message is in clear in it: weights and moments are rows of
ciphertext. A second moment is stored as the rows of its slots, and the rows of what rounding took from those, since a
row rounds at its largest slot, and a decoy's second moment can be 1e10 times the message's.

Bytes: a container (`fedpp.container`) whose header has the facts and every array's name, dtype and shape; its content
is the arrays' little-endian bytes in that order.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedpp import container
from fedpp.arrays import are_finite
from fedpp.config.hyperparameters import DTYPES, Dtype
from fedpp.config.model_spec import MAX_PARAMETERS, ModelSpec
from fedpp.config.run_config import MAX_ATTEMPTS
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.errors import ConfigError, ModelError
from fedpp.learning.model_file import EncryptedModel
from fedpp.values import canonical, is_hex

Rows = Mapping[str, NDArray[np.floating]]
Vector = NDArray[np.float64]

FORMAT = "fedpp-state-1"
SALT_BYTES = 32
UNSALTED = "0" * 64
MAX_ROUND = 2**31
_MAX_SLOTS = 8
_HEADER = {"arrays", "attempt", "classes", "domain", "dtype", "n", "network", "round", "rule", "salt"}
_Expected = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape of each array, in the order of the bytes


@dataclass(frozen=True, eq=False)
class GlobalState:
    """The state that all sites have after a round; equal bytes mean equal states.

    `rows` are `[*shape, n]` of the run's dtype. `moments` are float64: `first/NAME` is `[*shape, n]`, a row;
    `second/NAME` is `[2, *shape, n]`, rows and the rows of what rounding took from them.
    """

    round: int  # 0: before the first
    attempt: int  # at this round, from 1: the one that the sites accepted
    salt: str  # hex, drawn at round 0, so that the digest does not confirm a guess of the rows
    domain: str  # fingerprint; empty for the plaintext reference
    network: ModelSpec
    dtype: Dtype
    classes: tuple[str, ...]
    rule: ServerOptimizerConfig
    rows: Rows
    moments: Rows

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together; make the arrays read-only."""
        n = next((value.shape[-1] for value in self.rows.values() if value.ndim), 0)
        _require_facts(self.round, self.attempt, self.salt, self.domain, self.network, self.dtype, n, self.classes)
        arrays = {**self.rows, **self.moments}
        expected = _expected(self.network, self.dtype, n, self.rule)
        if {name: (str(value.dtype), value.shape) for name, value in arrays.items()} != expected:
            raise ModelError("the state's arrays have other names, dtypes or shapes than its model and optimizer")
        if not are_finite(arrays.values()):
            raise ModelError("the state's arrays have values that are not finite: use the round before")
        ordered = {name: _read_only(arrays[name]) for name in expected}
        object.__setattr__(self, "rows", {name: ordered.pop(name) for name in list(ordered) if name in self.rows})
        object.__setattr__(self, "moments", ordered)

    @property
    def n(self) -> int:
        """Return the number of slots."""
        return int(next(iter(self.rows.values())).shape[-1])

    def model(self) -> EncryptedModel:
        """Return the model without the server optimizer's moments."""
        return EncryptedModel(self.network, self.domain, self.classes, dict(self.rows))

    @property
    def digest(self) -> str:
        """Return the SHA-256 of `to_bytes()`, in hex."""
        return self._sums[1]

    def to_bytes(self) -> bytes:
        """Return the state as bytes. Law: `from_bytes(to_bytes())` is an equal state with equal bytes."""
        return b"".join((*self._parts(), self._sums[0]))

    @classmethod
    def from_bytes(cls, content: container.Content) -> Self:
        """Read what `to_bytes` returned; raise `ModelError` for anything else."""
        try:
            header, values = container.unpack(FORMAT, content)
            facts = _parsed(dict(header))
            expected = _expected(facts["network"], facts["dtype"], facts.pop("n"), facts["rule"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, ConfigError):
            raise _damaged() from None
        arrays = _arrays(values, expected)
        rows = {spec.name: arrays.pop(spec.name) for spec in facts["network"].weights()}
        state = cls(**facts, rows=rows, moments=arrays)
        if canonical(state._header()) != canonical(header):  # another text of the same facts
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
        """Return the container's digest, and the SHA-256 of all bytes in hex, in one pass."""
        total = sha256()
        for part in self._parts():
            total.update(part)
        end = total.digest()
        total.update(end)
        return end, total.hexdigest()

    def _parts(self) -> Iterator[container.Content]:
        yield container.head(FORMAT, self._header())
        yield from (_little(value).data for of in (self.rows, self.moments) for value in of.values())

    def _header(self) -> container.Facts:
        expected = _expected(self.network, self.dtype, self.n, self.rule)
        return {
            "attempt": self.attempt,
            "arrays": [[name, dtype, list(shape)] for name, (dtype, shape) in expected.items()],
            "classes": list(self.classes),
            "domain": self.domain,
            "dtype": self.dtype,
            "n": self.n,
            "network": self.network.to_json(),
            "round": self.round,
            "rule": self.rule.to_mapping(),
            "salt": self.salt,
        }


def warm_start(model: EncryptedModel, rule: ServerOptimizerConfig, salt: str = UNSALTED) -> GlobalState:
    """Return round 0 from an earlier model; without a salt where that model is public."""
    return initial(
        model.rows,
        network=model.network,
        domain=model.domain,
        dtype=model.dtype,
        classes=model.classes,
        rule=rule,
        salt=salt,
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
    """Return each weight's rows, or update, as a flat vector, in the model's order.

    Law: `unflat` of their concatenation in float64 is the rows. Raises `ModelError` if they do not fit the model.
    """
    n = next((value.shape[-1] for value in rows.values() if value.ndim), 0)
    expected = {spec.name: (*spec.shape, n) for spec in network.weights()}
    if {name: value.shape for name, value in rows.items()} != expected:
        raise ModelError("the rows have other names or shapes than the model's weights")
    return [rows[name].reshape(-1) for name in expected]


def unflat(vector: Vector, network: ModelSpec, n: int) -> dict[str, Vector]:
    """Split a vector into the rows `[*shape, n]` of each weight, as views of it."""
    if vector.shape != (network.parameters() * n,) or vector.dtype != np.float64:
        raise ModelError(
            f"an update of this model is a vector of {network.parameters() * n} float64 values, "
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
    number: Any, attempt: Any, salt: Any, domain: Any, network: ModelSpec, dtype: Any, n: Any, classes: tuple[Any, ...]
) -> None:
    """Raise `ModelError` for invalid facts, which may come from a file."""
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
        raise ModelError(f"a model may have {MAX_PARAMETERS} parameters: use smaller images or layers")
    outputs = len(network.task.classes)
    if len(classes) != outputs or not all(isinstance(name, str) for name in classes):
        raise ModelError(f"a state names the {outputs} classes of its model, got {len(classes)} names")


def _parsed(facts: container.Facts) -> container.Facts:
    """Return the parsed facts of a header, without the arrays, which follow from the rest."""
    if facts.keys() != _HEADER:
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


def _arrays(content: memoryview, expected: _Expected) -> dict[str, NDArray[np.floating]]:
    """Return the arrays as views of the content, aligned or not: a claimed size allocates nothing."""
    sizes = [np.dtype(dtype).itemsize * prod(shape) for dtype, shape in expected.values()]
    if sum(sizes) != len(content):
        raise _damaged()
    arrays: dict[str, NDArray[np.floating]] = {}
    start = 0
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
    return ModelError(f"not a global state ({FORMAT}), or damaged: get it from another site, or use the round before")
