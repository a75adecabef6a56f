"""What the coordinator and the vaults say of masked updates: which round a mask is for, and whose it is.

There is no key here, and nothing of an update. `fedpp.masking` says what is done with it.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from flwr.app import ConfigRecord

from fedpp.errors import FederationError, MaskError
from fedpp.protocol.membership import canonical, is_site_name

NONCE_BYTES = 32
PRIME = 2**127 - 1  # tags are numbers modulo it
MOST_EXAMPLES = 2**31
MOST_PARTS = 10_000
_LONGEST = 4096
_HEX = {"run": 64, "base": 64, "nonce": 64}


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and len(value) == digits and not set(value) - set("0123456789abcdef")


def _is_whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


@dataclass(frozen=True)
class RoundFacts:
    """Which round of which run a mask is for, from which model, and how its words are written."""

    run: str  # the run's nonce, hex
    number: int
    attempt: int
    base: str  # SHA-256 of the global state that the updates start from, hex
    length: int  # words of an update
    bits: int  # of a word
    examples: int  # most examples of all sites together
    sites: int  # most sites
    bound: float  # largest magnitude of a value

    def __post_init__(self) -> None:
        """Refuse values of another type or size."""
        fits = {
            **{name: _is_hex(getattr(self, name), _HEX[name]) for name in ("run", "base")},
            **{name: _is_whole(getattr(self, name), 1, 2**31) for name in ("number", "attempt", "length", "examples")},
            "bits": self.bits in {32, 64},
            "sites": _is_whole(self.sites, 1, MOST_PARTS),
            "bound": type(self.bound) is float,
        }
        for name, fit in fits.items():
            if not fit:
                raise MaskError(f"a round's {name} cannot be {getattr(self, name)!r:.40}: use one fedpp everywhere")

    def to_json(self) -> str:
        """Return one line of JSON."""
        return canonical(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` returned; raise `MaskError` for anything else."""
        try:
            facts = cls(**json.loads(text[:_LONGEST]))
        except (ValueError, TypeError, RecursionError):
            facts = None
        if facts is None or facts.to_json() != text:
            raise MaskError("a round's facts are damaged: use one fedpp everywhere")
        return facts


@dataclass(frozen=True)
class Contribution:
    """Whose update it is, under which mask, and of how many examples."""

    site: str
    nonce: str  # hex, drawn for this mask alone
    examples: int

    def __post_init__(self) -> None:
        """Refuse values of another type or size."""
        if not (
            is_site_name(self.site)
            and _is_hex(self.nonce, _HEX["nonce"])
            and _is_whole(self.examples, 1, MOST_EXAMPLES)
        ):
            raise MaskError(f"no contribution can be of {self.site!r:.80} with {self.examples!r:.40} examples")

    @classmethod
    def fresh(cls, site: str, examples: int) -> "Contribution":
        """Return a contribution under a nonce that nobody had before."""
        return cls(site, secrets.token_hex(NONCE_BYTES), examples)


@dataclass(frozen=True)
class Sum:
    """What a sum of words is of, and its tag."""

    parts: tuple[Contribution, ...]
    tag: int  # modulo PRIME; 0 of words without a mask

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
            values = json.loads(text[: 512 * MOST_PARTS])
            total = cls(tuple(Contribution(**part) for part in values["parts"]), int(values["tag"], 16))
            whole = total.to_json() == text and 0 <= total.tag < PRIME
        except (ValueError, TypeError, KeyError, RecursionError):
            whole = False
        if not whole:
            raise MaskError("the list of a sum's contributions is damaged: use one fedpp everywhere")
        return total

    def to_record(self) -> ConfigRecord:
        """Return the record that carries it."""
        return ConfigRecord({"sum": self.to_json()})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read what `to_record` returned; raise `FederationError` for anything else."""
        text = record.get("sum")
        try:
            return cls.from_json(text if isinstance(text, str) else "")
        except MaskError as error:
            raise FederationError(str(error)) from None


def added(parts: Sequence[tuple[Contribution, int]]) -> Sum:
    """Return what the sum of these contributions' words is of: tags add up modulo the prime."""
    return Sum(tuple(part for part, _ in parts), sum(tag for _, tag in parts) % PRIME)
