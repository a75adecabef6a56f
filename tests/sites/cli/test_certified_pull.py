"""The model of a masked run is unsealed only where it is the state that enough members of the run certified."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from run_hospitals import DOMAIN, SPEC, Coordinator, contract_of, opened

from fedpp.aggregation.run_stage import RunStage
from fedpp.errors import DomainMismatchError, FederationError, FedppError, ModelError
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.protocol.certified_model import CertifiedModel
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.state_certificate import StateCertificate
from sites.cli import pull_command
from sites.cli.pull_command import PulledModel


def model_of(coordinator: Coordinator, number: int) -> CertifiedModel:
    """Return the model after a round, sealed by the first hospital."""
    signed = [SignedStatement.from_json(text) for text in coordinator.statements]
    steps = [each for each in signed if (each.statement.purpose, each.statement.round) == ("step", number)]
    first = coordinator.cohort[0]
    return CertifiedModel(
        coordinator.contract,
        tuple(of.site.certificate for of in coordinator.cohort),
        StateCertificate.made_of(coordinator.contract, steps),
        b"".join(first.vault.sealed_stage(coordinator.digest)),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[CertifiedModel], RunStage]]:
    """Return the models of rounds 1 and 2 of a run, and its stage after round 2."""
    with opened(tmp_path_factory.mktemp("hospitals")) as hospitals:
        coordinator = Coordinator(hospitals, contract_of(hospitals)).begin()
        models = []
        for number in (1, 2):
            coordinator.round(number)
            models.append(model_of(coordinator, number))
        yield models, coordinator.stages()[0]


def read(folder: Path, model: CertifiedModel, domain: KeyDomain = DOMAIN, *, partial: bool = True) -> PulledModel:
    """Return the model in a file."""
    (folder / "model.sealed").write_bytes(model.to_bytes())
    return pull_command.opened(folder / "model.sealed", domain, partial=partial)


def test_a_certified_model_is_the_state_that_its_members_have(
    run: tuple[list[CertifiedModel], RunStage], tmp_path: Path
) -> None:
    """A member reads from the file the state of the round that the file is of."""
    models, stage = run
    assert read(tmp_path, models[1]).state == stage.state


def test_the_state_of_a_run_that_had_not_ended_is_taken_on_demand_only(
    run: tuple[list[CertifiedModel], RunStage], tmp_path: Path
) -> None:
    """A later state may supersede it; what was taken says so, with the run and its signers."""
    (model, _), _ = run
    with pytest.raises(ModelError, match=r"the state after round 1 of a run that had not ended: .* with --partial$"):
        read(tmp_path, model, partial=False)
    signers = ", ".join(model.certificate.signers)
    expected = f"run {model.certificate.run[:16]}, round 1, before the end, certified by {signers}: "
    expected += "3 of 3 sites, of which 1 may collude"
    assert read(tmp_path, model).origin == expected


def test_the_model_of_an_ended_run_names_its_run_and_signers(tmp_path: Path) -> None:
    """After the rounds of training, validation and test nothing supersedes it."""
    with opened(tmp_path / "hospitals") as hospitals:
        coordinator = Coordinator(hospitals, contract_of(hospitals, rounds=1)).begin()
        for number in (1, 2, 3):
            coordinator.round(number)
        model = model_of(coordinator, 3)
    signers = ", ".join(model.certificate.signers)
    found = read(tmp_path, model, partial=False)
    certified = f"certified by {signers}: 3 of 3 sites, of which 1 may collude"
    assert found.origin == f"run {model.certificate.run[:16]}, the end, {certified}"


def test_a_model_that_is_not_certified_is_refused(run: tuple[list[CertifiedModel], RunStage], tmp_path: Path) -> None:
    """Another sealed state, too few signatures, a changed contract, another domain, damage: each is refused."""
    (earlier, model), stage = run
    other = replace(model, sealed=earlier.sealed)
    few = replace(model, certificate=replace(model.certificate, signed=model.certificate.signed[:2]))
    contract = replace(model, contract=replace(model.contract, rounds=7))
    unsealed = b"".join(DOMAIN.state_sealer().seal("state", [stage.to_bytes()]))
    for changed, error, text in (
        (other, ModelError, "is not the one that the run's members certified"),
        (few, FederationError, "2 members signed it, 3 are needed"),
        (contract, FederationError, "it is of contract"),
        (replace(model, sealed=unsealed), FedppError, "not a sealed state of a run"),
    ):
        with pytest.raises(error, match=text):
            read(tmp_path, changed)
    with pytest.raises(DomainMismatchError, match="the model belongs to domain"):
        read(tmp_path, model, KeyDomain.of_secret(bytes(32), n=2))
    (tmp_path / "model.sealed").write_bytes(model.to_bytes()[:-1])
    with pytest.raises(ModelError, match="not a certified model of a masked run"):
        pull_command.opened(tmp_path / "model.sealed", DOMAIN)


def test_initial_weights_follow_from_the_contract_and_all_coins(tmp_path: Path) -> None:
    """Whoever has the domain's secret and all coins can repeat them; another coin makes other weights."""
    with opened(tmp_path) as hospitals:
        coordinator = Coordinator(hospitals, contract_of(hospitals)).begin()
        rows = coordinator.stages()[0].state.rows
        signed = [SignedStatement.from_json(text).statement for text in coordinator.statements]
    coins = [each.facts["coin"] for each in signed if each.purpose == "coin"]
    seeds = [
        DOMAIN.run_seed(coordinator.digest, drawn) for drawn in (coins, [*coins[1:], coins[0]], ["0" * 64, *coins[1:]])
    ]
    assert len(set(seeds)) == 3
    expected = encrypted_initial_weights(SPEC.network, seeds[0], DOMAIN.computing_key())
    assert rows.keys() == expected.keys()
    assert all((rows[name] == expected[name]).all() for name in rows)
