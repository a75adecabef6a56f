"""Heads of audit logs: what peers remember of a log shows that it was cut or forked."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hospital import error_of, site
from run_contracts import Cohort, hashed
from run_hospitals import DOMAIN, Coordinator, Hospital, contract_of, opened

from fedpp.errors import VaultError
from sites.vault.audit import peer_heads
from sites.vault.audit.audit_log import AuditLog, Signer
from sites.vault.masked_runs.run_member import RunMember

RECORD = {"method": "Info", "who": "unix socket", "outcome": "replied"}


def logged(hospital: Hospital, path: Path, opened_logs: ExitStack) -> AuditLog:
    """Let a hospital's vault name the heads of a log in its statements; its calls are logged as here."""
    log = AuditLog.open(path, Signer.of(hospital.site.identity))
    opened_logs.callback(log.close)

    def head() -> tuple[int, str]:
        log.append(RECORD)
        return log.head

    parts = (hospital.site, hospital.dataset, hospital.journal)
    hospital.vault = RunMember(*parts, policy=hospital.policy, log_head=head, now=lambda: hospital.now)
    return log


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Return East's log after a started run, the folder of its certificate, and North's folder of runs, in use."""
    with opened(tmp_path / "hospitals") as cohort, ExitStack() as logs:
        for hospital in cohort:
            logged(hospital, tmp_path / f"{hospital.name}.jsonl", logs)
        Coordinator(cohort, contract_of(cohort)).begin()
        east, north = cohort[:2]
        (tmp_path / "site.certificate").write_text(east.site.certificate.to_json())
        (tmp_path / "domain.card").write_text(DOMAIN.card().to_json())
        yield tmp_path / "East.jsonl", tmp_path / "site.certificate", north.folder


def test_a_peer_s_heads_show_a_whole_log_a_cut_and_a_fork(run: tuple[Path, Path, Path], tmp_path: Path):
    """What North's running vault stored fits East's log; a log that ends before does not."""
    log, certificate, runs = run
    printed = site("audit-log", "heads", runs).stdout.splitlines()
    assert [line.partition("  ")[0] for line in printed] == ["East", "North", "South"]
    assert printed[0].startswith("East  3 records, head ")
    remembered = tmp_path / "north.json"
    remembered.write_text(site("audit-log", "heads", runs, "--json").stdout)
    assert list(json.loads(remembered.read_text())["East"]) == ["2", "3"]

    options = ("--certificate", certificate, "--heads", remembered)
    assert "heads that a peer remembers  2" in site("audit-log", "verify", log, *options).stdout
    lines = log.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(lines[:2]))
    site("audit-log", "verify", cut, "--certificate", certificate)  # nothing else shows it
    expected = "it ends at line 2, and a peer remembers line 3: it was cut"
    assert expected in error_of("audit-log", "verify", cut, *options)


def test_a_log_that_was_written_anew_is_found(run: tuple[Path, Path, Path], tmp_path: Path):
    """A cut log that is continued has other records where peers remember the first ones."""
    log, certificate, runs = run
    (tmp_path / "north.json").write_text(site("audit-log", "heads", runs, "--json").stdout)
    with opened(tmp_path / "again") as cohort:
        forked = AuditLog.open(tmp_path / "forked.jsonl", Signer.of(cohort[0].site.identity))
        for _ in range(9):
            forked.append(RECORD)
        forked.close()
    options = ("--certificate", certificate, "--heads", tmp_path / "north.json")
    assert log.exists()
    line = error_of("audit-log", "verify", tmp_path / "forked.jsonl", *options)
    assert line.endswith("forked.jsonl: line 2 is another than a peer remembers: the log was forked")


def test_two_statements_of_one_number_and_two_records_are_a_fork():
    """Over several contracts, a log has one record of each number; the same head twice is no fork."""
    one, other = Cohort.of(3), Cohort.of(3, nonce=hashed("another run"))
    name = one.members[0].name
    first = one.sign(name, "accept", log_records=17, log_head=hashed("a"))
    same = other.sign(name, "accept", log_records=17, log_head=hashed("a"))
    assert peer_heads.heads_of([first, same]) == {name: {17: hashed("a")}}
    forked = other.sign(name, "coin", log_records=17, log_head=hashed("b"))
    with pytest.raises(VaultError, match=f"the audit log of {name} was forked: two of its statements name another rec"):
        peer_heads.heads_of([first, forked])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot read the heads in"),
        ('{"West": {}}', "has no head of East: the peer stored no statement of it"),
        ('{"East": {"x": "00"}}', "cannot read the heads in"),
        ('{"East": {"3": "00"}}', "a head is a hash of 64 hexadecimal digits"),
    ],
)
def test_a_file_that_holds_no_heads_is_named(tmp_path: Path, text: str, reason: str):
    """Each is one line."""
    (tmp_path / "heads").write_text(text)
    with pytest.raises(VaultError, match=reason):
        peer_heads.load(tmp_path / "heads", "East")


def test_heads_need_the_log_s_site_and_a_folder_of_runs(run: tuple[Path, Path, Path], tmp_path: Path):
    """Without a certificate nobody knows whose heads to compare; another folder has no statements."""
    log, _, _ = run
    assert "--heads needs --certificate" in error_of("audit-log", "verify", log, "--heads", log)
    assert "cannot read the statements in" in error_of("audit-log", "heads", tmp_path)
