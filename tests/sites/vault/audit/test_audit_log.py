"""The audit log: one signed line a call; a changed, lost or forged line is found."""

import fcntl
import json
import os
import resource
import stat
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from hospital import error_of, site, site_process
from vaults import errors_of, serving, site_vault

from fedpp.config.site_policy import EvaluationLimits
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import VaultError
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.coordinator_identity import SIMULATED
from fedpp.protocol.membership import NO_BUNDLE, PROTOCOL
from fedpp.vault_api.vault_client import VaultClient
from fedpp.vault_api.vault_pb2 import ArrayChunk, EvaluateRequest
from simulations.benchmarks.bench_vault import certified
from simulations.chaos.vault_process import NotReadyError
from sites.vault.audit.audit_chain import verify
from sites.vault.audit.audit_log import AuditLog, Signer

LOGITS = np.zeros((3, 2, 2))  # of split test
NONCE = "0" * 64
OTHER = SiteIdentity("south", bytes([1]) * 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a log that is not there yet."""
    return tmp_path / "audit.jsonl"


@pytest.fixture
def signer(domain: KeyDomain) -> Signer:
    """Return the signer of a site."""
    return Signer.of(certified(domain, "north").identity)


@pytest.fixture
def short(path: Path, signer: Signer) -> Path:
    """Return a closed log of three records."""
    log = AuditLog.open(path, signer)
    log.append({"method": "Info", "who": "unix socket", "outcome": "replied", "bytes": 12})
    log.append({"method": "Evaluate", "who": "unix socket", "outcome": "there is no split 'x'"})
    log.close()
    return path


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def vault(domain: KeyDomain, dataset: EncryptedDataset, address: str, path: Path) -> Iterator[VaultClient]:
    """Return a client of a vault that logs."""
    log = AuditLog.open(path, Signer.of(certified(domain, "north").identity))
    with serving(domain, dataset, address, audit=log), VaultClient(address) as client:
        yield client
    log.close()


def test_every_call_is_one_signed_line(vault: VaultClient, domain: KeyDomain, dataset: EncryptedDataset, path: Path):
    """Each has its caller, request, bytes and outcome, refused and failed calls included."""
    vault.info()
    vault.initial_weights(TINY, 0, "float32")
    vault.sign(NONCE, "7", PROTOCOL, NO_BUNDLE, SIMULATED)
    vault.evaluate("test", LOGITS, "77", 3)
    for split, logits in (("x\ny", LOGITS), ("test", np.full((3, 2, 2), np.nan))):
        with pytest.raises(VaultError):
            vault.evaluate(split, logits, "77", 3)
    (shard,) = dataset.path.glob("labels-*")
    shard.rename(shard.with_suffix(".gone"))
    with pytest.raises(VaultError, match="refused"):
        vault.evaluate("test", LOGITS, "78", 3)
    begin, *lines = records(path)
    identity = certified(domain, "north").identity
    assert (begin["method"], begin["public_key"], begin["previous"]) == ("begin", identity.signing_key, "0" * 64)
    assert [line["method"] for line in lines] == ["Info", "InitialWeights", "Sign", *["Evaluate"] * 4]
    assert [line["number"] for line in lines] == list(range(1, 8))
    assert {(line["who"], line["claims"]) for line in lines} == {
        (f"uid {os.getuid()}, pid {os.getpid()}", f"uid {os.getuid()} pid {os.getpid()}")
    }
    assert [line["outcome"] for line in lines[:4]] == ["replied"] * 4
    assert lines[1]["bytes"] == sum(int(np.prod(spec.shape)) for spec in TINY.weights()) * 2 * 4
    assert lines[1]["parameters"] == TINY.parameters()
    assert (lines[2]["nonce"], lines[2]["bundle"]) == (NONCE, NO_BUNDLE)
    facts = {"run": "77", "round": 3, "split": "test", "samples": 3}
    assert facts.items() <= lines[3].items()
    assert lines[4]["outcome"] == r"there is no split 'x\ny': choose one of train, validation, test"
    assert "samples" not in lines[4]
    assert lines[5]["outcome"] == "the predictions are not finite: the training diverged; lower the learning rate"
    assert "replied" not in str(lines[6]["outcome"])
    pseudonyms = [row[name].decode() for row in dataset.sequences for name in ("id", "patient")]
    assert not any(pseudonym in str(line["outcome"]) for pseudonym in pseudonyms for line in lines)
    assert verify(path, public_key=identity.signing_key).records == 8


def test_no_caller_can_make_its_call_too_long_to_record(vault: VaultClient, path: Path):
    """The longest names, of characters that are long in JSON, are recorded as any other."""
    wide = "\U0001f600"
    with pytest.raises(VaultError, match="there is no split"):
        vault.evaluate(100_000 * wide, LOGITS, 64 * wide, 2**32 - 1)
    with pytest.raises(VaultError, match="round 4294967295 is beyond"):
        vault.evaluate("test", LOGITS, 64 * wide, 2**32 - 1)
    named = ArrayChunk(name=100_000 * wide, dtype="int8", shape=LOGITS.shape)
    request = EvaluateRequest(split="test", run=64 * wide, logits=named)
    with pytest.raises(VaultError, match="refused: an array is of"):
        vault._reply(vault._vault.Evaluate, iter([EvaluateRequest(split="test", run=64 * wide), request]), 20.0)
    _, first, second, third = records(path)
    assert (first["method"], second["run"], third["run"]) == ("Evaluate", 64 * wide, 64 * wide)
    assert "got '??" in str(third["outcome"])
    assert verify(path).records == 4


def test_the_head_is_the_hash_of_the_last_line(short: Path):
    """Anyone can take it with `sha256sum`, and each line holds that of the one before."""
    lines = short.read_bytes().splitlines(keepends=True)
    found = verify(short)
    assert (found.records, found.head) == (3, sha256(lines[-1]).hexdigest())
    assert [line["previous"] for line in records(short)[1:]] == [sha256(line).hexdigest() for line in lines[:-1]]


def test_the_file_is_for_its_owner_and_a_group_to_read(short: Path):
    """Its mode is 0640."""
    assert stat.S_IMODE(short.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("bits", "step"), [((0, 4, 6), 5), *(pytest.param((bit,), 1, marks=pytest.mark.slow) for bit in (0, 4, 6))]
)
def test_every_changed_byte_is_found(short: Path, signer: Signer, bits: tuple[int, ...], step: int):
    """Whichever byte of a log is flipped, the check names that line or the next, and the vault does not start on it."""
    content, whole = short.read_bytes(), len(short.read_bytes().splitlines())
    for position in (*range(0, len(content) - 1, step), len(content) - 1):
        changed = bytearray(content)
        changed[position] ^= 1 << bits[position % len(bits)]
        short.write_bytes(changed)
        line = content[:position].count(b"\n") + 1
        with pytest.raises(VaultError) as found:
            verify(short)
        refusal = str(found.value)
        assert refusal.startswith((f"{short}: line {line} ", f"{short}: line {line + 1} ")), (position, refusal)
        if position == len(content) - 1:
            continue  # a last line without its end is one that a loss of power tore
        with pytest.raises(VaultError, match=f"line ({line}|{line + 1}) "):
            AuditLog.open(short, signer)
        assert short.read_bytes() == changed
    assert whole == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"', b'{ "'),
        (b'{"', b'{"method":"Info","'),  # twice: which one counts depends on the reader
        (b'"outcome":"there', b'"outcome":"\\u0074here'),
        (b"\n", b" " * 5000 + b"\n"),
        (b'{"', b"[" * 3000 + b'{"'),
    ],
)
def test_a_record_has_one_form(short: Path, old: bytes, new: bytes):
    """Another text of the same values, or one that a reader fails on, is not a record, though signed."""
    *lines, last = short.read_bytes().splitlines(keepends=True)
    short.write_bytes(b"".join(lines) + last.replace(old, new, 1))
    with pytest.raises(VaultError, match="line 3 is not a record in canonical form"):
        verify(short)


def test_removed_moved_and_repeated_lines_are_found(short: Path):
    """By number and chain."""
    first, second, third = short.read_bytes().splitlines(keepends=True)
    for lines, bad in (
        ((first, third), "line 2 has number 2, expected 1: a line is missing or moved"),
        ((first, third, second), "line 2 has number 2"),
        ((first, second, second), "line 3 has number 1, expected 2"),
        ((second, third), "line 1 has number 1, expected 0"),
        ((), "line 1 is missing"),
    ):
        short.write_bytes(b"".join(lines))
        with pytest.raises(VaultError, match=bad):
            verify(short)


def test_a_line_of_another_key_is_found(short: Path, signer: Signer):
    """A forger with the log, but not its key, can neither continue it nor restart it under the site's certificate."""
    forged = AuditLog.open(short, Signer(signer.public_key, Signer.of(OTHER).sign))
    forged.append({"method": "Info", "outcome": "replied"})
    forged.close()
    with pytest.raises(VaultError, match="line 4 has a signature that is not by the log's key"):
        verify(short)
    with pytest.raises(VaultError, match="line 4 has a signature"):
        AuditLog.open(short, signer)
    with pytest.raises(VaultError, match="line 1 names the key"):
        verify(short, public_key="0" * 64)


def test_a_log_that_was_cut_does_not_hold_a_noted_head(short: Path):
    """Whole lines cut from the end are found with a later head that was noted, and not without."""
    head = verify(short).head
    assert verify(short, head=head).after_known_head == 0
    lines = short.read_bytes().splitlines(keepends=True)
    assert verify(short, head=sha256(lines[0]).hexdigest()).after_known_head == 2
    short.write_bytes(b"".join(lines[:-1]))
    assert verify(short).records == 2
    with pytest.raises(VaultError, match="no line has the hash .*: the log was cut, or is another one"):
        verify(short, head=head)


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_torn_line_is_cut_and_counted(step: int, short: Path, signer: Signer):
    """However much of the last line a loss of power left, the next start cuts it and records that; the log verifies."""
    content = short.read_bytes()
    start = content[:-1].rfind(b"\n") + 1
    for end in (*range(start + 1, len(content) - 1, step), len(content) - 1):
        short.write_bytes(content[:end])
        with pytest.raises(VaultError, match=f"line 3 is torn: {end - start} bytes"):
            verify(short)
        AuditLog.open(short, signer).close()
        assert verify(short).records == 3
        last = records(short)[-1]
        assert (last["method"], last["bytes"]) == ("cut", end - start)


def test_a_log_of_another_key_is_not_continued(short: Path):
    """A vault of another site, or under another key, needs a new log."""
    before = short.read_bytes()
    with pytest.raises(VaultError, match="is signed by another key, .*: start a new log"):
        AuditLog.open(short, Signer.of(OTHER))
    assert short.read_bytes() == before


def test_two_vaults_do_not_write_one_log(domain: KeyDomain, dataset: EncryptedDataset, address: str, path: Path):
    """The second does not start, in one line; when the first is gone, it does."""
    log = AuditLog.open(path, Signer.of(certified(domain, "north").identity))
    with pytest.raises(NotReadyError) as refused, site_vault(domain, dataset, address, "--audit-log", path):
        pass
    expected = f"fedpp-site vault: another vault writes to the audit log {path}: give each its own\n"
    assert str(refused.value) == expected
    log.close()
    with site_vault(domain, dataset, address, "--audit-log", path), VaultClient(address) as client:
        client.info()
    assert [line["method"] for line in records(path)] == ["begin", "Info"]


def test_who_may_read_the_log_cannot_hold_its_lock(short: Path, signer: Signer):
    """Its group can, in which the trainer is: a held lock would keep the vault from starting."""
    with short.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        AuditLog.open(short, signer).close()
    assert stat.S_IMODE(short.with_name(f".{short.name}.lock").stat().st_mode) == 0o600


@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
def test_a_log_is_a_file_of_its_own(what: str, path: Path, tmp_path: Path, signer: Signer):
    """Only a plain file is written to."""
    if what == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(VaultError, match="the audit log"):
        AuditLog.open(path, signer)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("room", [0, 40])
def test_no_reply_leaves_that_cannot_be_logged(
    room: int, domain: KeyDomain, dataset: EncryptedDataset, address: str, path: Path
):
    """A disk without space, for a line or for a half of it, refuses every call, and leaves the log as it was."""
    with site_vault(domain, dataset, address, "--audit-log", path) as process, VaultClient(address) as client:
        client.info()
        before = path.read_bytes()
        unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (len(before) + room, unlimited[1]))
        for call in (client.info, lambda: client.evaluate("test", LOGITS), lambda: client.evaluate("none", LOGITS)):
            with pytest.raises(
                VaultError, match="the audit log cannot be written .*: all calls are refused until it can"
            ):
                call()
        with pytest.raises(VaultError, match="cannot be written"):
            client.initial_weights(TINY, 0, "float32")
        assert "runs and cannot answer" in error_of("health", address)
        assert path.read_bytes() == before
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert client.evaluate("test", LOGITS).examples == 3
        assert site("health", address).stdout == "serving\n"
    assert [line["method"] for line in records(path)] == ["begin", "Info", "Evaluate"]
    assert verify(path).records == 3


def test_a_log_that_others_wrote_to_is_not_continued(path: Path, signer: Signer):
    """What is appended or cut while the vault runs stops its replies until it is restarted."""
    log = AuditLog.open(path, signer)
    with path.open("ab") as file:
        file.write(b"x")
    for _ in range(2):
        with pytest.raises(VaultError, match="was altered by another program: restart the vault"):
            log.append({"method": "Info", "outcome": "replied"})
    assert not log.writable
    log.close()


def test_a_closed_log_is_not_written_to(short: Path, signer: Signer):
    """A call that outlives the vault is refused, and writes into no file that was opened since."""
    log = AuditLog.open(short, signer)
    log.close()
    before = short.read_bytes()
    with short.with_name("other").open("wb") as other:  # gets the number of the closed file
        with pytest.raises(VaultError, match="the audit log is closed"):
            log.append({"method": "Info", "outcome": "replied"})
        assert other.tell() == short.with_name("other").stat().st_size == 0
    assert short.read_bytes() == before


def test_calls_of_many_threads_are_one_chain(path: Path, signer: Signer):
    """Lines are whole and in order, however many are written at once."""
    from concurrent.futures import ThreadPoolExecutor

    log = AuditLog.open(path, signer)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: log.append({"method": "Info", "outcome": "replied", "bytes": i}), range(300)))
    log.close()
    assert verify(path).records == 301
    assert sorted(line["bytes"] for line in records(path)[1:]) == list(range(300))


def test_limits_hold_across_a_restart(domain: KeyDomain, dataset: EncryptedDataset, address: str, path: Path):
    """The log's calls of the last day and of each round count after a kill."""
    options = ("--audit-log", path)
    limits = EvaluationLimits(min_patients=1, per_round=2, per_day=3)
    with site_vault(domain, dataset, address, *options, evaluation=limits) as process, VaultClient(address) as client:
        client.evaluate("test", LOGITS, "77", 1)
        client.evaluate("test", LOGITS, "77", 1)
        process.kill()
        process.join()
    with site_vault(domain, dataset, address, *options, evaluation=limits), VaultClient(address) as client:
        with pytest.raises(VaultError, match="evaluated 2 times in round 1 of run 77"):
            client.evaluate("test", LOGITS, "77", 1)
        client.evaluate("test", LOGITS, "77", 2)
        with pytest.raises(VaultError, match="3 evaluations were made within 24 hours"):
            client.evaluate("test", LOGITS, "77", 3)


def test_without_a_log_the_vault_says_so(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """A trial needs no log; a line says that its calls are lost, after one that it has no policy."""
    with site_vault(domain, dataset, address, "--no-policy") as process:
        process.terminate()
        process.join()
    policy, log = errors_of(dataset).read_text().splitlines()
    assert policy == ("--no-policy, for trials only: default limits, signatures for any app bundle, no masked runs")
    assert log == "no --audit-log: calls are logged on stderr only, and lost at a restart"


def test_the_command_verifies(short: Path, tmp_path: Path, domain: KeyDomain):
    """It prints count, times and head, and exits with 1 and one line at the first bad line.

    Without a certificate nobody vouches for the key that the log names: whoever forged all of it named its own.
    """
    found = verify(short)
    shown = json.loads(site_process("audit-log", "verify", short, "--head", found.head, "--json").stdout)
    assert shown == {
        "records": 3,
        "first": records(short)[0]["time"],
        "last": records(short)[-1]["time"],
        "head": found.head,
        "signed_by": f"{found.public_key} (as the log states it: give --certificate to check which site it is)",
        "records_after_head": 0,
    }
    lines = site("audit-log", "verify", short).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["records", "first", "last", "head", "signed"]
    assert lines[-1].endswith(
        f"{found.public_key} (as the log states it: give --certificate to check which site it is)"
    )
    certificate = tmp_path / "site.certificate"
    other = DomainCA(domain.ca_seed()).certify(OTHER.request(), domain.card())
    certificate.write_text(other.to_json() + "\n")
    (tmp_path / "domain.card").write_text(domain.card().to_json())
    line = error_of("audit-log", "verify", short, "--certificate", certificate)
    assert line.startswith(f"fedpp-site audit-log: {short}: line 1 names the key")
    short.write_bytes(short.read_bytes().replace(b"replied", b"refused"))
    assert "line 2 has a signature that is not by the log's key" in error_of("audit-log", "verify", short)
    assert "cannot read the audit log" in error_of("audit-log", "verify", tmp_path / "none")
    wrong = site("audit-log", "verify", short, "--head", "deadbeef", check=2).stderr
    assert "argument --head: must be 64 hex digits in lower case, got 'deadbeef'" in wrong
    assert wrong.count("\n") == 1


def test_a_log_by_a_site_s_identity_verifies_with_its_certificate(
    path: Path, tmp_path: Path, domain: KeyDomain, vault: VaultClient
):
    """The certificate names the site whose key signed."""
    vault.info()
    certificate = tmp_path / "site.certificate"
    certificate.write_text(certified(domain, "north").certificate.to_json())
    refused = error_of("audit-log", "verify", path, "--certificate", certificate)
    assert "cannot read the domain card" in refused
    (tmp_path / "domain.card").write_text(domain.card().to_json())
    shown = json.loads(site("audit-log", "verify", path, "--certificate", certificate, "--json").stdout)
    expected = f"north, {certified(domain, 'north').identity.signing_key}"
    assert (shown["records"], shown["signed_by"]) == (2, expected)


def test_a_certificate_of_another_ca_is_refused(short: Path, tmp_path: Path, domain: KeyDomain):
    """A forger of a log can write a certificate for its key, too: the domain's card shows that it is not one."""
    forger = SiteIdentity("north", bytes([9] * 32))
    forged = DomainCA(bytes([9] * 32)).certify(forger.request(), domain.card())
    (tmp_path / "site.certificate").write_text(forged.to_json())
    (tmp_path / "domain.card").write_text(domain.card().to_json())
    line = error_of("audit-log", "verify", short, "--certificate", tmp_path / "site.certificate")
    assert "the certificate of north was not made by domain" in line


@pytest.mark.parametrize("move", [lambda path: path.rename(path.with_name("moved")), lambda path: path.unlink()])
def test_a_log_that_was_moved_away_takes_no_more_calls(move: Callable[[Path], object], path: Path, vault: VaultClient):
    """A call that nobody would find is refused, and another log in its place is not used."""
    vault.info()
    move(path)
    for _ in range(2):
        with pytest.raises(VaultError, match="was moved or replaced: put it back, and restart the vault"):
            vault.info()
        path.write_text("")
