"""Protection of updates and states that a site sends: masked and sealed by its vault, or in clear."""

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
    """Protection of what a site sends to the coordinator, and its removal from what comes back."""

    def seal(self, about: str, state: bytes) -> bytes:
        """Return a state as it is sent. Law: `unseal(about, seal(about, state)) == state`."""

    def unseal(self, about: str, sent: bytes) -> bytes:
        """Return a state that was sent; raise `FederationError` if it is about something else."""

    def mask(self, of: Round, examples: int, values: EncodedUpdate) -> tuple[EncodedUpdate, Mask]:
        """Return an encoded update as it is sent, with the public part of its mask."""

    def unmask(self, of: Round, aggregate: Aggregate, values: EncodedUpdate) -> EncodedUpdate:
        """Return the sum of masked updates in clear."""


@dataclass(frozen=True)
class Masked:
    """Secure aggregation: the vault seals states and masks updates, and the coordinator sees random bytes."""

    vault: VaultClient
    membership: Membership

    def seal(self, about: str, state: bytes) -> bytes:
        """Return the state sealed."""
        return self.vault.seal(about, state)

    def unseal(self, about: str, sent: bytes) -> bytes:
        """Return a sealed state in clear."""
        sealed_about, state = self.vault.unseal(sent)
        if sealed_about != about:
            raise FederationError(f"the coordinator sent a sealed state about {sealed_about:.200}, expected {about}")
        return state

    def mask(self, of: Round, examples: int, values: EncodedUpdate) -> tuple[EncodedUpdate, Mask]:
        """Return the masked update."""
        masked = self.vault.mask(of.to_json(), examples, values)
        return masked.values, Mask(masked.nonce, masked.tag, masked.min_cohort)

    def unmask(self, of: Round, aggregate: Aggregate, values: EncodedUpdate) -> EncodedUpdate:
        """Return the aggregate without masks; the vault refuses one that was altered, or is of too few sites."""
        return self.vault.unmask(of.to_json(), aggregate.to_json(), values, self.membership)


@dataclass(frozen=True)
class Clear:
    """No protection, for a coordinator that is trusted."""

    def seal(self, about: str, state: bytes) -> bytes:
        """Return the state as it is."""
        del about
        return state

    def unseal(self, about: str, sent: bytes) -> bytes:
        """Return the state as it is."""
        del about
        return sent

    def mask(self, of: Round, examples: int, values: EncodedUpdate) -> tuple[EncodedUpdate, Mask]:
        """Return the update as it is, with a mask that is none."""
        del of, examples
        return values, Mask(secrets.token_hex(NONCE_BYTES), 0, 1)

    def unmask(self, of: Round, aggregate: Aggregate, values: EncodedUpdate) -> EncodedUpdate:
        """Return the aggregate as it is."""
        del of, aggregate
        return values


def about(run: str, number: int) -> str:
    """Return the text that the state after a round of a run (its nonce) is sealed about."""
    return canonical({"kind": "state", "round": number, "run": run}).decode()
