"""A vault that cannot start fails in one line, and leaves nothing."""

from pathlib import Path

import numpy as np
import pytest
from hospital import error_of, site_process
from vaults import errors_of, policy_of, site_vault, vault_arguments

from fedpp.config.site_policy import starting_text
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import VaultError
from fedpp.keys.key_domain import KeyDomain
from fedpp.protocol.coordinator_identity import SIMULATED
from fedpp.protocol.membership import PROTOCOL
from fedpp.vault_api.vault_client import VaultClient
from simulations.benchmarks.bench_vault import certified
from simulations.chaos.vault_process import NotReadyError
from sites.cli.vault_commands import NO_POLICY
from sites.vault.audit.audit_chain import verify


def refusal(domain: KeyDomain, dataset: EncryptedDataset, address: str, *options: object) -> str:
    """Return what a vault that does not start writes to stderr."""
    with pytest.raises(NotReadyError) as refused, site_vault(domain, dataset, address, *options):
        pass
    return str(refused.value)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--address", "{folder}/file", "must be unix:"),
        ("--address", "unix:{folder}/file", "is a file and no socket"),
        ("--address", "unix:vault.sock", "must be unix:/absolute/path.sock"),
        ("--address", "localhost:1", "needs certificates: give --tls"),
        ("--policy", "{folder}/file", "does not list its dataset"),
    ],
)
def test_a_vault_that_does_not_start_leaves_no_log(
    option: str, value: str, said: str, domain: KeyDomain, dataset: EncryptedDataset, address: str, tmp_path: Path
):
    """Each failure is one line, none of it gRPC's; an existing log stays, and is continued afterwards."""
    (tmp_path / "file").write_text(starting_text("0" * 64))
    log = tmp_path / "audit.jsonl"
    wrong = (option, value.format(folder=tmp_path))
    error = refusal(domain, dataset, address, "--audit-log", log, *wrong)
    assert said in error
    assert (error.count("\n"), error.startswith("fedpp-site vault: ")) == (1, True)
    assert not log.exists()
    with site_vault(domain, dataset, address, "--audit-log", log):
        pass
    before = log.read_bytes()
    for _ in range(2):  # the first leaves nothing that changes the second
        assert refusal(domain, dataset, address, "--audit-log", log, *wrong).count("\n") == 1
        assert log.read_bytes() == before != b""


def test_an_error_of_grpc_is_one_line(domain: KeyDomain, dataset: EncryptedDataset, tmp_path: Path):
    """A new process that cannot bind says so in one line, none of it gRPC's, and leaves no log."""
    log = ("--audit-log", tmp_path / "audit.jsonl")
    arguments = vault_arguments(certified(domain, "north"), dataset, "unix:/proc/vault.sock", *log)
    error = site_process("vault", *arguments, check=1).stderr
    assert error.startswith("fedpp-site vault: cannot make a socket at /proc/vault.sock")
    assert error.count("\n") == 1
    assert not (tmp_path / "audit.jsonl").exists()


def test_a_log_without_a_folder_is_refused(domain: KeyDomain, dataset: EncryptedDataset, address: str, tmp_path: Path):
    """The folder is created by those who decide who may read it."""
    log = tmp_path / "none" / "audit.jsonl"
    said = f"fedpp-site vault: the folder of the audit log {log} does not exist: create it first\n"
    assert refusal(domain, dataset, address, "--audit-log", log) == said
    assert not log.parent.exists()


NEEDED = (
    "a vault needs --policy site.yaml, which `fedpp-site policy` writes, and --audit-log FILE; for a trial give "
    "--no-policy in place of --policy"
)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), f"--policy and --audit-log missing: {NEEDED}"),
        (("--audit-log",), f"--policy missing: {NEEDED}"),
        (("--policy",), f"--audit-log missing: {NEEDED}"),
        (("--policy", "--no-policy"), "--no-policy is for a vault without --policy: leave one of them out"),
        (("--policy", "--audit-log", "--no-policy"), "--no-policy is for a vault without --policy: leave one of them"),
    ],
)
def test_policy_and_audit_log_are_needed_or_declined(
    given: tuple[str, ...], said: str, dataset: EncryptedDataset, address: str, tmp_path: Path
):
    """A forgotten option is one line, before keys are opened; only a trial does without, and says so."""
    paths = {"--policy": (policy_of(dataset),), "--audit-log": (tmp_path / "audit.jsonl",), "--no-policy": ()}
    options = [part for name in given for part in (name, *paths[name])]
    line = error_of("vault", "--domain", tmp_path / "none", "--dataset", dataset.path, "--address", address, *options)
    assert line.startswith(f"fedpp-site vault: {said}")
    assert not (tmp_path / "audit.jsonl").exists()


def test_a_trial_may_keep_a_log(domain: KeyDomain, dataset: EncryptedDataset, address: str, tmp_path: Path):
    """Without a policy one line says so; the calls are logged, and counts of few patients stay closed by default."""
    log = tmp_path / "audit.jsonl"
    with site_vault(domain, dataset, address, "--no-policy", "--audit-log", log), VaultClient(address) as client:
        assert client.sign("0" * 64, "7", PROTOCOL, "a" * 64, SIMULATED).statement.bundle == "a" * 64
        first, call = errors_of(dataset).read_text().splitlines()
        assert (first, "Sign" in call) == (f"--no-policy, for trials only: {NO_POLICY}", True)
        with pytest.raises(VaultError, match="has 3 patients, and counts of fewer than 10"):
            client.evaluate("test", np.zeros((3, 2, 2)))
    assert verify(log).records == 3
