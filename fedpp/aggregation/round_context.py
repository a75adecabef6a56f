"""Context of a round in clear: the round, a site's contribution and an aggregate, each with one text."""

import json
from dataclasses import asdict, dataclass
from typing import Self

from fedpp.aggregation.ring import Ring
from fedpp.config.run_config import MAX_EXAMPLES, MAX_SITES
from fedpp.errors import MaskError
from fedpp.protocol.membership import is_site_name
from fedpp.protocol.run_spec import RunSpec
from fedpp.values import canonical, is_hex

MAX_ENCODED_VALUES = 2**32  # under one AES key; 2^31 blocks are distinguishable from random with an advantage of 2^-67
MAX_ROUND_TEXT = 4096  # characters
MAX_AGGREGATE_TEXT = 1024 * MAX_SITES  # characters


@dataclass(frozen=True)
class Round:
    """The round that an update is for: one of another round, retry, model or run specification is refused."""

    run: str  # the run's nonce, hex
    number: int
    attempt: int
    base: str  # SHA-256 of the global state that the updates start from, hex
    run_spec: str  # SHA-256 of the run specification, hex
    length: int  # values of an update
    ring: Ring

    def __post_init__(self) -> None:
        """Refuse values that have a second spelling, or a type that JSON does not show."""
        for name, text in (("run", self.run), ("base", self.base), ("run_spec", self.run_spec)):
            _require_hex(f"a round's {name}", text)
        for name, value, lowest, highest in (
            ("number", self.number, 0, 2**53),
            ("attempt", self.attempt, 0, 2**53),
            ("length", self.length, 1, MAX_ENCODED_VALUES),
        ):
            if type(value) is not int or not lowest <= value <= highest:
                raise MaskError(f"a round's {name} must be an integer from {lowest} to {highest}, got {value!r:.40}")

    def to_json(self) -> str:
        """Return one line of JSON."""
        return canonical(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` returned; raise `MaskError` for anything else."""
        try:
            values = json.loads(text[:MAX_ROUND_TEXT])
            made = cls(**{**values, "ring": Ring(**values["ring"])})
            whole = made.to_json() == text
        except (ValueError, TypeError, KeyError, RecursionError):
            whole = False
        if not whole:
            raise MaskError("the facts of the round are damaged: use the same version of fedpp everywhere")
        return made


def ring_of(run_spec: RunSpec) -> Ring:
    """Return the ring of a run's updates, the same at all sites and at the coordinator."""
    return Ring.of(
        run_spec.training.dtype,
        examples=run_spec.examples,
        sites=run_spec.sites,
        bound=run_spec.bounds.max_update_value,
    )


def round_of(run_spec: RunSpec, *, run: str, number: int, attempt: int, base: str, n: int) -> Round:
    """Return the context of one attempt at a round, from the state of this digest, with rows of n slots.

    All sites and the coordinator make it here; an update is refused where they made another.
    """
    length = run_spec.network.parameters() * n
    return Round(run, number, attempt, base, run_spec.digest, length, ring_of(run_spec))


@dataclass(frozen=True)
class Contribution:
    """One site's part in an aggregate: the site, and its number of examples."""

    site: str
    examples: int

    def __post_init__(self) -> None:
        """Refuse invalid names and numbers."""
        if not is_site_name(self.site):
            raise MaskError(f"a contribution names a site, got {self.site!r:.80}")
        if type(self.examples) is not int or not 1 <= self.examples <= MAX_EXAMPLES:
            raise MaskError(f"an update counts 1 to {MAX_EXAMPLES} examples, got {self.examples!r:.40}")


@dataclass(frozen=True)
class Aggregate:
    """The contributions of an aggregate, in the order of the sites' names."""

    parts: tuple[Contribution, ...]

    @property
    def examples(self) -> int:
        """Return the number of examples of all contributions."""
        return sum(part.examples for part in self.parts)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return canonical(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` returned; raise `MaskError` for anything else."""
        try:
            values = json.loads(text[:MAX_AGGREGATE_TEXT])
            made = cls(tuple(Contribution(**part) for part in values["parts"]))
            whole = made.to_json() == text
        except (ValueError, TypeError, KeyError, RecursionError):
            whole = False
        if not whole:
            raise MaskError("the facts of the aggregate are damaged: use the same version of fedpp everywhere")
        return made


def _require_hex(what: str, value: str) -> None:
    if not is_hex(value):
        raise MaskError(f"{what} is 64 hex digits in lower case, got {value!r:.80}")
