"""Attacks on results: a hospital should take home a model of the attackers' choice, or one that is not the result."""

from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedpp.aggregation.global_state import GlobalState
from fedpp.aggregation.run_schedule import RunSchedule
from fedpp.aggregation.run_stage import RunStage
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.sealed_stage import SealedStage
from fedpp.protocol.certified_model import CertifiedModel
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.state_certificate import StateCertificate
from sites.cli import pull_command
from sites.client import app

from .attack import Attack, granted, replaced
from .scene import laboratory as of_laboratory
from .scene.colluding_member import Colluder
from .scene.laboratory import DOMAIN, Laboratory, encrypted
from .scene.relaying_coordinator import Coordinator, contract_of
from .scene.requests_in_clear import ChoosingCoordinator
from .start_attacks import one_signature

KERNEL = "dense/kernel"


def forged_model(laboratory: Laboratory) -> float:
    """The coordinator gives a hospital weights of its choice, which nobody sealed, as the result of a masked run."""
    _, state = _chosen(laboratory, _run(laboratory))
    return _taken(laboratory, state.to_bytes())


def sealed_model(laboratory: Laboratory) -> float:
    """A member seals weights of its choice for the domain, and the coordinator gives them out as a run's result."""
    _, state = _chosen(laboratory, _run(laboratory))
    return _taken(laboratory, b"".join(DOMAIN.state_sealer().seal("the result", [state.to_bytes()])))


def certified_by_one(laboratory: Laboratory) -> float:
    """A member seals weights of its choice, and certifies them alone."""
    run = _run(laboratory)
    stage, state = _chosen(laboratory, run)
    ended = RunStage(state, replace(stage.schedule, due="end"))
    facts = {"state": ended.digest(DOMAIN.derive("run states")), "counts": ""}
    signed = Colluder(run.cohort[-1], run).signed("step", facts, 1)
    of = SignedStatement.from_json(signed)
    said = of.statement
    certificate = StateCertificate(said.contract, said.run, said.round, facts["state"], (of,))
    sealed = b"".join(SealedStage(ended).seal(DOMAIN.state_sealer(), "the result"))
    return _taken(laboratory, _model(run, certificate, sealed))


def early_model(laboratory: Laboratory) -> float:
    """The coordinator gives out a certified state of a run that has not ended as its result."""
    run = Coordinator(cohort := laboratory.hospitals(3), contract_of(cohort)).begin()
    run.round(1)
    signed = [SignedStatement.from_json(text) for text in run.statements]
    steps = [each for each in signed if each.statement.purpose == "step"]
    certificate = StateCertificate.made_of(run.contract, steps)
    return _taken(laboratory, _model(run, certificate, cohort[0].vault.seal_stage(run.digest)))


def overwritten_model(laboratory: Laboratory) -> float:
    """The coordinator has a hospital keep a second model as that of a run, in place of the one that it kept."""
    # A run in clear, since no app keeps the model of a masked one.
    with replaced((of_laboratory, "SECURE_AGGREGATION", "optional")):
        hospitals = laboratory.hospitals(3)
    coordinator = ChoosingCoordinator.of(hospitals, laboratory.folder)
    rows = coordinator.zeros()
    first = coordinator.keep(rows)
    rows["logits/bias"][1] = 1.0
    granted(coordinator.keep, rows)
    kept = next((hospitals[0].config.work / "models").iterdir()).read_bytes()
    return float(kept != first)


def anything() -> AbstractContextManager[None]:
    """Let `pull` take every model, as with its options --in-clear and --partial."""
    return replaced((pull_command, "opened", partial(pull_command.opened, in_clear=True, partial=True)))


def sealed_by_anybody() -> AbstractContextManager[None]:
    """Let `pull` take what a member sealed, without a certificate."""

    def opened(file: Path, domain: KeyDomain) -> GlobalState:
        _, records = domain.state_sealer().unseal([file.read_bytes()])
        return GlobalState.from_bytes(b"".join(records))

    return replaced((pull_command, "opened", opened))


def replacing() -> AbstractContextManager[None]:
    """Let a site's app forget the model that it kept, when another one comes."""
    keep = app._keep

    def forgetful(*arguments: Any) -> None:
        next(of for of in arguments if isinstance(of, Path)).unlink(missing_ok=True)
        keep(*arguments)

    return replaced((app, "_keep", forgetful))


def _run(laboratory: Laboratory) -> Coordinator:
    cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    run.train(1)
    return run


def _chosen(laboratory: Laboratory, run: Coordinator) -> tuple[RunStage, GlobalState]:
    """Return the stage of round 1 that has weights of the attackers' choice, and its state."""
    state = run.stage(run.cohort[0]).state
    chosen = encrypted(laboratory.drawn("model").normal(size=state.rows[KERNEL].shape))
    state = replace(state, round=1, rows={**state.rows, KERNEL: chosen})
    return RunStage(state, RunSchedule(state=1)), state


def _model(run: Coordinator, certificate: StateCertificate, sealed: bytes) -> bytes:
    certificates = tuple(of.site.certificate for of in run.cohort)
    return CertifiedModel(run.contract, certificates, certificate, sealed).to_bytes()


def _taken(laboratory: Laboratory, content: bytes) -> float:
    """Return whether a hospital's `pull` takes a file."""
    file = laboratory.folder / "model.sealed"
    file.write_bytes(content)
    return float(granted(pull_command.opened, file, DOMAIN))


MODEL_ATTACKS = {
    "model-forged": Attack("G5", forged_model, anything),
    "model-sealed": Attack("G5", sealed_model, sealed_by_anybody),
    "model-certified": Attack("G5", certified_by_one, one_signature),
    "model-early": Attack("G5", early_model, anything),
    "model-overwritten": Attack("G5", overwritten_model, replacing),
}
