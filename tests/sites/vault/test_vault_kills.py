"""Vaults killed at random moments of masked rounds: no keystream is used twice, every aggregate is right."""

import json
import random
import socket
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
import pytest
from vault_process import VaultProcess
from vaults import vault_arguments

from fedpp.aggregation.ring import CHUNK, EncodedUpdate, Ring
from fedpp.aggregation.round_context import Aggregate, Contribution, Round
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import VaultError
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.key_store import Site
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.membership import NO_BUNDLE, Proof
from fedpp.protocol.participants import Participants
from fedpp.vault_api import vault_pb2, vault_pb2_grpc
from fedpp.vault_api.vault_channel import channel_to
from fedpp.vault_api.vault_client import Membership, VaultClient
from sites.vault.audit_chain import verify

T = TypeVar("T")

NAMES = ("east", "north", "west")
EXAMPLES = 4
RING = Ring(32, len(NAMES) * EXAMPLES, len(NAMES), 8.0)
LENGTH = CHUNK + 77
NONCE = "ab" * 32
SECONDS = 20.0
MOMENTS = ("before", "within", "within", "within", "after")


class KilledError(Exception):
    """A call's vault was killed before it replied."""


class Vault:
    """One site's vault, which can be killed during a call."""

    def __init__(self, arguments: tuple[object, ...], address: str, errors: Path) -> None:
        self._arguments, self._errors, self.address = arguments, errors, address
        self.kills = 0
        self.start()

    def start(self) -> None:
        self._vault = VaultProcess(*self._arguments, errors=self._errors)

    def kill(self) -> None:
        """SIGKILL, and start again once it is gone."""
        self.kills += 1
        self._vault.process.kill()
        self.end()
        self.start()

    def end(self) -> None:
        self._vault.end()

    def ask(self, call: Callable[[str], T], kill_after: float | None) -> T:
        """Return a call's reply; raise `KilledError` where a kill, so many seconds after its start, ended it."""
        self._await_socket()  # or most kills would come before the call
        before = self.kills
        timer = threading.Timer(kill_after or 0.0, self.kill)
        if kill_after is not None:
            timer.start()
        try:
            return call(self.address)
        except (VaultError, grpc.RpcError):
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
                reply = vault.ask(call, self._drawn.uniform(0, longest) if moment == "within" else None)
                self._took[kind] = time.monotonic() - started
                if moment == "after":
                    vault.kill()
                else:
                    return reply
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
    with ExitStack() as stack:
        vaults = {}
        for name in NAMES:
            address = f"unix:{sockets}/{name}.sock"
            log = ("--audit-log", folder / f"{name}.log")
            arguments = vault_arguments(site(domain, name), dataset, address, *log)
            vaults[name] = Vault(arguments, address, folder / f"{name} errors")
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
            try:
                for reply in vault_pb2_grpc.VaultStub(channel).Mask(requests(), timeout=SECONDS, wait_for_ready=True):
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


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_no_keystream_is_used_twice_however_often_vaults_are_killed(
    kills: int, domain: KeyDomain, dataset: EncryptedDataset, tmp_path: Path
) -> None:
    """Kills come before, within and after calls, each call repeated for the same round until it succeeds."""
    company = Membership(Participants(NONCE, tuple(proof(domain, name) for name in NAMES)), "1", NO_BUNDLE)
    chaos, masks, rounds = Chaos(kills, seed=0), Masks(), 0
    with (
        tempfile.TemporaryDirectory(prefix="fedpp-") as sockets,
        running(tmp_path, Path(sockets), domain, dataset) as vaults,
    ):
        while chaos.left or rounds < 2:
            rounds += 1
            masked_round(chaos, vaults, masks, Round(NONCE, rounds, 1, "cd" * 32, "ef" * 32, LENGTH, RING), company)
    assert sum(vault.kills for vault in vaults.values()) == kills
    assert sum(chaos.within.values()) > 0
    assert masks.whole > len(NAMES) * rounds  # of the same round and site, again
    blocks = masks.blocks()
    assert blocks.size - np.unique(blocks).size == 0
    assert [unmasked_lists(tmp_path / f"{name}.log") for name in NAMES] == [list(range(1, rounds + 1))] * len(NAMES)
