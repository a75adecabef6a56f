"""A vault that cannot start fails in one line, and leaves nothing."""

from pathlib import Path

import pytest
from vaults import NotReadyError, site_vault

from fedpp.config.site_policy import starting_text
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys.key_domain import KeyDomain


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
        ("--address", "unix:/proc/vault.sock", "cannot make a socket at /proc/vault.sock"),
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
    for _ in range(2):
        told = refusal(domain, dataset, address, "--audit-log", log, *wrong)
        assert said in told
        assert (told.count("\n"), told.startswith("fedpp-site vault: ")) == (1, True)
        assert not log.exists()
    with site_vault(domain, dataset, address, "--audit-log", log):
        pass
    before = log.read_bytes()
    assert refusal(domain, dataset, address, "--audit-log", log, *wrong).count("\n") == 1
    assert log.read_bytes() == before != b""


def test_a_log_without_a_folder_is_refused(domain: KeyDomain, dataset: EncryptedDataset, address: str, tmp_path: Path):
    """The folder is created by those who decide who may read it."""
    log = tmp_path / "none" / "audit.jsonl"
    said = f"fedpp-site vault: the folder of the audit log {log} does not exist: create it first\n"
    assert refusal(domain, dataset, address, "--audit-log", log) == said
    assert not log.parent.exists()
