"""Attacks on masks: a coordinator and a member that colludes with it want the update of one hospital."""

from contextlib import AbstractContextManager
from hashlib import sha256

import numpy as np

from fedpp.aggregation import pair_masks
from sites.vault.masked_runs import member_rounds

from .attack import CHANCE, Attack, known, replaced
from .scene.colluding_member import Colluder
from .scene.laboratory import Laboratory
from .scene.relaying_coordinator import Coordinator, contract_of


def strip_update(laboratory: Laboratory) -> float:
    """A member and the coordinator take every mask that they can make off the update of one hospital."""
    victim, other, third = cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    stage = run.stage(victim)
    run.train(1)
    run.release(1)
    colluder = Colluder(third, run)
    rest = pair_masks.unmasked(run.masked[victim.name], run.ring, [colluder.own_mask(victim.name, 1)])
    for name in (other.name, third.name):
        key = colluder.pair_key(victim.name, name, 1)
        stream = pair_masks.unmasked(np.zeros_like(rest), run.ring, [key])  # minus the mask
        rest = rest + stream if victim.name < name else rest - stream
    weight = run.contract.member(victim.name).weight
    return known(colluder.updates(rest, stage, weight), victim.update(stage))


def one_mask_key() -> AbstractContextManager[None]:
    """Let every pair of sites mask with a key that all members can make, as in version 1 of the protocol."""

    def key(_own: object, _other: bytes, of: bytes, one: str, two: str) -> bytes:
        return sha256(of + " ".join(sorted((one, two))).encode()).digest()

    return replaced((pair_masks, "pair_key", key))


def replayed_release(laboratory: Laboratory) -> float:
    """One hospital does not release its mask in round 2; the attackers open the sum with its mask of round 1."""
    victim, other, third = cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    run.round(1)
    colluder = Colluder(third, run)
    earlier = colluder.own_mask(victim.name, 1)
    stage = run.stage(victim)
    run.train(2)
    run.release(2, of=[other, third])
    seeds = [earlier, *(colluder.own_mask(of.name, 2) for of in (other, third))]
    weight = run.contract.total_weight
    opened = colluder.updates(pair_masks.unmasked(run.sum().low, run.ring, seeds), stage, weight)
    truth = sum(run.contract.member(of.name).weight * of.update(stage) for of in cohort) / weight
    return known(opened, np.asarray(truth))


def one_own_mask() -> AbstractContextManager[None]:
    """Let each vault mask with one own mask in all rounds."""
    return replaced(
        (member_rounds.MemberRound, "_new_seed", lambda of, _: of.of.own_secret("own mask", b"")),
    )


MASK_ATTACKS = {
    "strip-update": Attack("G1", strip_update, one_mask_key, CHANCE),
    "replayed-release": Attack("G1", replayed_release, one_own_mask, CHANCE),
}
