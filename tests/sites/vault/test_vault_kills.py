"""Vaults killed at random moments of masked rounds: no keystream is used twice, every aggregate is right."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import grpc
import members
import numpy as np
from conftest import ROOT
from vaults import policy_of

from fedpp.aggregation.ring import CHUNK, EncodedUpdate, Ring
from fedpp.aggregation.round_context import Aggregate, Contribution, Round
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import VaultError
from fedpp.files import create_exclusively
from fedpp.keys import key_store
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.key_store import Site
from fedpp.keys.sealed_secret import Passphrase
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.membership import NO_BUNDLE, Proof
from fedpp.protocol.participants import Participants
from fedpp.vault_api import vault_pb2, vault_pb2_grpc
from fedpp.vault_api.vault_channel import channel_to
from fedpp.vault_api.vault_client import Membership, VaultClient
from sites.vault.audit_chain import verify

T = TypeVar("T")

KILLS = 50
NAMES = ("east", "north", "west")
EXAMPLES = 4
RING = Ring(32, len(NAMES) * EXAMPLES, len(NAMES), 8.0)
LENGTH = 3 * CHUNK + 77
NONCE = "ab" * 32
SECONDS = 20.0
MOMENTS = ("before", "within", "within", "within", "after")
PASSPHRASE = b"correct horse battery staple"
# Starts `fedpp-site vault` with the arguments of each line in a process of its own, and prints its number: a fork of a
# process that has imported everything is there at once.
STARTER = """
import json, os, signal, sys
import grpc
import fedpp.dataset.encrypted_dataset, fedpp.keys.key_store
import sites.cli.site_cli, sites.cli.vault_commands
import sites.vault.audit_log, sites.vault.vault_server, sites.vault.vault_service

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(sites.cli.site_cli.main(json.loads(line)))
    print(child, flush=True)
"""


class KilledError(Exception):
    """A call's vault was killed before it replied."""


class Vault:
    """One site's vault, which can be killed during a call."""

    def __init__(self, starter: "subprocess.Popen[str]", command: list[str], address: str) -> None:
        self._starter, self._command, self.address = starter, json.dumps(command), address
        self.kills = 0
        self.start()

    def start(self) -> None:
        assert self._starter.stdin is not None
        assert self._starter.stdout is not None
        self._starter.stdin.write(self._command + "\n")
        self._starter.stdin.flush()
        self._process = int(self._starter.stdout.readline())

    def kill(self) -> None:
        """SIGKILL, and start again once it is gone."""
        self.kills += 1
        self.end()
        self.start()

    def end(self) -> None:
        os.kill(self._process, signal.SIGKILL)
        ends = time.monotonic() + SECONDS
        while Path(f"/proc/{self._process}").exists() and time.monotonic() < ends:
            time.sleep(0.001)

    def ask(self, call: Callable[[str], T], kill_after: float | None) -> T:
        """Return a call's reply; raise `KilledError` where a kill, so many seconds after its start, ended it."""
        self._await_socket()  # or most kills would come before the call
        before = self.kills
        timer = threading.Timer(kill_after or 0.0, self.kill)
        if kill_after is not None:
            timer.start()
        try:
            return call(self.address)
        except (VaultError, grpc.RpcError, grpc.FutureTimeoutError):  # the last: killed before the channel was ready
            if kill_after is not None:
                timer.join()
            if self.kills == before:
                raise
            raise KilledError from None
        finally:
            timer.cancel()
            if kill_after is not None:
                timer.join()

    def _await_socket(self) -> None:
        """Wait until the vault listens: gRPC itself would wait a second before it tries again."""
        ends = time.monotonic() + SECONDS
        while time.monotonic() < ends:
            with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
                client.connect(self.address.removeprefix("unix:"))
                return
            time.sleep(0.005)


class Chaos:
    """Calls vaults until they reply, and kills them at random moments meanwhile, a number of times in all."""

    def __init__(self, kills: int, seed: int) -> None:
        self.left, self._drawn = kills, random.Random(seed)
        self._took: dict[str, float] = {}  # seconds of a successful call of a kind
        self.within: Counter[str] = Counter()  # calls of a kind that a kill ended

    def ask(self, kind: str, vault: Vault, call: Callable[[str], T]) -> T:
        """Return a reply; one that came before a kill may count as lost, and is requested again."""
        while True:
            before, moment = vault.kills, self._drawn.choice(MOMENTS) if self.left else ""
            if moment == "before":
                vault.kill()
            longest = 2 * self._took.get(kind, 0.05)
            started = time.monotonic()
            try:
                answer = vault.ask(call, self._drawn.uniform(0, longest) if moment == "within" else None)
                self._took[kind] = time.monotonic() - started
                if moment == "after":
                    vault.kill()
                else:
                    return answer
            except KilledError:
                self.within[kind] += 1
            finally:
                self.left -= vault.kills - before


def site(domain: KeyDomain, name: str) -> Site:
    identity = SiteIdentity(name, name.encode().ljust(32, b"\1"))
    return Site(domain, identity, DomainCA(domain.ca_seed()).certify(identity.request(), domain.card()))


def proof(domain: KeyDomain, name: str) -> Proof:
    of = site(domain, name)
    return replace(members.proof(of.identity, domain.card(), NONCE), certificate=of.certificate)


@contextmanager
def running(folder: Path, sockets: Path, domain: KeyDomain, dataset: EncryptedDataset) -> Iterator[dict[str, Vault]]:
    """Run the vaults of three sites of a domain, each with its audit log, as the command line starts them."""
    passphrase = folder / "passphrase"
    create_exclusively(passphrase, PASSPHRASE)
    policy = policy_of(dataset)
    with ExitStack() as stack:
        starter = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", STARTER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        vaults = {}
        for name in NAMES:
            key_store.join(folder / name, site(domain, name), Passphrase(PASSPHRASE, log2_cost=10))
            address = f"unix:{sockets}/{name}.sock"
            options = {
                "domain": folder / name,
                "passphrase-file": passphrase,
                "dataset": dataset.path,
                "address": address,
                "policy": policy,
                "audit-log": folder / f"{name}.log",
            }
            command = ["vault", *(str(part) for option, value in options.items() for part in (f"--{option}", value))]
            vaults[name] = Vault(starter, command, address)
            stack.callback(vaults[name].end)
        yield vaults


class Masks:
    """All keystreams that left the vaults, of whole masks or of parts."""

    def __init__(self) -> None:
        self.begun, self.whole = [], 0

    def ask(self, address: str, of: Round, values: EncodedUpdate) -> tuple[EncodedUpdate, str, int]:
        """Return a masked update, its nonce and tag; keep the keystream of all values that came."""

        def requests() -> Iterator[vault_pb2.MaskRequest]:
            yield vault_pb2.MaskRequest(round=of.to_json(), examples=EXAMPLES)
            for start in range(0, values.size, CHUNK):
                yield vault_pb2.MaskRequest(values=values[start : start + CHUNK].tobytes())

        masked, nonce, tag = b"", "", ""
        with channel_to(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=SECONDS)
            try:
                for reply in vault_pb2_grpc.VaultStub(channel).Mask(requests(), timeout=SECONDS):
                    masked += reply.values
                    nonce, tag = reply.nonce, reply.tag
            finally:
                seen = np.frombuffer(masked, values.dtype)
                self.begun.append(seen - values[: seen.size])
        self.whole += 1
        return np.frombuffer(masked, values.dtype), nonce, int(tag, 16)

    def blocks(self) -> np.ndarray:
        """Return the first halves of all blocks of AES: of a million, two are equal by chance once in 2^25 times."""
        return np.concatenate([stream[: stream.size // 4 * 4].view("<u8")[::2] for stream in self.begun])


def masked_round(chaos: Chaos, vaults: Mapping[str, Vault], masks: Masks, of: Round, company: Membership) -> None:
    """Mask a random update at each site, add them up, and unmask the aggregate at each: all get the sum."""
    numbers = np.random.default_rng(of.number)
    parts, total, clear = [], np.zeros(LENGTH, RING.dtype), np.zeros(LENGTH, RING.dtype)
    for name, vault in vaults.items():

        def masked(address: str) -> tuple[EncodedUpdate, EncodedUpdate, str, int]:
            values = RING.encode(numbers.normal(size=LENGTH), EXAMPLES)  # others each time: training is not repeated
            return values, *masks.ask(address, of, values)

        values, hidden, nonce, tag = chaos.ask("mask", vault, masked)
        parts.append((Contribution(name, nonce, EXAMPLES, 2), tag))
        total, clear = total + hidden, clear + values

    def unmasked(address: str) -> EncodedUpdate:
        with VaultClient(address) as client:
            return client.unmask(of.to_json(), Aggregate.of(parts).to_json(), total, company)

    for vault in vaults.values():
        np.testing.assert_array_equal(chaos.ask("unmask", vault, unmasked), clear)


def unmasked_lists(log: Path) -> list[int]:
    """Return the rounds that a vault unmasked, once for each list, after checking its audit log."""
    verify(log)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return sorted(of for of, _ in {(r["round"], r["list"]) for r in records if r["method"] == "Unmask"})


def test_no_keystream_is_used_twice_however_often_vaults_are_killed(
    domain: KeyDomain, dataset: EncryptedDataset, tmp_path: Path
) -> None:
    """Fifty kills, before, within and after calls, each call repeated for the same round until it succeeds."""
    company = Membership(Participants(NONCE, tuple(proof(domain, name) for name in NAMES)), "1", NO_BUNDLE)
    chaos, masks, rounds = Chaos(KILLS, seed=0), Masks(), 0
    with (
        tempfile.TemporaryDirectory(prefix="fedpp-") as sockets,
        running(tmp_path, Path(sockets), domain, dataset) as vaults,
    ):
        while chaos.left or rounds < 3:
            rounds += 1
            masked_round(chaos, vaults, masks, Round(NONCE, rounds, 1, "cd" * 32, "ef" * 32, LENGTH, RING), company)
    assert sum(vault.kills for vault in vaults.values()) == KILLS
    assert sum(chaos.within.values()) > 0
    assert masks.whole > len(NAMES) * rounds  # of the same round and site, again
    blocks = masks.blocks()
    assert blocks.size - np.unique(blocks).size == 0
    assert [unmasked_lists(tmp_path / f"{name}.log") for name in NAMES] == [list(range(1, rounds + 1))] * len(NAMES)
