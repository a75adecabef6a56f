"""Attacks on labels: whoever reaches a vault hands it predictions of its choice, and reads what the vault counts.

The predictions put each sequence into a bin of its own, so that its bin in the two histograms tells its label.
"""

import json
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation.ring import EncodedUpdate
from fedpp.protocol.counts import SCORE_BINS, SCORE_EDGES
from fedpp.protocol.run_contract import RunContract
from fedpp.protocol.run_statements import SignedStatement
from sites.vault.masked_runs.member_rounds import MemberRound
from sites.vault.masked_runs.own_report import OwnReport

from .attack import Attack, granted, replaced, share
from .scene import laboratory as scene
from .scene.laboratory import DOMAIN, Hospital, Laboratory, encrypted
from .scene.relaying_coordinator import Coordinator, contract_of

CHANCE_OF_ALL = 0.0  # a masked word of 64 bits is hardly ever 0 or 1
Words = NDArray[np.uint64]


def labels_in_one_call(laboratory: Laboratory) -> float:
    """One masked update tells the label of every validation sequence."""
    victim, *_ = cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    positive, negative = _histograms(run.trained(victim, 1, _predictions(victim))[0])
    return _share_right(victim, positive[_bins(victim)], negative[_bins(victim)])


def counts_in_clear() -> AbstractContextManager[None]:
    """Let vaults send their counts beside the masked update."""
    mask = MemberRound._mask

    def update_alone(of: MemberRound, x: EncodedUpdate, seed: bytes) -> EncodedUpdate:
        y = mask(of, x, seed)
        y[-2 * SCORE_BINS :] = x[-2 * SCORE_BINS :]
        return y

    return replaced((MemberRound, "_mask", update_alone))


def labels_by_difference(laboratory: Laboratory) -> float:
    """Masked updates of predictions that differ in one sequence tell its label by their difference."""
    victim, *_ = cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    bins, spare = _bins(victim), SCORE_BINS - 1
    before = _histograms(run.trained(victim, 1, _predictions(victim))[0])
    positive, negative = np.zeros(bins.size, np.uint64), np.zeros(bins.size, np.uint64)
    for place, own in enumerate(bins):
        moved = _predictions(victim, np.where(np.arange(bins.size) == place, spare, bins))
        after = _histograms(run.trained(victim, 1, moved)[0])
        positive[place], negative[place] = (old[own] - new[own] for old, new in zip(before, after, strict=True))
    return _share_right(victim, positive, negative)


def anew_each_time() -> AbstractContextManager[None]:
    """Let a vault mask a round's update anew for each request, with the same masks: either alone stops it."""
    train = MemberRound.train

    def again(
        of: MemberRound, update: NDArray[np.float64] | None, logits: NDArray[np.floating] | None
    ) -> tuple[EncodedUpdate, str] | None:
        if signed := of.accepted.mine("train", of.at.number):
            with of.accepted.writing():
                of.of.journal.delete("seeds", context=of.at.id)
                of.of.journal.delete("updates", **of.inputs.where)
                of.of.journal.delete("statements", contract=of.accepted.digest, text=signed.to_json())
            of.accepted.chains = of.accepted._stored()
        return train(of, update, logits)

    def unhedged(of: MemberRound, _: EncodedUpdate) -> bytes:
        return of.of.own_secret("own mask", of.at.content)

    return replaced((MemberRound, "train", again), (MemberRound, "_new_seed", unhedged))


def counts_of_one(laboratory: Laboratory) -> float:
    """Of three hospitals one alone has test patients: the sum of counts over the cohort is its own figures."""
    victim = laboratory.hospital("East")
    with replaced((scene, "SEQUENCES", {**scene.SEQUENCES, "test": 0})):
        cohort = [victim, *map(laboratory.hospital, ("North", "South"))]
    run = Coordinator(cohort, contract_of(cohort, rounds=1))
    if not granted(run.begin):
        return 0.0
    for number in (1, 2, 3):
        run.round(number)
    signed = [SignedStatement.from_json(text).statement for text in run.statements]
    opened = [of.facts["counts"] for of in signed if (of.purpose, of.round) == ("step", 3)]
    return share([json.loads(text) == OwnReport(victim.runs, run.contract).rounds()["1 test"] for text in opened])


def any_splits() -> AbstractContextManager[None]:
    """Let a contract have splits of few sites."""
    return replaced((RunContract, "_require_shared_splits", lambda _: None))


def _bins(victim: Hospital) -> NDArray[np.int64]:
    """Return a bin for each validation sequence."""
    return np.linspace(1, SCORE_BINS - 2, len(victim.labels)).astype(np.int64)


def _predictions(victim: Hospital, bins: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Return encrypted logits whose scores fall into these bins."""
    edges = np.array(SCORE_EDGES)
    of_all = (edges[:-1] + edges[1:]) / 2
    scores = of_all[_bins(victim) if bins is None else bins]
    logits = np.stack([np.zeros_like(scores), scores], axis=1)
    return encrypted(np.repeat(logits[:, :, None], DOMAIN.n, axis=2))


def _histograms(masked: EncodedUpdate) -> tuple[Words, Words]:
    """Return the words of a masked update where the histograms of positive and of negative scores are."""
    return masked[-2 * SCORE_BINS : -SCORE_BINS], masked[-SCORE_BINS:]


def _share_right(victim: Hospital, positive: Words, negative: Words) -> float:
    """Return the share of labels that these words show, and rightly."""
    guessed = np.where((positive == 1) & (negative == 0), 1, np.where((positive == 0) & (negative == 1), 0, -1))
    return float(np.mean(guessed == victim.labels))


COUNT_ATTACKS = {
    "labels-one-call": Attack("G4", labels_in_one_call, counts_in_clear, CHANCE_OF_ALL),
    "labels-difference": Attack("G4", labels_by_difference, anew_each_time, CHANCE_OF_ALL),
    "counts-of-one": Attack("G4", counts_of_one, any_splits),
}
