"""Attacks on a vault's time and log: floods of statements, proofs and connections, and calls that leave no record."""

import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import grpc

from fedpp.errors import VaultError
from fedpp.protocol import run_statements
from fedpp.protocol.coordinator_identity import SIMULATED
from fedpp.protocol.membership import NO_BUNDLE, PROTOCOL, is_signed
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.statement_chains import StatementChains
from fedpp.vault_api import vault_pb2, vault_pb2_grpc
from fedpp.vault_api.vault_client import VaultClient
from fedpp.vault_api.vault_connection import CLAIMS
from simulations.simulated_federation import ROOT
from sites.vault import evaluation_limits, vault_calls

from .attack import Attack, granted, replaced
from .scene.laboratory import Laboratory
from .scene.relaying_coordinator import Coordinator, contract_of

STATEMENTS = 4000  # in one request
CONNECTIONS, SHORT_CONNECTIONS = 3000, 1200
CALLS = 20
PROOFS = evaluation_limits.MAX_PROOFS
LONG_CLAIM = "x" * 5000  # of a caller, in the metadata of its call
PATIENCE = 12.0  # seconds, in which a vault must answer an honest caller beside a flood
VAULT = "bounded"  # whether connections are


def statement_flood(laboratory: Laboratory) -> float:
    """Requests hold thousands of copies of a genuine statement, each of which a vault should verify."""
    victim, _, third = cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    _, trained = run.trained(third, 1)
    requests = [[trained] * count for count in (STATEMENTS // 20, *(() if laboratory.is_short else (STATEMENTS,)))]
    verified = 0

    def counted(*arguments: Any) -> bool:
        nonlocal verified
        verified += 1
        return bool(is_signed(*arguments))

    with replaced((run_statements, "is_signed", counted)):
        for copies in requests:
            granted(victim.vault.train_round, run.digest, 1, copies)
    return verified / sum(map(len, requests))


def verified_first() -> AbstractContextManager[None]:
    """Let vaults verify signatures before they count and compare."""
    take = StatementChains.take

    def at_once(of: StatementChains, statements: list[SignedStatement]) -> list[SignedStatement]:
        for signed in statements:
            of._verify(signed)
        return take(of, statements)

    return replaced((StatementChains, "take", at_once), (StatementChains, "require_few", lambda *_: None))


def proof_flood(laboratory: Laboratory) -> float:
    """A caller has the vault sign proofs of membership without end."""
    victim, beyond = laboratory.hospital("East"), 0
    for number in range(PROOFS + CALLS):
        call = (f"{number:064x}", str(number), PROTOCOL, NO_BUNDLE, SIMULATED)
        beyond += granted(victim.vault.sign, *call) and number >= PROOFS
    return beyond / CALLS


def endless_proofs() -> AbstractContextManager[None]:
    """Let the vault sign as many proofs as it is asked for."""
    return replaced((evaluation_limits, "MAX_PROOFS", sys.maxsize))


def unlogged_calls(laboratory: Laboratory) -> float:
    """Calls whose caller states 5,000 characters as its name should leave no line in the audit log."""
    victim = laboratory.hospital("East")
    before = len(victim.log.read_bytes().splitlines())
    with grpc.insecure_channel(victim.address) as channel:
        stub = vault_pb2_grpc.VaultStub(channel)
        for _ in range(CALLS):
            try:
                stub.Info(vault_pb2.InfoRequest(), metadata=((CLAIMS, LONG_CLAIM),), timeout=PATIENCE)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    raise
    return 1 - (len(victim.log.read_bytes().splitlines()) - before) / CALLS


def unbounded_records() -> AbstractContextManager[None]:
    """Let callers' texts stand in the log as they come."""
    return replaced((vault_calls, "_short", lambda text: text), (vault_calls, "MAX_CLAIMS", None))


def connection_flood(laboratory: Laboratory) -> float:
    """Thousands of connections that say nothing should silence a vault of 1,024 descriptors."""
    count = SHORT_CONNECTIONS if laboratory.is_short else CONNECTIONS
    _raise_descriptors(2 * count)
    with _vault(laboratory) as address, ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(PATIENCE)
            with suppress(OSError):  # full, for a while
                connection.connect(address.removeprefix("unix:"))
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if granted(_info, address):
                return 0.0
            time.sleep(0.5)
    return 1.0


def unbounded_connections() -> AbstractContextManager[None]:
    """Let the vault take connections without end, and wait for them for ever."""
    return replaced((sys.modules[__name__], "VAULT", "unbounded"))


def _info(address: str) -> None:
    with VaultClient(address) as vault:
        vault.info()


@contextmanager
def _vault(laboratory: Laboratory) -> Iterator[str]:
    """Run a vault in a process of its own, and yield its address."""
    command = [sys.executable, "-m", "simulations.attacks.scene.flooded_vault", str(laboratory.folder), VAULT]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            address = process.stdout.readline().strip() if process.stdout else ""
            if not address:
                raise VaultError("the vault that was to be flooded did not start")
            yield address
        finally:
            process.kill()


def _raise_descriptors(count: int) -> None:
    """Let this process have so many descriptors, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard)
        )


FLOOD_ATTACKS = {
    "statement-flood": Attack("vault", statement_flood, verified_first),
    "proof-flood": Attack("vault", proof_flood, endless_proofs),
    "connection-flood": Attack("vault", connection_flood, unbounded_connections),
    "unlogged-call": Attack("vault", unlogged_calls, unbounded_records),
}
