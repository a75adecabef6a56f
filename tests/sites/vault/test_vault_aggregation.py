"""Mask, Unmask, Seal and Unseal of the vault against a coordinator, another site, a clone and a restart."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import members
import numpy as np
import pytest
from vaults import policy_of, serving, site_vault

from fedpp.aggregation.ring import CHUNK, EncodedUpdate, Ring
from fedpp.aggregation.round_context import PRIME, Aggregate, Contribution, Round
from fedpp.config.site_policy import SitePolicy
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import MaskError, VaultError
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.key_store import Site
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.membership import NO_BUNDLE, Proof, Statement
from fedpp.protocol.participants import Participants
from fedpp.vault_api import vault_pb2
from fedpp.vault_api.vault_client import Membership, VaultClient
from simulations.benchmarks.bench_vault import certified
from sites.vault.audit_chain import Record
from sites.vault.audit_log import AuditLog, Signer
from sites.vault.memory_budget import MemoryBudget
from sites.vault.vault_aggregation import SecureAggregation
from sites.vault.vault_calls import Call

NONCE = "ab" * 32
LENGTH = CHUNK + 77
RING = Ring(32, 20, 3, 8.0)
ROUND = Round(NONCE, 1, 1, "cd" * 32, "ef" * 32, LENGTH, RING)
NAMES = ("north", "east", "west")


@dataclass(frozen=True)
class Update:
    """One site's masked values, and what they hide."""

    part: Contribution
    tag: int
    masked: EncodedUpdate
    values: EncodedUpdate


def identity(name: str) -> SiteIdentity:
    return certified_as(name).identity


def certified_as(name: str) -> Site:
    """Return a site of the tests' domain, the vault's own for north."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=2)
    if name == "north":
        return certified(domain, "north")
    own = SiteIdentity(name, name.encode().ljust(32, b"\1"))
    return Site(domain, own, DomainCA(domain.ca_seed()).certify(own.request(), domain.card()))


def proof(name: str, nonce: str = NONCE) -> Proof:
    site = certified_as(name)
    made = members.proof(site.identity, site.domain.card(), nonce)
    return Proof(made.statement, made.signature, site.certificate)


def membership(*names: str, nonce: str = NONCE) -> Membership:
    return Membership(Participants(nonce, tuple(proof(name, nonce) for name in names)), "1", NO_BUNDLE)


def update(name: str, of: Round = ROUND, seed: int | None = None, least: int = 1) -> Update:
    """Return what a site's vault would make of random values; the others' vaults are of the same domain."""
    drawn = np.random.default_rng(NAMES.index(name) if seed is None else seed).normal(size=of.length)
    values = of.ring.encode(drawn, 5)
    part = Contribution.fresh(name, 5, least)
    masker = certified_as(name).domain.mask_key().masker(of, part)
    masked = [masker.mask(values[start : start + CHUNK]) for start in range(0, values.size, CHUNK)]
    return Update(part, masker.tag(), np.concatenate(masked), values)


def added(updates: list[Update]) -> tuple[Aggregate, EncodedUpdate, EncodedUpdate]:
    """Return what a sum is of, the sum of the masked values, and that of the values."""
    total = Aggregate.of([(u.part, u.tag) for u in updates])
    masked, clear = (
        np.sum([getattr(u, name) for u in updates], axis=0, dtype=RING.dtype) for name in ("masked", "values")
    )
    return total, masked, clear


@pytest.fixture
def vault(domain: KeyDomain, dataset: EncryptedDataset, address: str) -> Iterator[VaultClient]:
    """Return a client of north's vault, whose policy wants one other site."""
    with serving(domain, dataset, address), VaultClient(address) as client:
        yield client


def unmask(client: VaultClient, of: Round, total: Aggregate, values: EncodedUpdate, given: Membership) -> EncodedUpdate:
    return client.unmask(of.to_json(), total.to_json(), values, given)


def test_masks_are_removed_in_the_aggregate(vault: VaultClient):
    """Its update and two others add up to their sum in plain integers; each call has a nonce of its own."""
    others = [update("east"), update("west")]
    values = RING.encode(np.random.default_rng(9).normal(size=LENGTH), 4)
    masked = vault.mask(ROUND.to_json(), 4, values)
    again = vault.mask(ROUND.to_json(), 4, values)
    assert masked.nonce != again.nonce
    assert (masked.values != again.values).mean() > 0.99
    own = Update(Contribution("north", masked.nonce, 4, masked.min_cohort), masked.tag, masked.values, values)
    total, sums, clear = added([own, *others])
    unmasked = unmask(vault, ROUND, total, sums, membership(*NAMES))
    np.testing.assert_array_equal(unmasked, clear)
    expected = sum(u.values.view("<i4").astype(object) for u in (own, *others))
    assert unmasked.view("<i4").tolist() == expected.tolist()


def test_a_site_masks_no_more_examples_than_it_has(vault: VaultClient):
    """The vault knows its training split: a site that claims more would weigh more."""
    values = np.zeros(LENGTH, RING.dtype)
    for examples in (0, 7):
        with pytest.raises(VaultError, match=f"at most the 6 training sequences of this site, got {examples}"):
            vault.mask(ROUND.to_json(), examples, values)


def test_values_beyond_the_bound_are_not_masked(vault: VaultClient):
    """No value may leave its examples' range in the ring: the sum could wrap unnoticed."""
    values = np.full(LENGTH, 2**30, RING.dtype)
    with pytest.raises(VaultError, match="a value beyond"):
        vault.mask(ROUND.to_json(), 4, values)
    for length in (LENGTH - 1, LENGTH + 1):
        with pytest.raises(VaultError, match="values"):
            vault.mask(ROUND.to_json(), 4, np.zeros(length, RING.dtype))


UNFIT = "does not fit its tag"
ADVERSARIES: dict[str, tuple[dict[str, Any], str]] = {
    "a replayed round": ({"of": replace(ROUND, number=2)}, UNFIT),
    "another attempt": ({"of": replace(ROUND, attempt=2)}, UNFIT),
    "another model": ({"of": replace(ROUND, base="0" * 64)}, UNFIT),
    "another scale": ({"of": replace(ROUND, ring=replace(RING, bound=16.0))}, UNFIT),
    "a bit of the sum": ({"flipped": 1}, UNFIT),
    "another tag": ({"tag": 1}, UNFIT),
    "one site less in the list": ({"parts": lambda a, b, c: (b, c)}, UNFIT),
    "other examples": ({"parts": lambda a, b, c: (replace(a, examples=1), b, c)}, UNFIT),
    "two sites' nonces exchanged": (
        {"parts": lambda a, b, c: (replace(a, nonce=b.nonce), replace(b, nonce=a.nonce), c)},
        UNFIT,
    ),
    "a site twice": ({"parts": lambda a, b, c: (a, b, c, a)}, "one update from each site"),
    "a stranger": ({"parts": lambda a, b, c: (a, b, replace(c, site="mallory"))}, "names mallory, which did not prove"),
    "one site alone": ({"parts": lambda a, b, c: (a,)}, "is of 1 sites, and the policy requires 2"),
}


@pytest.mark.parametrize("kind", ADVERSARIES)
def test_an_altered_aggregate_is_refused(kind: str, vault: VaultClient):
    """No value leaves, the reason is one line, and the right aggregate is unmasked afterwards."""
    change, reason = ADVERSARIES[kind]
    total, sums, clear = added([update(name) for name in NAMES])
    parts = change.get("parts", lambda *parts: parts)(*total.parts)
    altered = replace(total, parts=parts, tag=(total.tag + change.get("tag", 0)) % PRIME)
    values = sums ^ (change.get("flipped", 0) * (np.arange(LENGTH) == 9)).astype(RING.dtype)
    with pytest.raises(VaultError, match=reason):
        unmask(vault, change.get("of", ROUND), altered, values, membership(*NAMES))
    np.testing.assert_array_equal(unmask(vault, ROUND, total, sums, membership(*NAMES)), clear)


def test_an_update_with_a_flipped_bit_spoils_the_aggregate(vault: VaultClient):
    """A bit flipped in one update on its way is in the aggregate, which no longer fits its tag."""
    updates = [update(name) for name in NAMES]
    altered = updates[1].masked.copy()
    altered[LENGTH // 2] ^= 4
    total, sums, _ = added([updates[0], replace(updates[1], masked=altered), updates[2]])
    with pytest.raises(VaultError, match="does not fit its tag"):
        unmask(vault, ROUND, total, sums, membership(*NAMES))


def test_updates_from_two_models_do_not_add_up(vault: VaultClient):
    """A coordinator that shows two sites two states gets no aggregate of their updates."""
    forked = replace(ROUND, base="0" * 64)
    total, sums, _ = added([update("north"), update("east", forked)])
    for of in (ROUND, forked):
        with pytest.raises(VaultError, match="does not fit its tag"):
            unmask(vault, of, total, sums, membership(*NAMES))


def test_a_round_has_one_list(vault: VaultClient):
    """The same list is unmasked again; a second one, which would disclose a site's own update, is not."""
    updates = [update(name) for name in NAMES]
    total, sums, clear = added(updates)
    for _ in range(2):
        np.testing.assert_array_equal(unmask(vault, ROUND, total, sums, membership(*NAMES)), clear)
    fewer, other, _ = added(updates[:2])
    with pytest.raises(VaultError, match="round 1, attempt 1 was unmasked for another list"):
        unmask(vault, ROUND, fewer, other, membership(*NAMES))
    later = replace(ROUND, number=2)
    total, sums, clear = added([update(name, later) for name in NAMES[:2]])
    np.testing.assert_array_equal(unmask(vault, later, total, sums, membership(*NAMES)), clear)


def test_proofs_are_of_this_run(vault: VaultClient):
    """Participants prove membership for the run of these masks, to a vault that participates itself."""
    total, sums, _ = added([update(name) for name in NAMES])
    for given, reason in (
        (membership(*NAMES, nonce="0" * 64), "is for another run"),
        (replace(membership(*NAMES), run="2"), "is for another run"),
        (replace(membership(*NAMES), bundle="1" * 64), "runs app bundle"),
        (membership("east", "west"), "is without north"),
        (Membership(Participants(NONCE, ()), "1", NO_BUNDLE), "is without north"),
    ):
        with pytest.raises(VaultError, match=reason):
            unmask(vault, ROUND, total, sums, given)


def test_states_are_sealed_and_unsealed(vault: VaultClient):
    """Whatever its size, a state comes back with what it is about; a changed one does not."""
    for size in (0, 1, 3 * 2**20 + 5):
        state = os.urandom(size)
        sealed = vault.seal("round 7", state)
        assert size < 16 or state[:16] not in sealed
        assert vault.unseal(sealed) == ("round 7", state)
    altered = bytearray(sealed)
    altered[-1] ^= 1
    with pytest.raises(VaultError, match="not a sealed state, or it was altered"):
        vault.unseal(bytes(altered))
    for about in ("", "x" * 501, "a\nb"):
        with pytest.raises(VaultError, match="are about something"):
            vault.seal(about, b"state")


def test_a_read_only_vault_masks_and_seals_nothing(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """It creates nothing new under a key, and still reads."""
    total, sums, clear = added([update(name) for name in NAMES])
    sealed = b"".join(domain.state_sealer().seal("it", [b"state"]))
    with serving(domain, dataset, address, read_only=True), VaultClient(address) as vault:
        for call in (
            lambda: vault.mask(ROUND.to_json(), 1, np.zeros(LENGTH, RING.dtype)),
            lambda: vault.seal("it", b"state"),
        ):
            with pytest.raises(VaultError, match="read-only"):
                call()
        assert vault.unseal(sealed) == ("it", b"state")
        np.testing.assert_array_equal(unmask(vault, ROUND, total, sums, membership(*NAMES)), clear)


class Unnamed:
    """The context of a call over a Unix socket, whose caller says nothing of itself."""

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def peer(self) -> str:
        return "unix:"

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []


def recorded(facts: Record) -> None:
    """Record a call."""


def unrecorded(facts: Record) -> None:
    """Fail to record a call."""
    del facts
    raise VaultError("the audit log cannot be written")


def called(append: Callable[[Record], None] = recorded) -> Call:
    return Call("method", Unnamed(), append)


def left(replies: Iterator[Any]) -> list[Any]:
    """Return what left of a call whose record failed."""
    found: list[Any] = []
    with pytest.raises(VaultError, match="the audit log cannot be written"):
        found.extend(replies)
    return found


def masking(domain: KeyDomain, room: int = 2**30) -> SecureAggregation:
    return SecureAggregation(certified(domain, "north"), 6, MemoryBudget(room, 0.05))


def unmask_requests(total: Aggregate, *values: EncodedUpdate) -> Iterator[vault_pb2.UnmaskRequest]:
    given = membership(*NAMES)
    proofs = [proof.to_json() for proof in given.participants.proofs]
    yield vault_pb2.UnmaskRequest(
        round=ROUND.to_json(), aggregate=total.to_json(), proofs=proofs, run=given.run, bundle=given.bundle
    )
    for some in values:
        yield vault_pb2.UnmaskRequest(values=some.tobytes())


def test_no_value_of_an_aggregate_leaves_before_it_is_recorded(domain: KeyDomain):
    """A vault whose log cannot be written sends nothing of an aggregate, and all of it once it can."""
    vault, (total, sums, clear) = masking(domain), added([update(name) for name in NAMES])
    assert left(vault.unmask(called(unrecorded), unmask_requests(total, sums), 1)) == []
    replies = vault.unmask(called(), unmask_requests(total, sums), 1)
    assert b"".join(reply.data for reply in replies) == clear.tobytes()


def test_no_nonce_and_tag_of_a_mask_leave_before_it_is_recorded(domain: KeyDomain):
    """Without them the sent values are noise; recorded, they come last."""
    vault, values = masking(domain), np.zeros(LENGTH, RING.dtype)
    request = vault_pb2.MaskRequest(round=ROUND.to_json(), examples=4, values=values.tobytes())
    found = [(reply.nonce, reply.tag) for reply in left(vault.mask(called(unrecorded), iter([request]), 1))]
    assert found == [("", "")] * 2
    *_, last = vault.mask(called(), iter([request]), 1)
    assert len(last.nonce) == 64


def test_no_last_record_of_a_seal_leaves_before_it_is_recorded(domain: KeyDomain):
    """What was sent cannot be unsealed without it; recorded, it is complete."""
    vault, state = masking(domain), os.urandom(2**21 + 5)
    request = vault_pb2.SealRequest(about="round 7", data=state)

    def opened(replies: Iterable[Any]) -> bytes:
        _, content = domain.state_sealer().unseal(reply.data for reply in replies)
        return b"".join(content)

    found = left(vault.seal(called(unrecorded), iter([request])))
    assert len(found) == 3  # the header, and two records
    with pytest.raises(MaskError, match="a record is missing"):
        opened(found)
    assert opened(vault.seal(called(), iter([request]))) == state


def test_nothing_is_opened_before_it_is_recorded(domain: KeyDomain):
    """A vault whose log cannot be written returns neither the facts of a state nor its content."""
    vault, sealed = masking(domain), b"".join(domain.state_sealer().seal("round 7", [b"state"]))
    block = vault_pb2.Block(data=sealed)
    assert left(vault.unseal(called(unrecorded), iter([block]))) == []
    about, content = vault.unseal(called(), iter([block]))
    assert (about.about, content.data) == ("round 7", b"state")


def test_aggregates_share_a_memory_budget(domain: KeyDomain):
    """While one is received and sent, another that finds too little memory is refused; not afterwards."""
    total, sums, clear = added([update(name) for name in NAMES])
    vault = masking(domain, room=2 * sums.nbytes - 1)

    def another() -> bytes:
        return b"".join(reply.data for reply in vault.unmask(called(), unmask_requests(total, sums), 1))

    def slowly() -> Iterator[vault_pb2.UnmaskRequest]:
        for request in unmask_requests(total, sums[:9], sums[9:]):
            yield request
            if request.values:
                with pytest.raises(VaultError, match="the vault is busy"):
                    another()

    replies = vault.unmask(called(), slowly(), 1)
    first = next(replies)
    with pytest.raises(VaultError, match="the vault is busy"):
        another()
    assert first.data + b"".join(reply.data for reply in replies) == another() == clear.tobytes()


@pytest.mark.parametrize(
    ("about", "junk"),
    [("it\nUnseal: forged", True), ("it\nUnseal: forged", False), ("forged", True)],
    ids=["lines, and junk", "lines, sealed", "junk"],
)
def test_an_unproved_text_about_sealed_bytes_is_not_logged(
    about: str,
    junk: bool,
    domain: KeyDomain,
    dataset: EncryptedDataset,
    address: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    """Until a record shows that they are the domain's it is not logged, and never where it is no line."""
    header, *records = domain.state_sealer().seal(about, [b"state"])
    sealed = header + ((20).to_bytes(4, "little") + bytes(20) if junk else b"".join(records))
    log = AuditLog.open(tmp_path / "log", Signer.of(certified(domain, "north").identity))
    caplog.set_level(logging.INFO, "fedpp.vault")
    with (
        serving(domain, dataset, address, audit=log),
        VaultClient(address) as vault,
        pytest.raises(VaultError) as error,
    ):
        vault.unseal(sealed)
    log.close()
    _, record = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert record["method"] == "Unseal"
    assert record["outcome"] in str(error.value)
    assert "forged" not in f"{record} {error.value} {caplog.text}"
    assert "Unseal refused: " in caplog.text


def test_a_restarted_vault_keeps_its_list(domain: KeyDomain, dataset: EncryptedDataset, address: str, tmp_path: Path):
    """The unmasked list is in its audit log: after a kill, it refuses a second list as before."""
    updates = [update(name) for name in NAMES]
    total, sums, clear = added(updates)
    fewer, other, _ = added(updates[:2])
    log = ("--audit-log", tmp_path / "audit.log")
    with site_vault(domain, dataset, address, *log) as process, VaultClient(address) as vault:
        np.testing.assert_array_equal(unmask(vault, ROUND, total, sums, membership(*NAMES)), clear)
        process.kill()
        process.join()
    with site_vault(domain, dataset, address, *log), VaultClient(address) as vault:
        with pytest.raises(VaultError, match="was unmasked for another list"):
            unmask(vault, ROUND, fewer, other, membership(*NAMES))
        np.testing.assert_array_equal(unmask(vault, ROUND, total, sums, membership(*NAMES)), clear)


@contextmanager
def _vaults(domain: KeyDomain, dataset: EncryptedDataset, folder: Path, count: int) -> Iterator[list[VaultClient]]:
    with ExitStack() as stack:
        clients = []
        for number in range(count):
            address = f"unix:{folder}/{number}.sock"
            stack.enter_context(serving(domain, dataset, address))
            clients.append(stack.enter_context(VaultClient(address)))
        yield clients


def test_a_cloned_vault_repeats_no_keystream(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """Two copies of one vault mask the same round: their keystreams agree by chance only."""
    folder = Path(address.removeprefix("unix:")).parent.parent
    values = np.zeros(LENGTH, RING.dtype)
    with _vaults(domain, dataset, folder, 2) as clients:
        streams = [client.mask(ROUND.to_json(), 5, values) for client in clients for _ in range(2)]
    assert len({stream.nonce for stream in streams}) == 4
    for number, one in enumerate(streams):
        for other in streams[:number]:
            assert (one.values == other.values).mean() < 0.001


def test_the_policy_sets_the_minimum_of_an_aggregate(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """`min-other-sites` is the fewest other sites of an aggregate, as the file is now."""
    path = policy_of(dataset)
    total, sums, clear = added([update(name) for name in NAMES])
    with serving(domain, dataset, address, policy=path), VaultClient(address) as vault:
        policy = SitePolicy.load(path)
        path.write_text(replace(policy, min_other_sites=3).to_yaml())
        with pytest.raises(VaultError, match="is of 3 sites, and the policy requires 4"):
            unmask(vault, ROUND, total, sums, membership(*NAMES))
        path.write_text(replace(policy, min_other_sites=2).to_yaml())
        np.testing.assert_array_equal(unmask(vault, ROUND, total, sums, membership(*NAMES)), clear)


def test_a_round_too_large_for_any_network_is_refused(vault: VaultClient):
    """An announced size costs no memory."""
    huge = replace(ROUND, length=2**31)
    with pytest.raises(VaultError, match="is too large"):
        vault.mask(huge.to_json(), 1, np.zeros(1, RING.dtype))


def test_statements_are_of_the_member_who_signs():
    """A control of the tests' own proofs: they are real."""
    given = proof("east")
    assert isinstance(given.statement, Statement)
    given.require(members.run_of(certified_as("east").domain.card(), NONCE))
