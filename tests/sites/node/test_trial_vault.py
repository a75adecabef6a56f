"""Trial vaults, which `join` starts: one user, one command, and a passphrase that no other user can read."""

import os
import pty
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from deployment import SITE, processes_of, wait_for
from hospital import error_of
from hospital import site as command
from vaults import FEW

from coordinator.operator.coordinator_certificates import ensure
from fedpp.config.site_policy import SitePolicy
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys import key_store
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.sealed_secret import Passphrase
from fedpp.processes import free_port
from simulations.benchmarks.bench_vault import certified
from sites.cli.site_cli import main
from sites.node.node_identity import create_identity
from sites.node.trial_vault import AUDIT_LOG

PASSPHRASE = b"correct horse battery staple"
WAITING = "note: SuperNode started; it logs to "


@pytest.fixture
def arguments(tmp_path: Path, domain: KeyDomain, dataset: EncryptedDataset) -> list[str]:
    """Return the arguments of `join` for a site with a trial vault, whose coordinator is offline."""
    key_store.join(tmp_path / "domain", certified(domain, "north"), Passphrase(PASSPHRASE, log2_cost=10))
    policy = tmp_path / "site.yaml"
    policy.write_text(SitePolicy((), (dataset.manifest.fingerprint,), evaluation=FEW).to_yaml())
    create_identity(tmp_path / "identity")
    (tmp_path / "passphrase").write_bytes(PASSPHRASE)
    (tmp_path / "passphrase").chmod(0o600)
    where = ("--superlink", f"127.0.0.1:{free_port()}", "--ca", ensure(tmp_path / "tls", []).ca)
    site = ("--identity", tmp_path / "identity", "--dataset", dataset.path, "--policy", policy)
    return [str(part) for part in (*where, *site, "--domain", tmp_path / "domain")]


def sent(way: str) -> tuple[list[str], dict[str, object], int | None]:
    """Return the arguments of `join` for the passphrase, those of `subprocess`, and a terminal to type at."""
    if way == "descriptor":
        reading, writing = os.pipe()
        os.write(writing, PASSPHRASE + b"\n")
        os.close(writing)
        return ["--passphrase-fd", str(reading)], {"pass_fds": (reading,)}, None
    ours, theirs = pty.openpty()
    return [], {"stdin": theirs, "start_new_session": True}, ours


@pytest.mark.parametrize("way", ["descriptor", "terminal"])  # a file: below
def test_one_command_starts_vault_and_trainer(tmp_path: Path, arguments: list[str], way: str) -> None:
    """The vault replies before the trainer starts; its socket is private; both end with `join`, status 0.

    However the passphrase is given, it stands in no process's arguments or environment. A site does not outlive its
    vault: if that is killed, `join` and all its processes end with status 1 and the reason.
    """
    more, options, terminal = sent(way)
    log = tmp_path / "log"
    with log.open("w") as output:
        join = subprocess.Popen(
            [*SITE, "join", *arguments, *more], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True, **options
        )
    ending = join.pid, signal.SIGTERM
    try:
        if terminal is not None:
            wait_for(log, join, "passphrase: ")
            os.write(terminal, PASSPHRASE + b"\n")
        wait_for(log, join, WAITING)
        running = processes_of(tmp_path)
        kinds = ("sites.cli.site_cli import", "sites.node.supernode_process", "sites.node.executor")
        (vault,), *others = ([number for number, text in running.items() if kind in text] for kind in kinds)
        assert all(others)
        if way == "terminal":
            ending = vault, signal.SIGKILL
        for process in running:
            shown = [(Path("/proc") / str(process) / name).read_bytes() for name in ("cmdline", "environ")]
            assert not [content for content in shown if PASSPHRASE in content]
        (ready,) = [line for line in log.read_text().splitlines() if line.startswith("vault ready at unix:")]
        assert stat.S_IMODE(Path(ready.partition("unix:")[2]).parent.stat().st_mode) == 0o700
        assert log.read_text().index("vault ready") < log.read_text().index(WAITING)
        for note in ("vault and trainer are one user here", "waiting for the coordinator: 127.0.0.1:"):
            assert f"note: {note}" in log.read_text()
        assert (tmp_path / "identity" / AUDIT_LOG).is_file()
    finally:
        os.kill(*ending)
        ended = join.wait(30)
    assert ended == (0 if way == "descriptor" else 1), log.read_text()
    reason = "fedpp-site join: the vault ended by itself: its messages above say why\n"
    assert log.read_text().endswith(reason) == (way == "terminal")
    assert processes_of(tmp_path) == {}


def test_a_site_does_not_start_without_its_vault(
    tmp_path: Path, arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """A wrong passphrase ends `join` and the vault, with status 1 and the reason."""
    (tmp_path / "passphrase").write_bytes(PASSPHRASE[::-1])
    assert main(["join", *arguments, "--passphrase-file", str(tmp_path / "passphrase")]) == 1
    printed = capfd.readouterr().err
    assert printed.endswith("fedpp-site join: the vault ended before it answered: its messages above say why\n")
    assert processes_of(tmp_path) == {}


def test_a_vault_is_given_or_started(arguments: list[str]) -> None:
    """Exactly one of --vault and --domain is given; a passphrase is for --domain alone, and a key for --vault."""
    for more in (("--vault", "unix:/v"), ()):
        given = [*arguments, *more] if more else arguments[:-2]
        assert len(command("join", *given, check=2).stderr.splitlines()) == 1
    other = [*arguments[:-2], "--vault", "unix:/v"]
    assert "a passphrase is for --domain" in error_of("join", *other, "--passphrase-fd", 3)
    assert "--evaluation-key is missing" in error_of("join", *other)
