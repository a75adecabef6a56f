"""Domain card: the public parameters of one key epoch of one key domain."""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, Self, get_args

from fedpp.cipher import key_file
from fedpp.cipher.verification_phrase import phrase
from fedpp.errors import KeyFileError
from fedpp.values import is_hex

Scheme = Literal["more", "more-frame"]

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
MAX_CONDITION = 10.0  # of R: bounds how much rounding a trip through the cipher can amplify


@dataclass(frozen=True)
class DomainCard:
    """Public parameters of one key epoch of one key domain; nothing in it is secret.

    `id` is 32 hex digits, `ca_key` the CA's Ed25519 public key in hex. With the scheme `more` values are rows of `n`
    slots; with `more-frame` (orthogonal frame mixing) frames are mixed in place, weights and labels are plain numbers,
    and `n` is 1. The `fingerprint` covers all fields.
    """

    id: str
    key_epoch: int  # from 1
    scheme: Scheme
    n: int
    ca_key: str

    @property
    def fingerprint(self) -> str:
        """Return 64 hex digits that identify this card."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def verification_phrase(self) -> str:
        """Return the verification phrase, by which two people compare the fingerprint on the telephone."""
        return phrase(self.fingerprint)

    def to_json(self) -> str:
        """Return the card as JSON, with its fingerprint so that damage is detected."""
        return json.dumps({**asdict(self), "fingerprint": self.fingerprint}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; raise `KeyFileError` where the fingerprint does not fit the fields."""
        try:
            values = json.loads(text)
            fingerprint = values.pop("fingerprint")
            card = cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise KeyFileError(f"not a domain card ({error}): ask the domain for its card again") from None
        if card.fingerprint != fingerprint or card.to_json() != text:
            raise KeyFileError("the domain card was altered: its fingerprint does not fit; ask for the card again")
        if card.scheme not in SCHEMES:
            raise KeyFileError(
                f"the domain card has scheme {card.scheme!r:.40}, this program knows {', '.join(SCHEMES)}"
            )
        fits = {
            "id": is_hex(card.id, 32),
            "ca_key": is_hex(card.ca_key, 64),
            "key_epoch": type(card.key_epoch) is int and card.key_epoch >= 1,
            "n": type(card.n) is int and card.n >= 1,
        }
        if wrong := ", ".join(name for name, fit in fits.items() if not fit):
            raise KeyFileError(f"not a domain card (its {wrong}): ask the domain for its card again")
        return card

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a card file."""
        return cls.from_json(key_file.read_text(path, "domain card", "name a domain.card, or ask the domain for it"))
