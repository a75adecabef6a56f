"""The vault notifies systemd when it is ready and when it stops."""

import socket
from pathlib import Path

import pytest
from vaults import SECONDS, site_vault

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys.key_domain import KeyDomain
from sites.vault.sd_notify import notify


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_ready_and_stopping_are_notified(
    kind: str, domain: KeyDomain, dataset: EncryptedDataset, address: str, monkeypatch: pytest.MonkeyPatch
):
    """Systemd's socket, in the file system or abstract, gets READY=1 once the vault serves, and STOPPING=1."""
    name = str(Path(address.removeprefix("unix:")).parents[1] / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(SECONDS)
        systemd.bind(name if kind == "path" else f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", name if kind == "path" else f"@{name}")
        with site_vault(domain, dataset, address) as process:
            assert systemd.recv(100) == b"READY=1"
            process.terminate()
            assert systemd.recv(100) == b"STOPPING=1"
            process.join(SECONDS)
            assert process.exitcode == 0


@pytest.mark.parametrize("value", ["", "relative", "/nowhere/notify"])
def test_without_systemd_nothing_is_notified(value: str, monkeypatch: pytest.MonkeyPatch):
    """A vault that systemd did not start, or no longer listens to, continues."""
    monkeypatch.setenv("NOTIFY_SOCKET", value)
    notify("READY=1")
