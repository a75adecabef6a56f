"""Attacks that open one base model twice: the difference of two sums is the update of one hospital.

All hospitals endorsed one model, so several runs may start from it. A member colludes with the coordinator.
"""

import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation import pair_masks
from fedpp.aggregation.run_stage import RunStage
from fedpp.config.contract_limits import RunLimits
from fedpp.errors import FedppError
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.membership import NO_BUNDLE
from fedpp.protocol.new_contract import revised_contract
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.state_certificate import StateCertificate
from fedpp.protocol.statement_chains import StatementChains
from sites.vault.masked_runs import run_admission, run_endorsements, run_locks, run_revisions

from .attack import CHANCE, Attack, known, replaced
from .scene.colluding_member import Colluder
from .scene.laboratory import DOMAIN, NETWORK, Hospital, Laboratory
from .scene.relaying_coordinator import DAY, Coordinator, contract_of

EXPIRES = 6  # seconds, after which the first run is over
CHANGING = RunLimits(max_changes=2)
"""Hospitals whose staff lets a run lose a member."""


@dataclass
class Opened:
    """A sum that the attackers opened, and the run that it is of."""

    run: Coordinator
    stage: RunStage  # whose weights are the base
    total: NDArray[np.float64]  # of the updates times their weights


def other_run(laboratory: Laboratory) -> float:
    """A second run starts from the model that a first one has opened, without one hospital."""
    hospitals = _endorsing(laboratory.hospitals(4))
    return _difference(hospitals, _opened(_run(hospitals)), lambda: _opened(_run(hospitals[1:])))


def other_plan(laboratory: Laboratory) -> float:
    """The second run also has another learning rate, so that its updates are new ones."""
    hospitals = _endorsing(laboratory.hospitals(4))
    again = lambda: _opened(_run(hospitals[1:], learning_rate=0.06))  # noqa: E731  the second opening
    return _difference(hospitals, _opened(_run(hospitals)), again)


def after_restart(laboratory: Laboratory) -> float:
    """The first run has expired and all vaults were restarted, before the second run opens its model again."""
    hospitals = _endorsing(laboratory.hospitals(4))
    expires = int(time.time()) + EXPIRES
    first = _opened(_run(hospitals, expires=expires))
    for of in hospitals:
        of.stop()
    time.sleep(max(0.0, expires + 1 - time.time()))
    for of in hospitals:
        of.start()
    return _difference(hospitals, first, lambda: _opened(_run(hospitals[1:])))


def reinstalled_vault(laboratory: Laboratory) -> float:
    """One hospital's vault has lost its folder of runs, and with it its locks, before the second run."""
    hospitals = _endorsing(laboratory.hospitals(4))
    first = _opened(_run(hospitals))
    hospitals[1].stop()
    shutil.rmtree(hospitals[1].runs)
    _endorsing([hospitals[1].start()])
    return _difference(hospitals, first, lambda: _opened(_run(hospitals[1:])))


def other_revision(laboratory: Laboratory) -> float:
    """A revision continues the run from the model that was opened, without one hospital, which burned nothing."""
    hospitals = _endorsing(laboratory.hospitals(4, CHANGING))
    first = _opened(_run(hospitals))
    return _difference(hospitals, first, lambda: _opened(_revised(first.run, hospitals[1:])))


def false_burn(laboratory: Laboratory) -> float:
    """The coordinator shows the others, in place of the hospital's release, a burn that it forged."""
    victim, *others = hospitals = _endorsing(laboratory.hospitals(4, CHANGING))
    first = _opened(_run(hospitals))
    forger = Colluder(others[-1], first.run)
    released = forger.statement("release", 1, victim.name)
    first.run.statements = [text for text in first.run.statements if released.digest != _digest(text)]
    first.run.statements.append(forger.forged("burn", {"aggregate": released.facts["aggregate"]}, 1, victim.name))
    return _difference(hospitals, first, lambda: _opened(_revised(first.run, others)))


def false_lift(laboratory: Laboratory) -> float:
    """The revision's contract states that the lock of the absent hospital was lifted."""
    hospitals = _endorsing(laboratory.hospitals(4, CHANGING))
    first = _opened(_run(hospitals))
    absent = hospitals[0].name
    return _difference(hospitals, first, lambda: _opened(_revised(first.run, hospitals[1:], lifted=(absent,))))


def lying_burn(laboratory: Laboratory) -> float:
    """The member burns what it released, and the revision without it weighs the largest hospital's update anew."""
    hospitals = _endorsing(laboratory.hospitals(6, largest=3))
    victim = hospitals[0]
    run = _run(hospitals)
    liar = Colluder(hospitals[-1], run)
    run.train(1)
    run.release(1, of=hospitals[:-1])
    seed, stage = liar.own_seed(1), run.stage(victim)
    run.keep([liar.of.vault.burn(run.digest, liar.statement("release", 1, victim.name).facts["aggregate"])])
    seeds = [seed, *(liar.own_mask(of.name, 1) for of in hospitals[:-1])]
    words = pair_masks.unmasked(run.sum().low, run.ring, seeds)
    weight = run.contract.total_weight
    first = Opened(run, stage, weight * liar.updates(words, stage, weight))
    first.total -= run.contract.member(liar.of.name).weight * liar.of.update(stage)
    before = run.contract.member(victim.name).weight
    try:
        second = _opened(_revised(run, hospitals[:-1]), by=liar.of)
    except FedppError:
        return known(first.total / weight, victim.update(stage))
    after = second.run.contract.member(victim.name).weight
    return known((second.total - first.total) / (after - before), victim.update(stage))


def unlocked() -> AbstractContextManager[None]:
    """Let vaults release for one model in several runs."""
    return replaced(
        (run_locks, "require_unlocked", lambda *_: None), (run_revisions, "require_unlocked", lambda *_: None)
    )


def lifted_by_all() -> AbstractContextManager[None]:
    """Let the staff of each hospital lift whatever lock a revision says was lifted."""
    return replaced((run_revisions, "require_endorsed", lambda *_: None))


def forgetting() -> AbstractContextManager[None]:
    """Let vaults forget the locks of runs that are over."""
    forget = run_admission.forget_ended

    def all_of_them(of: Any) -> None:
        forget(of)
        of.journal.delete("locks")

    return replaced((run_admission, "forget_ended", all_of_them))


def unverified() -> AbstractContextManager[None]:
    """Let vaults take statements without verifying signatures."""
    return replaced((SignedStatement, "require", lambda *_: None))


def _endorsing(hospitals: list[Hospital]) -> list[Hospital]:
    """Let the staff of all hospitals endorse one public model."""
    for of in hospitals:
        expires = datetime.now(UTC) + timedelta(days=1)
        run_endorsements.endorse(of.runs, of.site, _model_id(of), expires, _model())
    return hospitals


def _model() -> EncryptedModel:
    rows = encrypted_initial_weights(NETWORK, 1, DOMAIN.computing_key())
    return EncryptedModel(NETWORK, DOMAIN.card().fingerprint, NETWORK.task.classes, dict(rows))


def _model_id(of: Hospital) -> str:
    return run_endorsements.model_id(of.site, _model())


def _digest(text: str) -> str:
    return SignedStatement.from_json(text).digest


def _run(cohort: Sequence[Hospital], **changes: Any) -> Coordinator:
    return Coordinator(cohort, contract_of(cohort, initial=_model_id(cohort[0]), **changes)).begin()


def _revised(run: Coordinator, cohort: Sequence[Hospital], lifted: Sequence[str] = ()) -> Coordinator:
    """Start a revision of a run from its first state, with this cohort."""
    old, certificates = run.contract, {of.name: of.site.certificate for of in run.cohort}
    chains = StatementChains(old, certificates)
    signed = [SignedStatement.from_json(text) for text in run.statements]
    chains.take([each for each in signed if each.statement.purpose in {"accept", "coin", "start"}])
    revision = revised_contract(
        old,
        StateCertificate.made_of(old, chains.of("start").values()),
        [of.describe() for of in cohort],
        certificates,
        nonce=secrets.token_hex(32),
        expires=int(time.time()) + DAY,
        bundle=NO_BUNDLE,
        lifted=lifted,
    )
    return Coordinator(cohort, revision, list(run.statements)).begin()


def _opened(run: Coordinator, by: Hospital | None = None) -> Opened:
    """Open the next round's sum, by the keys of the last hospital of the cohort, or of another member of the domain."""
    number = run.contract.start_round + 1
    colluder = Colluder(by or run.cohort[-1], run)
    stage = run.stage(run.cohort[0])
    run.train(number)
    run.release(number)
    weight = run.contract.total_weight
    return Opened(run, stage, weight * colluder.updates(colluder.opened(number), stage, weight))


def _difference(hospitals: Sequence[Hospital], first: Opened, again: Callable[[], Opened]) -> float:
    """Return how much of the first hospital's update the difference of two sums tells, or one sum alone."""
    victim = hospitals[0]
    truth = first.run.contract.member(victim.name).weight * victim.update(first.stage)
    rest: NDArray[np.float64] | float = 0.0
    with suppress(FedppError):
        rest = again().total
    return known(first.total - rest, truth)


OPENING_ATTACKS = {
    "openings-run": Attack("G1", other_run, unlocked, CHANCE),
    "openings-plan": Attack("G1", other_plan, unlocked, CHANCE),
    "openings-restart": Attack("G1", after_restart, forgetting, CHANCE),
    "openings-vault": Attack("G1", reinstalled_vault, unlocked, CHANCE),
    "openings-revision": Attack("G1", other_revision, unlocked, CHANCE),
    "openings-burn": Attack("G1", false_burn, unverified, CHANCE),
    "openings-lifted": Attack("G1", false_lift, lifted_by_all, CHANCE),
    "openings-weights": Attack("G1", lying_burn, unlocked, CHANCE),
}
