"""A vault on another machine serves callers with a certificate of its authority, and no others."""

import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import TINY
from hospital import error_of, site, site_process
from vaults import service, serving, site_vault, stopped

from fedpp.config.run_config import SiteConfig
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError, VaultError
from fedpp.keys.key_domain import KeyDomain
from fedpp.vault_api import vault_connection, vault_pb2, vault_pb2_grpc
from fedpp.vault_api.vault_channel import TlsFiles
from fedpp.vault_api.vault_client import VaultClient
from simulations.benchmarks.bench_vault import certified
from simulations.chaos.vault_process import NotReadyError
from sites.vault.audit.audit_log import AuditLog, Signer
from sites.vault.vault_server import serve


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `vault-tls` made."""
    folder = tmp_path_factory.mktemp("tls") / "made"
    site_process("vault-tls", "--out", folder, "--name", "localhost")
    return folder


@pytest.fixture
def port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def vault(domain: KeyDomain, dataset: EncryptedDataset, tls: Path, port: int, tmp_path: Path) -> Iterator[str]:
    """Return the address of a vault that serves over TLS, and logs to `log`."""
    log = AuditLog.open(tmp_path / "log", Signer.of(certified(domain, "north").identity))
    with serving(domain, dataset, f"localhost:{port}", tls=TlsFiles.read(tls / "vault"), audit=log):
        yield f"localhost:{port}"
    log.close()


def test_a_trainer_with_a_certificate_is_served(vault: str, tls: Path, tmp_path: Path):
    """All calls work, and the audit log has the certificate's common name; one text names address and folder."""
    with VaultClient(vault, tls / "trainer") as client:
        assert client.info().task.frames == 2
        assert len(client.initial_weights(TINY, 0, "float32")) == len(TINY.weights())
        assert client.evaluate("test", np.zeros((3, 2, 2))).examples == 3
    config = SiteConfig(tmp_path, tmp_path, f"{vault},tls={tls / 'trainer'}", tmp_path, tmp_path)
    with VaultClient(config.vault) as client:
        assert client.info().task.frames == 2
    _, *lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["who"] for line in lines] == ["trainer"] * 4
    assert site_process("health", vault, "--tls", tls / "trainer").stdout == "serving\n"


def test_others_are_not_served(vault: str, tls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a certificate, with another authority's, with the vault's own, and without TLS at all: no reply."""
    monkeypatch.setattr(vault_connection, "CONNECT_SECONDS", 0.5)
    site("vault-tls", "--out", tmp_path / "other", "--name", "localhost")
    (tmp_path / "mixed").mkdir()
    for file, source in {"ca.pem": tls, "cert.pem": tmp_path / "other", "key.pem": tmp_path / "other"}.items():
        (tmp_path / "mixed" / file).write_bytes((source / "trainer" / file).read_bytes())
    for folder in (tmp_path / "other" / "trainer", tmp_path / "mixed", tls / "vault"):
        with pytest.raises(VaultError, match=r"no vault answers at|went away"), VaultClient(vault, folder) as client:
            client.info()
        assert "no healthy vault at" in error_of("health", vault, "--tls", folder)
    authority = grpc.ssl_channel_credentials((tls / "trainer" / "ca.pem").read_bytes())
    for channel in (grpc.secure_channel(vault, authority), grpc.insecure_channel(vault)):
        with channel, pytest.raises(grpc.RpcError) as refused:
            vault_pb2_grpc.VaultStub(channel).Info(vault_pb2.InfoRequest(), timeout=5)
        assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_a_vault_under_another_name_is_refused(
    domain: KeyDomain, dataset: EncryptedDataset, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The certificate is for one host: a trainer that reaches it under another name sends nothing."""
    monkeypatch.setattr(vault_connection, "CONNECT_SECONDS", 0.5)
    site("vault-tls", "--out", tmp_path / "tls", "--name", "vault.example")
    files = TlsFiles.read(tmp_path / "tls" / "vault")
    with serving(domain, dataset, f"localhost:{port}", tls=files), pytest.raises(VaultError, match="no vault answers"):
        VaultClient(f"localhost:{port}", tmp_path / "tls" / "trainer").__enter__()


def test_tcp_without_certificates_is_refused(domain: KeyDomain, dataset: EncryptedDataset, port: int, tls: Path):
    """Neither side sends in clear, and certificates are refused where they protect nothing."""
    with pytest.raises(ConfigError, match=r"needs certificates: give --tls"):
        serve(service(domain, dataset), f"127.0.0.1:{port}", stop=stopped())
    with pytest.raises(ConfigError, match="leave --tls out for a Unix socket"):
        serve(service(domain, dataset), "unix:/nowhere/v.sock", tls=TlsFiles.read(tls / "vault"), stop=stopped())
    for address in (f"127.0.0.1:{port}", "dns:localhost:1", "localhost", "localhost:0", "http://localhost:1"):
        with pytest.raises(ConfigError, match="a vault's address is unix:/absolute/path.sock, or HOST:PORT,tls=FOLDER"):
            VaultClient(address)
    with pytest.raises(ConfigError, match="needs an absolute path after tls=, got 'trainer'"):
        VaultClient("localhost:1,tls=trainer")


def test_a_taken_port_is_not_shared(vault: str, domain: KeyDomain, dataset: EncryptedDataset, tls: Path):
    """A second vault is refused, and does not get half of the first one's callers."""
    with pytest.raises(NotReadyError) as refused, site_vault(domain, dataset, vault, "--tls", tls / "vault"):
        pass
    line = str(refused.value).splitlines()[-1]
    assert line.startswith(f"fedpp-site vault: cannot listen at {vault}: is the port taken")


def test_missing_and_damaged_certificates_are_named(
    domain: KeyDomain, dataset: EncryptedDataset, port: int, tmp_path: Path
):
    """An unreadable file is named; a file that is not PEM is no traceback."""
    with pytest.raises(ConfigError, match=f"cannot read {tmp_path}/ca.pem .*: `fedpp-site vault-tls` makes"):
        VaultClient("localhost:1", tmp_path)
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text("no PEM")
    with pytest.raises(NotReadyError) as refused, site_vault(domain, dataset, f"localhost:{port}", "--tls", tmp_path):
        pass
    assert "Traceback" not in str(refused.value)
    assert "are the certificates no PEM files?" in str(refused.value)


def test_certificates_are_created_once_and_private(tls: Path):
    """Every file is 0600; a second run changes nothing and is refused; so is an impossible host name."""
    files = {file: file.read_bytes() for file in tls.rglob("*") if file.is_file()}
    names = {str(file.relative_to(tls)) for file in files}
    assert names == {"ca.key", *(f"{who}/{n}.pem" for who in ("vault", "trainer") for n in ("ca", "cert", "key"))}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert "keys are not overwritten" in error_of("vault-tls", "--out", tls, "--name", "localhost")
    assert {file: file.read_bytes() for file in files} == files
    assert "must be a host name in ASCII" in error_of("vault-tls", "--out", tls / "new", "--name", "krankenhäuser")
    assert not (tls / "new").exists()
