"""Which round a mask is for, whose update it hides, and what a sum of updates is of: facts, which the coordinator sees.

They decide the keystreams and tags (`fedpp.aggregation.masks`), so each has one spelling.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from fedpp.aggregation.ring import Ring
from fedpp.config.run_config import MAX_EXAMPLES, MAX_SITES
from fedpp.errors import MaskError
from fedpp.protocol.membership import is_site_name
from fedpp.values import canonical, is_hex

NONCE_BYTES = 32
PRIME = 2**127 - 1  # tags are numbers modulo it
MAX_ENCODED_VALUES = 2**32  # under one key of AES, which 2^31 blocks tell from chance with an advantage of 2^-67
LONGEST_ROUND = 4096  # characters
LONGEST_SUM = 1024 * MAX_SITES


@dataclass(frozen=True)
class Round:
    """What a mask is for; sums of masks of different rounds, or attempts, models or plans, fit no tag."""

    run: str  # the run's nonce, hex
    number: int
    attempt: int
    base: str  # SHA-256 of the global state that the updates start from, hex
    run_spec: str  # SHA-256 of what the sites were told to do with it, hex
    length: int  # words of an update
    ring: Ring

    def __post_init__(self) -> None:
        """Refuse what has a second spelling, or is of another type than JSON shows."""
        for name, text in (("run", self.run), ("base", self.base), ("run_spec", self.run_spec)):
            _require_hex(f"a round's {name}", text)
        for name, value, least, most in (
            ("number", self.number, 0, 2**53),
            ("attempt", self.attempt, 0, 2**53),
            ("length", self.length, 1, MAX_ENCODED_VALUES),
        ):
            if type(value) is not int or not least <= value <= most:
                raise MaskError(f"a round's {name} must be a whole number from {least} to {most}, got {value!r:.40}")

    def content(self) -> dict[str, Any]:
        """Return what subkeys are bound to."""
        return asdict(self)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return canonical(self.content()).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` returned; raise `MaskError` for anything else."""
        try:
            values = json.loads(text[:LONGEST_ROUND])
            made = cls(**{**values, "ring": Ring(**values["ring"])})
            whole = made.to_json() == text
        except (ValueError, TypeError, KeyError, RecursionError):
            whole = False
        if not whole:
            raise MaskError("a round's facts are damaged: use one fedpp everywhere")
        return made


@dataclass(frozen=True)
class Contribution:
    """Whose update it is, under which mask, of how many examples, and in what company it may be seen."""

    site: str
    nonce: str  # hex, drawn for this mask alone
    examples: int
    least: int  # fewest sites of a sum that the mask comes off in, as this site's own policy says

    def __post_init__(self) -> None:
        """Refuse names that no site has, and nonces that `fresh` does not draw."""
        if not is_site_name(self.site):
            raise MaskError(f"a mask is of a site, got {self.site!r:.80}")
        _require_hex("a mask's nonce", self.nonce)
        if type(self.examples) is not int or not 1 <= self.examples <= MAX_EXAMPLES:
            raise MaskError(f"an update counts 1 to {MAX_EXAMPLES} examples, got {self.examples!r:.40}")
        if type(self.least) is not int or not 1 <= self.least <= MAX_SITES:
            raise MaskError(f"an update may be seen in a sum of 1 to {MAX_SITES} sites, got {self.least!r:.40}")

    @classmethod
    def fresh(cls, site: str, examples: int, least: int) -> "Contribution":
        """Return a contribution under a nonce that nobody had before."""
        return cls(site, secrets.token_hex(NONCE_BYTES), examples, least)


@dataclass(frozen=True)
class Aggregate:
    """What a sum of words is of, and its tag, modulo `PRIME`; of words without a mask it is 0."""

    parts: tuple[Contribution, ...]
    tag: int

    @classmethod
    def of(cls, parts: Sequence[tuple[Contribution, int]]) -> Self:
        """Return what the sum of these contributions' words is of: their tags add up."""
        return cls(tuple(part for part, _ in parts), sum(tag for _, tag in parts) % PRIME)

    @property
    def examples(self) -> int:
        """Return how many examples it is of."""
        return sum(part.examples for part in self.parts)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return canonical({"parts": [asdict(part) for part in self.parts], "tag": f"{self.tag:x}"}).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` returned; raise `MaskError` for anything else."""
        try:
            values = json.loads(text[:LONGEST_SUM])
            made = cls(tuple(Contribution(**part) for part in values["parts"]), int(values["tag"], 16))
            whole = made.to_json() == text and 0 <= made.tag < PRIME
        except (ValueError, TypeError, KeyError, RecursionError):
            whole = False
        if not whole:
            raise MaskError("the list of a sum's contributions is damaged: use one fedpp everywhere")
        return made


def _require_hex(what: str, value: str) -> None:
    if not is_hex(value):
        raise MaskError(f"{what} is 64 hex digits in lower case, got {value!r:.80}")
