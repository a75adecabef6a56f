"""How a site's updates reach the coordinator: under the domain mask, which its vault puts on and off, or in clear."""

import secrets
from dataclasses import dataclass
from typing import Protocol

from fedpp.aggregation.ring import EncodedUpdate
from fedpp.aggregation.round_context import NONCE_BYTES, Aggregate, Round
from fedpp.errors import FederationError
from fedpp.protocol.messages import Mask
from fedpp.values import canonical
from fedpp.vault_api.vault_client import Membership, VaultClient


class Aggregation(Protocol):
    """What is done to states and words before they leave for the coordinator, and when they come back."""

    def close(self, about: str, state: bytes) -> bytes:
        """Return a state as it is sent. Law: `open(about, close(about, state)) == state`."""

    def open(self, about: str, sent: bytes) -> bytes:
        """Return a state that was sent; raise `FederationError` if it is about something else."""

    def mask(self, of: Round, examples: int, words: EncodedUpdate) -> tuple[EncodedUpdate, Mask]:
        """Return the words of an update as they are sent."""

    def unmask(self, of: Round, total: Aggregate, words: EncodedUpdate) -> EncodedUpdate:
        """Return the words of a sum of updates in clear."""


@dataclass(frozen=True)
class Masked:
    """The vault seals states and masks words: to the coordinator both are random bytes."""

    vault: str  # address
    membership: Membership

    def close(self, about: str, state: bytes) -> bytes:
        """Return the state sealed."""
        with VaultClient(self.vault) as vault:
            return vault.seal(about, state)

    def open(self, about: str, sent: bytes) -> bytes:
        """Return a sealed state in clear."""
        with VaultClient(self.vault) as vault:
            sealed_about, state = vault.open(sent)
        if sealed_about != about:
            raise FederationError(f"the coordinator sent a sealed state about {sealed_about:.200}, due is {about}")
        return state

    def mask(self, of: Round, examples: int, words: EncodedUpdate) -> tuple[EncodedUpdate, Mask]:
        """Return the words masked."""
        with VaultClient(self.vault) as vault:
            masked = vault.mask(of.to_json(), examples, words)
        return masked.words, Mask(masked.nonce, masked.tag, masked.least)

    def unmask(self, of: Round, total: Aggregate, words: EncodedUpdate) -> EncodedUpdate:
        """Return a sum without its masks; the vault refuses one that was altered, or of too few sites."""
        with VaultClient(self.vault) as vault:
            return vault.unmask(of.to_json(), total.to_json(), words, self.membership)


@dataclass(frozen=True)
class Clear:
    """Nothing is hidden from a coordinator that is trusted."""

    def close(self, about: str, state: bytes) -> bytes:
        """Return the state as it is."""
        del about
        return state

    def open(self, about: str, sent: bytes) -> bytes:
        """Return the state as it is."""
        del about
        return sent

    def mask(self, of: Round, examples: int, words: EncodedUpdate) -> tuple[EncodedUpdate, Mask]:
        """Return the words as they are."""
        del of, examples
        return words, Mask(secrets.token_hex(NONCE_BYTES), 0, 1)

    def unmask(self, of: Round, total: Aggregate, words: EncodedUpdate) -> EncodedUpdate:
        """Return the words as they are."""
        del of, total
        return words


def about(run: str, number: int) -> str:
    """Return what the state after a round of a run (its nonce) is sealed about."""
    return canonical({"kind": "state", "round": number, "run": run}).decode()
