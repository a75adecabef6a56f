"""Attacks on starts and states: who chooses the weights that hospitals compute with decides what their replies show."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation import run_stage
from fedpp.aggregation.global_state import unflat
from fedpp.aggregation.run_schedule import RunSchedule
from fedpp.aggregation.run_stage import RunStage, mean_bound, site_bound
from fedpp.key_material import subkey
from fedpp.keys.sealed_stage import SealedStage
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.protocol import run_statements, state_certificate, statement_chains
from fedpp.protocol.run_contract import RunContract
from fedpp.protocol.run_statements import SignedStatement
from fedpp.values import canonical
from sites.vault.masked_runs import own_update, run_admission, run_limits
from sites.vault.masked_runs.run_stages import RunStages

from .attack import CHANCE, Attack, granted, known, replaced, share
from .scene.colluding_member import Colluder
from .scene.laboratory import DOMAIN, NETWORK, SEQUENCES, Hospital, Laboratory, encrypted
from .scene.relaying_coordinator import Coordinator, contract_of

KERNEL = "dense/kernel"
COINS = 256  # that the member tries
STARTS = 5  # a day, which a policy allows by default
TRIES = 9  # of starting a run
INVENTED = 50  # times the sequences of another member
LARGE = 2000.0  # times the update of an honest trainer
TINY = 1e-6  # likewise
VALUES = 64.0  # of an update at most, as the contract says
LARGEST_STEP = 3.0  # of three sites, where one counts as two thirds of all, in steps of an honest one


def chosen_coin(laboratory: Laboratory) -> float:
    """A member shows its coin last, the one of many with which the initial weights are the most useful to it."""
    *honest, third = cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort))
    run.agree()
    replies = [of.vault.reveal_coin(run.digest, run.statements) for of in cohort]
    *others, own = (SignedStatement.from_json(text) for text in replies)
    coins = [of.statement.facts["coin"] for of in others]
    drawn = (laboratory.drawn(f"coin {number}").bytes(32).hex() for number in range(COINS))
    best = min(drawn, key=lambda coin: _seed(run.contract, [*coins, coin]))
    wanted = encrypted_initial_weights(NETWORK, _seed(run.contract, [*coins, best]), DOMAIN.computing_key())[KERNEL]
    shown = SignedStatement.by(third.site.identity.sign, own.statement.changed(facts={"coin": best})).to_json()
    run.keep(replies[:-1])
    if not granted(honest[0].vault.start_run, run.digest, [*run.statements, shown]):
        shown = replies[-1]
    run.keep([shown])
    for of in honest:
        of.vault.start_run(run.digest, run.statements)
    return max(known(run.stage(of).state.rows[KERNEL], wanted) for of in honest)


def uncommitted() -> AbstractContextManager[None]:
    """Let vaults take coins that nobody committed to."""
    return replaced(*((of, "require_coin", lambda *_: None) for of in (statement_chains, run_statements)))


def repeated_starts(laboratory: Laboratory) -> float:
    """The coordinator starts runs until initial weights are useful to it, and lets the hospitals leave the others."""
    cohort = laboratory.hospitals(3)
    return float(sum(granted(_start_and_leave, cohort) for _ in range(TRIES)))


def unlimited() -> AbstractContextManager[None]:
    """Let vaults show any number of coins a day."""
    return replaced((run_admission, "require_starts", lambda *_: None))


def trojan_state(laboratory: Laboratory) -> float:
    """A member seals and signs a state of its choice, and the coordinator gives it to the hospitals."""
    *honest, third = cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    run.train(1)
    trojan, stage = _trojan(laboratory, run.stage(third))
    digest = stage.digest(DOMAIN.derive("run states"))
    signed = Colluder(third, run).signed("step", {"state": digest, "counts": ""}, 1)
    sealed = b"".join(SealedStage(stage).seal(DOMAIN.state_sealer(), "a state"))
    for of in honest:
        granted(of.vault.load_stage, run.digest, [*run.statements, signed], sealed)
    return max(known(run.stage(of).state.rows[KERNEL], trojan) for of in honest)


def oversized_member(laboratory: Laboratory) -> float:
    """A member invents many sequences, so that its update may be many steps of the others."""
    honest = laboratory.hospitals(2)
    liar = laboratory.hospital("Zenith", times=INVENTED)
    run = Coordinator(cohort := [*honest, liar], contract_of(cohort, max_update_value=VALUES)).begin()
    before = run.stage(honest[0]).state.rows[KERNEL]
    liar.scale = LARGE
    run.round(1)
    moved = (run.stage(honest[0]).state.rows[KERNEL] - before) @ DOMAIN.matrix()[:, 0]
    return float(np.sqrt(np.mean(moved**2)) / site_bound(run.contract, SEQUENCES["train"]))


def adaptive_step(laboratory: Laboratory) -> float:
    """A member sets the sign of each weight's step, of the size of fedadam's server rate and not of its update."""
    *honest, liar = cohort = laboratory.hospitals(3)
    adaptive = {"server_optimizer": "fedadam", "server_learning_rate": 1.0, "server_tau": 1e-9}
    run = Coordinator(cohort, contract_of(cohort, learning_rate=0.001, **adaptive))
    if not granted(run.begin):
        return 0.0
    for of in honest:
        of.scale = TINY
    before = run.stage(liar)
    own = unflat(liar.update(before), run.contract.spec.network, DOMAIN.n)[KERNEL] @ DOMAIN.matrix()[:, 0]
    run.round(1)
    moved = (run.stage(liar).state.rows[KERNEL] - before.state.rows[KERNEL]) @ DOMAIN.matrix()[:, 0]
    beyond = np.abs(moved) > 2 * mean_bound(run.contract)
    return float(np.mean(beyond & (np.sign(moved) == np.sign(own))))


def any_server_rate() -> AbstractContextManager[None]:
    """Let vaults sign contracts of any adaptive server rate."""
    return replaced((run_limits, "mean_bound", lambda _: math.inf))


def stated_sizes() -> AbstractContextManager[None]:
    """Let a member's bound follow from the size that it states."""

    def stated(contract: RunContract, site: str) -> float:
        return site_bound(contract, contract.member(site).sequences[0])

    return replaced(*((of, "member_bound", stated) for of in (run_stage, own_update)))


def one_signature() -> AbstractContextManager[None]:
    """Let one member certify a state."""
    return replaced((state_certificate, "needed", lambda *_: 1))


def earlier_state(laboratory: Laboratory) -> float:
    """The coordinator gives the hospitals a certified state of an earlier round, in place of their newer one."""
    cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    sealed = cohort[0].vault.seal_stage(run.digest)
    for number in (1, 2):
        run.round(number)
    for of in cohort:
        granted(of.vault.load_stage, run.digest, run.statements, sealed)
    return share([run.stage(of).number < 2 for of in cohort])


def going_back() -> AbstractContextManager[None]:
    """Let vaults take any certified state."""
    return replaced((RunStages, "known", lambda *_: None))


def _start_and_leave(cohort: Sequence[Hospital]) -> None:
    run = Coordinator(cohort, contract_of(cohort))
    run.agree()
    run.all_state(lambda of: of.vault.reveal_coin(run.digest, run.statements))
    run.all_state(lambda of: of.vault.abandon(run.digest))


def _seed(contract: RunContract, coins: list[str]) -> int:
    """Return the seed of the initial weights, as every member of the domain can compute it."""
    drawn = canonical({"coins": coins})
    key = DOMAIN.derive("run initial weights")
    return int.from_bytes(subkey(key, salt=contract.digest.encode(), info=b"seed|" + drawn, length=8), "little")


def _trojan(laboratory: Laboratory, before: RunStage) -> tuple[NDArray[np.float64], RunStage]:
    """Return weights of the attackers' choice, and a stage of round 1 that has them."""
    shape = before.state.rows[KERNEL].shape
    trojan = encrypted(laboratory.drawn("trojan").normal(size=shape))
    state = replace(before.state, round=1, rows={**before.state.rows, KERNEL: trojan})
    return trojan, RunStage(state, RunSchedule(state=1))


START_ATTACKS = {
    "grinding-coin": Attack("G3", chosen_coin, uncommitted, CHANCE),
    "grinding-starts": Attack("G3", repeated_starts, unlimited, STARTS, TRIES),
    "oversized-member": Attack("G3", oversized_member, stated_sizes, LARGEST_STEP, 2 * LARGEST_STEP),
    "adaptive-step": Attack("G3", adaptive_step, any_server_rate),
    "trojan-state": Attack("G5", trojan_state, one_signature, CHANCE),
    "earlier-state": Attack("G5", earlier_state, going_back),
}
