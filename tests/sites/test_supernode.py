"""The site's node: its identity, what it refuses to start with, and that it ends completely."""

import signal
import socket
import stat
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from hypothesis import given
from hypothesis import strategies as st
from test_deployment import COORDINATOR, SITE, call, free_port, processes_of, serving

from coordinator.certificates import ensure
from fedpp.config import SiteConfig, to_toml
from fedpp.errors import ConfigError
from sites.supernode import PRIVATE_KEY, create_identity, join

TEXT = st.text(min_size=1)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SiteConfig]:
    """Return a site whose dataset, key and vault look as if they were there."""
    (tmp_path / "dataset").mkdir()
    (tmp_path / "domain.eval").touch()
    with tempfile.TemporaryDirectory(prefix="fedpp-") as folder, socket.socket(socket.AF_UNIX) as vault:
        vault.bind(f"{folder}/vault.sock")
        yield SiteConfig("a", tmp_path / "dataset", tmp_path / "domain.eval", f"unix:{folder}/vault.sock")


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Run a coordinator; return its address and its state."""
    folder, port = tmp_path_factory.mktemp("coordinator"), free_port()
    up = [*COORDINATOR, "up", "--state", str(folder / "state"), "--port", str(port)]
    with serving(folder / "up.log", up, "ready"):
        yield f"127.0.0.1:{port}", folder / "state"


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """Return the certificate of a new authority."""
    return ensure(tmp_path / "tls", []).ca


def command(superlink: str, ca: Path, identity: Path, site: SiteConfig) -> list[str]:
    return [
        *(*SITE, "join", "--name", site.name, "--superlink", superlink, "--ca", str(ca)),
        *("--identity", str(identity), "--dataset", str(site.dataset)),
        *("--evaluation-key", str(site.evaluation_key), "--vault", site.vault),
    ]


def test_identity_is_a_p384_key_pair(tmp_path: Path) -> None:
    """The key pair is ECDSA P-384 in SSH formats, its private half for the owner alone."""
    public = create_identity(tmp_path / "identity")
    private = tmp_path / "identity" / PRIVATE_KEY
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key = load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert load_ssh_public_key(public.read_bytes()) == key.public_key()


def test_identity_is_not_overwritten(tmp_path: Path) -> None:
    """A second identity in one folder is refused with one line, and the first stays."""
    create_identity(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    done = call([*SITE, "identity", "--out", str(tmp_path)], status=1)
    (line,) = done.stderr.splitlines()
    assert line == (
        f"fedpp-site identity: {tmp_path / PRIVATE_KEY} is there already: "
        "choose another --out, keys are not overwritten"
    )
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@given(TEXT, TEXT, TEXT, TEXT)
def test_node_config_keeps_every_character(name: str, dataset: str, key: str, vault: str) -> None:
    """Spaces, quotes and control characters in addresses reach the ClientApp unchanged."""
    site = SiteConfig(name, Path(dataset), Path(key), vault)
    assert SiteConfig.from_mapping(tomllib.loads(to_toml(site.to_mapping()))) == site


@pytest.mark.parametrize("missing", ["superlink", "ca", "identity", "dataset", "key", "vault"])
def test_join_refuses_what_is_missing(tmp_path: Path, site: SiteConfig, ca: Path, missing: str) -> None:
    """Every input that is missing is named before anything starts."""
    identity, superlink = create_identity(tmp_path / "identity").parent, "127.0.0.1:8000"
    nowhere = tmp_path / "nowhere"
    if missing == "superlink":
        superlink = "127.0.0.1"
    elif missing == "ca":
        ca = nowhere
    elif missing == "identity":
        identity = nowhere
    elif missing == "dataset":
        site = replace(site, dataset=nowhere)
    elif missing == "key":
        site = replace(site, evaluation_key=nowhere)
    else:
        site = replace(site, vault=f"unix:{nowhere}")
    expected = "--superlink must be HOST:PORT, got '127.0.0.1'" if missing == "superlink" else str(nowhere)
    with pytest.raises(ConfigError) as raised:
        join(superlink, ca, identity, site)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_two_nodes_wait_side_by_side_and_end(tmp_path: Path, site: SiteConfig, ca: Path) -> None:
    """Two nodes of one machine wait for a coordinator that is not there yet; a signal ends both, status 0."""
    address = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        for name in "ab":
            identity = create_identity(tmp_path / name).parent
            start = command(address, ca, identity, replace(site, name=name))
            stack.enter_context(serving(tmp_path / f"{name}.log", start, "Uvicorn running on", signal.SIGINT))
        assert len(processes_of(tmp_path, "bin/flower-supernode")) == 2
        assert len(processes_of(tmp_path, "bin/flower-superexec")) == 2
    assert processes_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("wrong", "reason"), [("key", "Failed to activate SuperNode"), ("authority", "CERTIFICATE_VERIFY_FAILED")]
)
def test_strangers_do_not_meet(
    tmp_path: Path, coordinator: tuple[str, Path], site: SiteConfig, ca: Path, wrong: str, reason: str
) -> None:
    """SuperLink turns a key away that was not enrolled, and a site a SuperLink of another authority."""
    address, state = coordinator
    public = create_identity(tmp_path / "identity")
    if wrong != "key":
        call([*COORDINATOR, "enrol", "--state", str(state), str(public), "a"])
    trusted = ca if wrong == "authority" else state / "tls" / "ca.pem"
    done = call(command(address, trusted, public.parent, site), status=1)
    assert reason in done.stderr
    assert done.stderr.splitlines()[-1].startswith("fedpp-site join: the SuperNode ended by itself")
    assert processes_of(tmp_path) == {}
