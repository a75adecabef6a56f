"""Masked runs over real sockets: three vault servers, their clients, and a plain coordinator."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from run_hospitals import DOMAIN, Coordinator, Hospital, contract_of, hospitals
from vaults import serving

from fedpp.aggregation.run_stage import RunStage
from fedpp.errors import VaultError
from fedpp.protocol.run_contract import KnownContract, LiftedLock, Parent
from fedpp.protocol.state_certificate import LACKS_STATE
from fedpp.vault_api import vault_pb2, vault_pb2_grpc
from fedpp.vault_api.vault_client import VaultClient
from sites.vault.audit.audit_chain import verify
from sites.vault.audit.audit_log import AuditLog, Signer
from sites.vault.masked_runs import run_refusals
from sites.vault.masked_runs.run_endorsements import endorse, lift


class Remote:
    """A vault's client with the names of a `RunMember`."""

    def __init__(self, client: VaultClient, address: str) -> None:
        self.client, self.address = client, address

    def __getattr__(self, name: str) -> Any:
        return getattr(
            self.client, {"accept": "accept_run", "coin": "reveal_coin", "start": "start_run"}.get(name, name)
        )

    def train(self, *arguments: Any) -> Any:
        return self.client.train_round(*arguments)

    def stage(self, contract: str) -> bytes:
        return self.client.run_stage(contract)


@pytest.fixture
def cohort(tmp_path: Path) -> Iterator[list[Hospital]]:
    """Return three hospitals, whose vaults listen on sockets and keep an audit log."""
    made = hospitals(tmp_path)
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="fedpp-") as sockets:
        for of in made:
            log = AuditLog.open(tmp_path / f"log of {of.name}", Signer.of(of.site.identity))
            stack.callback(log.close)
            policy = tmp_path / f"{of.name}.yaml"
            policy.write_text(of.policy().to_yaml())
            address = f"unix:{sockets}/{of.name}.sock"
            options = {"site": of.site, "policy": policy, "audit": log, "journal": of.journal}
            stack.enter_context(serving(DOMAIN, of.dataset, address, **options))
            of.vault = Remote(stack.enter_context(VaultClient(address)), address)
            stack.callback(of.journal.close)
        yield made


def test_a_run_over_sockets_is_the_run_of_the_state_machines(cohort: list[Hospital], tmp_path: Path):
    """Contract, rounds, states and seals travel whole, and each call leaves a record."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1, expires=expiry())).begin()
    sealed = run.cohort[0].vault.seal_stage(run.digest)
    with pytest.raises(VaultError, match=LACKS_STATE):
        cohort[0].vault.train(run.digest, 2, run.statements)
    ends = run.finish()
    assert len({end.to_bytes() for end in ends}) == 1
    statements, contracts = cohort[0].vault.where(run.contract.nonce)
    assert sorted(statements) == sorted(run.statements[:-2])  # of the last round: its own
    certificates = tuple(of.site.certificate for of in cohort)
    assert contracts == [KnownContract(run.contract, certificates).to_json()]
    cohort[0].vault.load_stage(run.digest, run.statements, cohort[1].vault.seal_stage(run.digest))
    assert RunStage.from_bytes(cohort[0].vault.stage(run.digest)) == ends[0]
    assert run.digest.encode() in sealed[:200]
    assert verify(tmp_path / "log of East").records > 20


def test_nothing_of_a_sealed_state_leaves_unrecorded(cohort: list[Hospital], tmp_path: Path):
    """Not its first part either, which a caller could take and then leave: here the log cannot be written any more."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1, expires=expiry())).begin()
    with (tmp_path / "log of East").open("a") as log:
        log.write("another program's line")
    asked = vault_pb2.RunRequest(contract=run.digest)
    with grpc.insecure_channel(cohort[0].vault.address) as channel:
        blocks = vault_pb2_grpc.MaskedRunsStub(channel).SealStage(asked, timeout=20)
        with pytest.raises(grpc.RpcError, match="the audit log .* was altered by another program"):
            next(blocks)


def test_no_more_is_read_than_a_state_of_the_run_can_have(cohort: list[Hospital]):
    """A caller cannot fill the vault's memory by what it calls a state; an adaptive optimizer's moments fit."""
    changes = {"server_optimizer": "fedadam", "server_learning_rate": 0.1, "expires": expiry()}
    run = Coordinator(cohort, contract_of(cohort, rounds=1, **changes)).begin()
    run.round(1)
    of = cohort[0].vault
    of.load_stage(run.digest, run.statements, of.seal_stage(run.digest))
    values = run.contract.spec.network.parameters() * DOMAIN.n
    with pytest.raises(VaultError, match="a sealed state of this run has at most 6[0-9]{7} bytes, got more"):
        of.load_stage(run.digest, run.statements, bytes(2**26 + 80 * values))


def test_sealed_masks_are_as_long_as_masks_are(cohort: list[Hospital]):
    """A thousand of any length would be 4 GB of a vault's memory."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1, expires=expiry())).begin()
    run.train(1)
    run.release(1)
    total, sealed = run.sum(), [run.sealed[of.name] for of in cohort]
    with pytest.raises(VaultError, match="a round has 1000 sealed masks of 4096 bytes at most"):
        cohort[0].vault.step(run.digest, 1, run.statements, [*sealed[:2], bytes(5000)], total.low, total.carry)
    run.step(1)


def test_a_vault_without_a_policy_takes_part_in_no_run(tmp_path: Path):
    """`--no-policy` approves no bundle: its contract is refused before anything is signed, whatever its limits."""
    made = hospitals(tmp_path)
    contract = contract_of(made, rounds=1, expires=expiry())
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="fedpp-") as sockets:
        for of in made:
            stack.callback(of.journal.close)
        address = f"unix:{sockets}/vault.sock"
        options = {"site": made[0].site, "policy": None, "journal": made[0].journal}
        stack.enter_context(serving(DOMAIN, made[0].dataset, address, **options))
        made[0].vault = Remote(stack.enter_context(VaultClient(address)), address)
        with pytest.raises(VaultError, match=f"this site has not approved bundle {contract.bundle}"):
            Coordinator(made, contract).begin()
        assert made[0].journal.rows("contracts", "digest") == []


def expiry() -> int:
    """Return an expiry that the clock of this machine accepts."""
    import time

    return int(time.time()) + 86400


def test_the_audit_log_names_lifted_locks(cohort: list[Hospital], tmp_path: Path):
    """The record of a revision's acceptance says which locks this site's staff has lifted."""
    of, parent, tomorrow = cohort[0], Parent("ab" * 32, 0, "cd" * 32), datetime.now(UTC) + timedelta(days=1)
    lifted = (LiftedLock("Xenia", 1),)
    after = contract_of(cohort, expires=expiry(), revision=1, parent=parent, lifted=lifted)
    certificates = [each.site.certificate.to_json() for each in cohort]
    endorse(of.folder, of.site, parent.base, tomorrow)
    with pytest.raises(VaultError, match=run_refusals.NOT_LIFTED):
        of.vault.accept(after.to_json(), certificates)
    lift(of.folder, of.site, parent.contract, 1, "Xenia", tomorrow)
    of.vault.accept(after.to_json(), certificates)
    records = [json.loads(line) for line in (tmp_path / f"log of {of.name}").read_text().splitlines()]
    named = [(each["contract"], each["lifted"]) for each in records if "lifted" in each]
    assert named == [(after.digest, "Xenia in round 1")]
