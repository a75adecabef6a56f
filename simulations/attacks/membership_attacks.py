"""Attacks on membership: a coordinator passes off what it got from its sites at another coordinator."""

from contextlib import AbstractContextManager

from fedpp.protocol.coordinator_identity import CoordinatorIdentity, CoordinatorNames
from fedpp.protocol.membership import NO_BUNDLE, PROTOCOL, Run

from .attack import Attack, granted, replaced, share
from .scene.laboratory import DOMAIN, Laboratory

FIRST = CoordinatorIdentity("1" * 64, "first.example.org")
SECOND = CoordinatorIdentity("2" * 64, "second.example.org")
NUMBER = "7"  # of the second coordinator's run


def replayed_identity(laboratory: Laboratory) -> float:
    """A coordinator has its sites prove their membership for the run of another one, and joins that in their name."""
    nonce, card = laboratory.drawn("nonce").bytes(32).hex(), DOMAIN.card()
    # As the sites' own apps request them, which know one coordinator.
    proofs = [of.vault.sign(nonce, NUMBER, PROTOCOL, NO_BUNDLE, FIRST) for of in laboratory.hospitals(3)]
    run = Run(card.ca_key, card.fingerprint, nonce, NUMBER, NO_BUNDLE, CoordinatorNames.only(SECOND))
    return share([granted(proof.require, run) for proof in proofs])


def any_coordinator() -> AbstractContextManager[None]:
    """Let a coordinator take proofs that name another one."""
    return replaced((CoordinatorNames, "require", lambda *_: None))


MEMBERSHIP_ATTACKS = {"identity-replay": Attack("sites", replayed_identity, any_coordinator)}
