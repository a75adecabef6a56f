"""Attacks on sums: the coordinator shows hospitals a sum that is not the sum of their masked updates."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation import linear_check, pair_masks
from fedpp.aggregation.linear_check import PRIME, ExactSum
from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.aggregation.run_stage import RunStage
from fedpp.errors import FedppError
from fedpp.protocol import state_certificate
from fedpp.protocol.run_contract import RunContract
from fedpp.protocol.run_statements import SignedStatement, aggregate_id
from fedpp.protocol.state_certificate import StateCertificate
from sites.vault.masked_runs import member_rounds
from sites.vault.masked_runs.member_rounds import MemberRound

from .attack import CHANCE, Attack, granted, known, replaced, share
from .scene.colluding_member import Colluder
from .scene.laboratory import DOMAIN, NETWORK, Hospital, Laboratory, encrypted
from .scene.relaying_coordinator import Coordinator, contract_of

DIMENSIONS = 3  # of the lattice of false sums: their values then change by about 2^43
Integers = list[int]


def false_sum(laboratory: Laboratory) -> float:
    """The coordinator alone commits to a false sum before it knows the challenge, and has it stepped."""
    cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    run.train(1)
    total = run.sum()
    total.low[0] += 2**20
    run.release(1, total.hash)
    return share([granted(run.stepped, of, 1, total.low, total.carry) for of in cohort])


def without_linear_check() -> AbstractContextManager[None]:
    """Let vaults step any sum of the right hash."""
    return replaced((linear_check, "require_sum", lambda *_: None))


def false_sum_for_challenge(laboratory: Laboratory) -> float:
    """The coordinator alone commits to the true sum, and when it knows the challenge makes a false one of its tag."""
    cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    run.train(1)
    run.release(1)
    aggregate = SignedStatement.from_json(run.statements[-1]).statement.facts["aggregate"]
    total = run.sum()
    _add(total, _same_tag(aggregate, total), run)
    return share([granted(run.stepped, of, 1, total.low, total.carry) for of in cohort])


def sum_outside_challenge() -> AbstractContextManager[None]:
    """Let the challenge, and what vaults release for, not depend on the sum."""
    return replaced((member_rounds, "aggregate_id", _of_updates))


def _of_updates(of: bytes, bits: int, length: int, trained: Mapping[str, SignedStatement], _: str) -> str:
    return aggregate_id(of, bits, length, trained, "")


def chosen_blind(laboratory: Laboratory) -> float:
    """With a member's forged tag they commit to a sum that is to make a state of their choice."""
    return _chosen(laboratory, early=True)


def no_own_masks() -> AbstractContextManager[None]:
    """Let vaults mask with pair masks alone, which are gone from the sum."""
    masked, unmasked = pair_masks.masked, pair_masks.unmasked

    def unseeded(
        values: EncodedUpdate, ring: Ring, seed: bytes, pairs: Sequence[tuple[bytes, int]]
    ) -> Iterator[EncodedUpdate]:
        yield from masked(unmasked(values, ring, [seed]), ring, seed, pairs)

    return replaced((pair_masks, "masked", unseeded), (pair_masks, "unmasked", lambda low, *_: low.copy()))


def chosen_with_knowledge(laboratory: Laboratory) -> float:
    """With a member's forged tag they replace the sum, when the others' releases have shown it to them."""
    return _chosen(laboratory, early=False)


def second_sum(laboratory: Laboratory) -> float:
    """When a sum is opened, they ask for releases for another one, to which the member's part was fitted."""
    return _chosen(laboratory, early=False, again=True)


def forgetful_release() -> AbstractContextManager[None]:
    """Let a vault forget what it released for in a round, and release again."""
    release = MemberRound.release

    def again(of: MemberRound, sum_hash: str) -> tuple[str, bytes]:
        if signed := of.accepted.mine("release", of.at.number):
            with of.accepted.writing():
                of.of.journal.delete("releases", context=of.at.id)
                of.of.journal.delete("statements", contract=of.accepted.digest, text=signed.to_json())
            of.accepted.chains = of.accepted._stored()
        return release(of, sum_hash)

    return replaced((MemberRound, "release", again))


def two_states(laboratory: Laboratory) -> float:
    """A member's two tags let two groups of hospitals step different sums, and both states get a certificate."""
    *honest, fourth = cohort = laboratory.hospitals(4)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    colluder = Colluder(fourth, run)
    run.train(1)
    run.release(1, run.sum().hash, honest)
    total, false = run.sum(), run.sum()
    false.low[0] += 2**20
    states = []
    for of_sum, group in ((total, honest[:1]), (false, honest[1:])):
        forged = _forged(colluder, honest, of_sum)
        said = [*run.statements, forged]
        steps = [step for of in group for step in _steps(run, of, said, of_sum)]
        if steps:
            facts = SignedStatement.from_json(steps[0]).statement.facts
            states.append([*steps, colluder.signed("step", facts, 1, after=forged)])
    certified = [granted(_certified, run, signed) for signed in states]
    return max(0, sum(certified) - 1)


def two_groups() -> AbstractContextManager[None]:
    """Let vaults release for sums that are not named, and half of the members certify: either alone stops it."""

    def half(contract: RunContract, _: int) -> int:
        return contract.n // 2

    return replaced((member_rounds, "aggregate_id", _of_updates), (state_certificate, "needed", half))


def _steps(run: Coordinator, of: Hospital, said: list[str], total: ExactSum) -> list[str]:
    sealed = [run.sealed[name] for name in run.contract.names]
    with suppress(FedppError):
        return [of.vault.step(run.digest, 1, said, sealed, total.low, total.carry)]
    return []


def _certified(run: Coordinator, signed: list[str]) -> StateCertificate:
    return StateCertificate.made_of(run.contract, [SignedStatement.from_json(text) for text in signed])


def _chosen(laboratory: Laboratory, *, early: bool, again: bool = False) -> float:
    """Return how much of an update of the attackers' choice an honest vault steps by."""
    *honest, third = cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    before, colluder = run.stage(honest[0]), Colluder(third, run)
    run.train(1)
    chosen = encrypted(laboratory.drawn("chosen").normal(scale=0.01, size=(NETWORK.parameters(), DOMAIN.n))).ravel()
    total = run.sum()
    if early:
        _choose(total, pair_masks.unmasked(total.low, run.ring, [colluder.own_seed(1)]), chosen, run)
    run.release(1, total.hash, honest)
    if not early:
        seeds = [colluder.own_seed(1), *(colluder.own_mask(of.name, 1) for of in honest)]
        _choose(total, pair_masks.unmasked(total.low, run.ring, seeds), chosen, run)
    if again and not granted(_release_again, run, honest, total.hash):
        total = run.sum()
    run.statements.append(_forged(colluder, honest, total))
    for of in honest:
        granted(run.stepped, of, 1, total.low, total.carry)
    return max(known(_moved(before, run.stage(of)), chosen) for of in honest)


def _release_again(run: Coordinator, honest: list[Hospital], hashed: str) -> None:
    """Ask for second releases, and forget the first ones if all are given."""
    replies = [of.vault.release(run.digest, 1, _without_releases(run), hashed) for of in honest]
    run.statements = [*_without_releases(run), *(statement for statement, _ in replies)]
    run.sealed |= {of.name: sealed for of, (_, sealed) in zip(honest, replies, strict=True)}


def _without_releases(run: Coordinator) -> list[str]:
    return [text for text in run.statements if SignedStatement.from_json(text).statement.purpose != "release"]


def _choose(total: ExactSum, opened: EncodedUpdate, chosen: NDArray[np.float64], run: Coordinator) -> None:
    """Change a sum so that it opens to a chosen update, by what it seems to open to; not by what cannot be it."""
    words = run.ring.encode(chosen, run.contract.total_weight)
    seems = opened[: words.size].view(np.int64)
    if np.abs(seems.astype(np.float64)).max() > run.ring.max_magnitude(run.contract.total_weight):
        seems = np.zeros_like(seems)
    _add(total, [int(want) - int(have) for want, have in zip(words.view(np.int64), seems, strict=True)], run)


def _add(total: ExactSum, change: Integers, run: Coordinator) -> None:
    """Add integers to the first values of a sum."""
    for place, by in enumerate(change):
        value = int(total.low[place]) + (int(total.carry[place]) << run.ring.bits) + by
        total.low[place], total.carry[place] = value % (1 << run.ring.bits), value >> run.ring.bits


def _forged(colluder: Colluder, honest: list[Hospital], total: ExactSum) -> str:
    """Return the member's release, whose tag makes the sum of tags that of a sum."""
    facts = [colluder.statement("release", 1, of.name).facts for of in honest]
    aggregate = facts[0]["aggregate"]
    due = linear_check.sum_tag(aggregate, total.low, total.carry) - sum(int(fact["tag"], 16) for fact in facts)
    return colluder.released(aggregate, due % PRIME, 1)


def _moved(before: RunStage, after: RunStage) -> NDArray[np.float64]:
    """Return by how much a state's weights moved, as one vector of rows."""
    names = [spec.name for spec in before.state.network.weights()]
    return np.concatenate([(after.state.rows[name] - before.state.rows[name]).ravel() for name in names])


def _same_tag(aggregate: str, total: ExactSum) -> Integers:
    """Return a small change of the first values of a sum after which it has the same tag, by lattice reduction."""
    elements = []
    for place in range(DIMENSIONS):
        unit = np.zeros_like(total.low)
        unit[place] = 1
        elements.append(linear_check.tag(aggregate, unit))
    inverse = pow(elements[0], -1, PRIME)
    rows = [[PRIME, *([0] * (DIMENSIONS - 1))]]
    rows += [
        [-elements[place] * inverse % PRIME, *(int(at == place) for at in range(1, DIMENSIONS))]
        for place in range(1, DIMENSIONS)
    ]
    return min(reduced(rows), key=lambda row: sum(value * value for value in row))


def reduced(rows: list[Integers]) -> list[Integers]:
    """Return a basis of short vectors of the same lattice (Lenstra, Lenstra & Lovasz 1982)."""
    at = 1
    while at < len(rows):
        for other in range(at - 1, -1, -1):
            _, factors = _orthogonal(rows)
            by = round(factors[at][other])
            rows[at] = [one - by * two for one, two in zip(rows[at], rows[other], strict=True)]
        lengths, factors = _orthogonal(rows)
        if lengths[at] >= (Fraction(3, 4) - factors[at][at - 1] ** 2) * lengths[at - 1]:
            at += 1
        else:
            rows[at - 1], rows[at] = rows[at], rows[at - 1]
            at = max(at - 1, 1)
    return rows


def _orthogonal(rows: list[Integers]) -> tuple[list[Fraction], list[list[Fraction]]]:
    """Return squared lengths and factors of the Gram-Schmidt basis."""
    basis: list[list[Fraction]] = []
    factors: list[list[Fraction]] = []
    lengths: list[Fraction] = []
    for row in rows:
        rest, of_row = [Fraction(value) for value in row], []
        for earlier, length in zip(basis, lengths, strict=True):
            factor = sum(value * other for value, other in zip(row, earlier, strict=True)) / length
            rest = [value - factor * other for value, other in zip(rest, earlier, strict=True)]
            of_row.append(factor)
        basis.append(rest)
        factors.append(of_row)
        lengths.append(sum((value * value for value in rest), Fraction()))
    return lengths, factors


SUM_ATTACKS = {
    "false-sum-early": Attack("G5", false_sum, without_linear_check),
    "false-sum-late": Attack("G5", false_sum_for_challenge, sum_outside_challenge),
    "chosen-sum-early": Attack("G5", chosen_blind, no_own_masks, CHANCE),
    "chosen-sum-late": Attack("G5", chosen_with_knowledge, sum_outside_challenge, CHANCE),
    "second-release": Attack("G1", second_sum, forgetful_release, CHANCE),
    "two-states": Attack("G5", two_states, two_groups, threshold=1.0),
}
