"""The lookup log: signed lines that name who asked for which pseudonyms; a changed line is found."""

import json
import os
import pwd
from contextlib import closing
from pathlib import Path

import pytest

from fedpp.errors import VaultError
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.site_identity import SiteIdentity
from simulations.benchmarks.bench_vault import certified
from sites.vault.audit import lookup_log
from sites.vault.audit.audit_chain import MAX_LINE_BYTES, verify
from sites.vault.audit.audit_log import AuditLog, Signer
from sites.vault.audit.lookup_log import LOG, MAX_PSEUDONYMS, record


@pytest.fixture
def identity(domain: KeyDomain) -> SiteIdentity:
    """Return the identity of a site."""
    return certified(domain, "north").identity


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def test_each_lookup_is_signed_with_its_user_and_its_pseudonyms(tmp_path: Path, identity: SiteIdentity):
    """Found and unknown pseudonyms have lines of their own, in their order, and no more than fit in a line."""
    found, unknown = [f"{i:032x}" for i in range(MAX_PSEUDONYMS + 3)], ["f" * 32]
    record(tmp_path, identity, "names", found, unknown)
    record(tmp_path, identity, "page", [], ["e" * 32])
    begin, *asked = lines(tmp_path)
    assert begin["method"] == "begin"
    assert [(line["outcome"], line["shown"], line["pseudonyms"]) for line in asked] == [
        ("found", "names", found[:MAX_PSEUDONYMS]),
        ("found", "names", found[MAX_PSEUDONYMS:]),
        ("unknown", "names", unknown),
        ("unknown", "page", ["e" * 32]),
    ]
    me = f"uid {os.getuid()} ({pwd.getpwuid(os.getuid()).pw_name})"
    assert all(line["who"].split(", ")[0] == me for line in asked)
    assert verify(tmp_path / LOG, public_key=identity.signing_key).records == 5


def test_the_longest_line_fits(tmp_path: Path, identity: SiteIdentity, monkeypatch: pytest.MonkeyPatch):
    """A line of as many pseudonyms as it may have, and of two long names of users, is below the log's bound."""
    (tmp_path / "login").write_text("4294967294\n")
    monkeypatch.setattr(lookup_log, "_LOGIN", tmp_path / "login")
    monkeypatch.setattr(lookup_log, "_name", lambda uid: f" ({'é' * 100})")
    record(tmp_path, identity, "names", ["f" * 32] * MAX_PSEUDONYMS, [])
    assert "login uid 4294967294 (é" in lines(tmp_path)[1]["who"]
    assert max(map(len, (tmp_path / LOG).read_bytes().splitlines())) < MAX_LINE_BYTES


@pytest.mark.parametrize(("before", "after"), [("ab" * 16, "cd" * 16), ("names", "pages"), ('"uid ', '"uie ')])
def test_a_changed_line_is_found(before: str, after: str, tmp_path: Path, identity: SiteIdentity):
    """Another pseudonym, purpose or user breaks the signature; nothing is added to such a log."""
    record(tmp_path, identity, "names", ["ab" * 16], [])
    record(tmp_path, identity, "names", ["0" * 32], [])
    log = tmp_path / LOG
    log.write_text(log.read_text().replace(before, after, 1))
    with pytest.raises(VaultError, match="line 2 has a signature that is not by the log's key"):
        verify(log)
    with pytest.raises(VaultError, match="line 3 does not match the line before it"):
        record(tmp_path, identity, "names", ["1" * 32], [])


def test_a_log_in_use_is_reported_in_words_of_a_lookup(tmp_path: Path, identity: SiteIdentity):
    """Two lookups at a time: the second says what to do, and writes nothing."""
    with closing(AuditLog.open(tmp_path / LOG, Signer.of(identity))), pytest.raises(VaultError) as refused:
        record(tmp_path, identity, "names", ["0" * 32], [])
    assert str(refused.value) == f"another lookup is writing {tmp_path / LOG}: try again when it has ended"
    record(tmp_path, identity, "names", ["0" * 32], [])
    assert len(lines(tmp_path)) == 2


def test_another_sites_log_is_not_continued(tmp_path: Path, identity: SiteIdentity):
    """A log is one site's."""
    record(tmp_path, identity, "names", ["0" * 32], [])
    with pytest.raises(VaultError, match="signed by another key"):
        record(tmp_path, SiteIdentity("south", bytes([1]) * 32), "names", ["0" * 32], [])
