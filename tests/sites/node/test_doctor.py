"""Checks before a site joins: each mistake is named, with what to do, and the other checks still run."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import vaults
from conftest import write_dataset
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from deployment import call
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from hospital import site as command
from hospital import site_process
from local_server import Handler, replying
from members import TOLD

from coordinator.operator import coordinator_certificates
from coordinator.operator.coordinator_certificates import Certificates, ensure
from fedpp import tls as parts
from fedpp.config.run_config import SiteConfig
from fedpp.config.site_policy import SitePolicy
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.flower.node_record import NodeRecord
from fedpp.keys.key_domain import KeyDomain
from fedpp.processes import free_port
from fedpp.vault_api import vault_connection
from sites.node.doctor import examine
from sites.node.node_identity import PRIVATE_KEY, create_identity
from sites.node.reachability import MAX_AHEAD, MAX_BEHIND, Reply, clock_error

CHECKS = (
    "node key",
    "CA certificate",
    "coordinator",
    "identity's coordinator",
    "coordinator's certificate",
    "Fleet API",
    "clock",
    "other paths",
    "dataset",
    "evaluation key",
    "vault",
    "one site",
    "policy",
    "split sizes",
    "approvals",
    "policy's owner",
)
AS_ROOT = {"policy's owner": "warn"}  # the tests' user can write the tests' policy


@dataclass(frozen=True)
class Given:
    """Arguments of the doctor."""

    superlink: str
    ca: Path
    identity: Path
    site: SiteConfig

    def found(self, *, deep: bool = False) -> dict[str, tuple[str, str]]:
        """Return status and text of each check."""
        results = examine(self.superlink, self.ca, self.identity, self.site, deep=deep)
        return {result.check: (result.status, result.message) for result in results}

    def arguments(self) -> tuple[object, ...]:
        site = ("--evaluation-key", self.site.evaluation_key, "--vault", self.site.vault, "--policy", self.site.policy)
        where = ("--superlink", self.superlink, "--ca", self.ca, "--identity", self.identity)
        return (*where, "--dataset", self.site.dataset, *site)


@contextmanager
def proxy(tls: Path, *, closed: bool = True, fleet: int = 415, ahead: timedelta | None = timedelta()) -> Iterator[str]:
    """Reply as a coordinator's proxy does: 403 to all but the Fleet API, with a date by a clock that is `ahead`."""

    class Proxy(Handler):
        def respond(self) -> None:
            date = {} if ahead is None else {"Date": format_datetime(datetime.now(UTC) + ahead, usegmt=True)}
            passed = self.path.startswith("/v1/fleet/")
            self.reply(fleet if passed else 403 if closed else 405, headers=date)

    with replying(Proxy, tls) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def given(tmp_path: Path, domain: KeyDomain, dataset: EncryptedDataset, address: str) -> Iterator[Given]:
    """Return a site without a fault, beside its vault and in front of a coordinator's proxy."""
    tls = ensure(tmp_path / "tls", [])
    create_identity(tmp_path / "identity")
    domain.evaluation_key().save(tmp_path / "domain.eval")
    policy = tmp_path / "site.yaml"
    policy.write_text(SitePolicy(("0" * 64,), (dataset.manifest.fingerprint,), evaluation=vaults.FEW).to_yaml())
    site = SiteConfig(dataset.path, tmp_path / "domain.eval", address, policy, tmp_path)
    with vaults.serving(domain, dataset, address), proxy(tls.folder) as superlink:
        yield Given(superlink, tls.ca, tmp_path / "identity", site)


def statuses(found: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    return {check: status for check, (status, _) in found.items()}


def fails(given: Given, check: str, reason: str, *skipped: str) -> None:
    """Assert that this check alone fails, for this reason, and that these checks are skipped."""
    found = given.found()
    assert found[check][0] == "FAIL"
    assert reason in found[check][1]
    assert "\n" not in found[check][1]
    others = {name: status for name, (status, _) in found.items() if name != check}
    ok = dict.fromkeys(set(CHECKS) - {check, *skipped}, "ok")
    assert others == {**ok, **dict.fromkeys(skipped, "skip"), **AS_ROOT}


def test_every_check_of_a_faultless_site_passes(given: Given) -> None:
    """All checks are made, in the order in which `join` needs them; TensorFlow is not loaded; status 0."""
    found = given.found(deep=True)
    assert tuple(found) == CHECKS
    assert statuses(found) == {**dict.fromkeys(CHECKS, "ok"), **AS_ROOT}
    lines = site_process("doctor", *given.arguments()).stdout.splitlines()
    assert [line.split(": ")[0].split(maxsplit=1) for line in lines] == [
        [AS_ROOT.get(check, "ok"), check] for check in CHECKS
    ]
    results = json.loads(command("doctor", *given.arguments(), "--json").stdout)
    assert [result["check"] for result in results] == list(CHECKS)


def test_nothing_heavy_is_loaded() -> None:
    """The doctor needs neither TensorFlow nor Flower, and opens no image."""
    code = "import sys, sites.node.doctor; print({'tensorflow', 'keras', 'flwr', 'pydicom'} & set(sys.modules))"
    assert call([sys.executable, "-c", code]).stdout == "set()\n"


@pytest.mark.parametrize("wrong", ["none", "open to others", "P-256", "no key"])
def test_node_keys(given: Given, wrong: str) -> None:
    """A key that is missing, open to others, or of another kind has a message of its own."""
    key = given.identity / PRIVATE_KEY
    if wrong == "none":
        key.unlink()
    elif wrong == "open to others":
        key.chmod(0o640)
    elif wrong == "P-256":
        other = ec.generate_private_key(ec.SECP256R1())
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        key.write_bytes(other.private_bytes(*form))
    else:
        key.write_text("no key")
    reason = {"none": "there is no", "open to others": "run `chmod 600"}.get(wrong, "is no unencrypted ECDSA P-384 key")
    fails(given, "node key", reason)


def test_the_authority_s_certificate(given: Given, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that is no certificate and an expired one are named; the port is checked without it."""
    skipped = ("identity's coordinator", "coordinator's certificate", "Fleet API", "clock", "other paths")
    given.ca.write_text("none")
    fails(given, "CA certificate", "is no certificate in PEM", *skipped)
    given.ca.unlink()
    fails(given, "CA certificate", "there is no certificate", *skipped)
    monkeypatch.setattr(coordinator_certificates, "AUTHORITY_VALIDITY", timedelta(minutes=-1))
    past = ensure(tmp_path / "past", []).ca
    fails(replace(given, ca=past), "CA certificate", "and not today: is this machine's clock right?", *skipped)


def test_an_identity_of_another_coordinator(given: Given) -> None:
    """The identity was used with another coordinator: it is named, and the other checks are made."""
    NodeRecord(7, coordinator=TOLD.to_json()).save(given.identity)
    fails(given, "identity's coordinator", f"{given.identity} was used with the coordinator {TOLD}, not with 127.0.0.1")


def test_an_unreachable_coordinator(given: Given) -> None:
    """A port without a server and a name without an address have different messages."""
    skipped = ("coordinator's certificate", "Fleet API", "clock", "other paths")
    fails(replace(given, superlink=f"127.0.0.1:{free_port()}"), "coordinator", "refused the connection", *skipped)
    fails(replace(given, superlink="nobody.invalid:8000"), "coordinator", "nobody.invalid has no address", *skipped)
    fails(
        replace(given, superlink="127.0.0.1"),
        "coordinator",
        "--superlink must be HOST:PORT",
        *skipped,
        "identity's coordinator",
    )


def test_splits_of_too_few_patients_are_warned_of(given: Given) -> None:
    """Each split that a run would refuse is named, with its number of patients and the least one."""
    given.site.policy.write_text(given.site.policy.read_text().replace("min-patients: 1\n", "min-patients: 4\n"))
    found = given.found()["split sizes"]
    assert found[0] == "warn"
    assert found[1].startswith("too few patients in validation (2), test (3): a run needs 4 in each split")


@pytest.mark.parametrize("wrong", ["authority", "name", "expired", "not yet valid"])
def test_certificates_of_coordinators(
    given: Given, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another authority, another name, and a time before or after the certificate's have four messages."""
    reason = {
        "authority": f"is of another authority than {given.ca}",
        "name": "is for hub.example and not for 127.0.0.1: call it by one of these names",
        "expired": "has expired",
        "not yet valid": "is not valid yet: is this machine's clock right?",
    }[wrong]
    if wrong == "name":
        monkeypatch.setattr(coordinator_certificates, "LOOPBACK", ())
    if wrong == "expired":
        monkeypatch.setattr(coordinator_certificates, "SERVER_VALIDITY", timedelta(seconds=-1))
    tls = ensure(tmp_path / "other", ["hub.example"])
    if wrong == "not yet valid":
        monkeypatch.setattr(parts, "CLOCK_SKEW", timedelta(hours=-1))
        again(tls)
    trusted = given.ca if wrong == "authority" else tls.ca
    with proxy(tls.folder) as superlink:
        bad = replace(given, superlink=superlink, ca=trusted)
        fails(bad, "coordinator's certificate", reason, "Fleet API", "clock", "other paths")


def again(tls: Certificates) -> None:
    """Issue the server's certificate again."""
    tls.server.unlink()
    ensure(tls.folder, ["hub.example"])


def test_a_certificate_that_ends_soon_is_a_warning(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less than 30 days left the check warns and passes."""
    monkeypatch.setattr(coordinator_certificates, "SERVER_VALIDITY", timedelta(days=29, hours=1))
    tls = ensure(tmp_path / "soon", [])
    with proxy(tls.folder) as superlink:
        found = replace(given, superlink=superlink, ca=tls.ca).found()
    assert statuses(found) == {**dict.fromkeys(CHECKS, "ok"), **AS_ROOT, "coordinator's certificate": "warn"}
    assert "29 more days: ask the coordinator to renew it" in found["coordinator's certificate"][1]


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (timedelta(seconds=-12), "clock is at least 1"),
        (timedelta(seconds=310), "clock is at least 3"),
        (timedelta(seconds=-2), None),
        (timedelta(seconds=290), None),
    ],
)
def test_clocks(given: Given, tmp_path: Path, theirs: timedelta, reason: str | None) -> None:
    """A clock by which SuperLink would refuse signatures fails the check; smaller differences do not."""
    with proxy(tmp_path / "tls", ahead=theirs) as superlink:
        ours = replace(given, superlink=superlink)
        if reason is None:
            assert ours.found()["clock"][0] == "ok"
        else:
            fails(ours, "clock", reason)
            assert ("ahead of" if theirs < timedelta() else "behind") in ours.found()["clock"][1]


@pytest.mark.parametrize(
    ("sent", "received", "ahead"), [(0.0, 0.5, 0.0), (0.9, 1.2, 0.0), (3.0, 3.5, 2.0), (-4.0, -3.5, -3.5)]
)
def test_the_clock_s_error_is_the_least_possible(sent: float, received: float, ahead: float) -> None:
    """The reply's date is in whole seconds, and was written between the request and the reply."""
    date = datetime(2026, 1, 1, tzinfo=UTC)
    reply = Reply(415, date, date + timedelta(seconds=sent), date + timedelta(seconds=received))
    assert clock_error(reply) == timedelta(seconds=ahead)


def test_the_clock_s_limits_are_flower_s() -> None:
    """The bounds are those of Flower."""
    assert (MAX_AHEAD.seconds, MAX_BEHIND.seconds) == (SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(403, "its proxy must let /v1/fleet/ pass"), (404, "or it is no SuperLink"), (502, "no SuperLink behind it")],
)
def test_a_fleet_api_that_does_not_answer(given: Given, tmp_path: Path, status: int, reason: str) -> None:
    """A proxy that lets nothing pass, another server, and a proxy in front of nothing have three messages."""
    with proxy(tmp_path / "tls", fleet=status) as superlink:
        fails(replace(given, superlink=superlink), "Fleet API", reason, "clock")


def test_an_open_control_interface_is_a_warning(given: Given, tmp_path: Path) -> None:
    """Without a proxy in front of SuperLink all passes, with a warning of what else can be reached."""
    with proxy(tmp_path / "tls", closed=False) as superlink:
        found = replace(given, superlink=superlink).found()
    assert statuses(found) == {**dict.fromkeys(CHECKS, "ok"), **AS_ROOT, "other paths": "warn"}
    assert found["other paths"][1].startswith("/v1/control/list-runs, /v1/runtime/acquire-task, /health can be reached")


def test_dataset_key_and_vault_must_fit_together(
    given: Given,
    tmp_path: Path,
    domain: KeyDomain,
    plaintext: tuple,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dataset that the vault does not serve, a key of another domain, and a missing vault are named."""
    other = write_dataset(tmp_path / "other", domain, (plaintext[0] + 1, plaintext[1]))
    given.site.policy.write_text(
        SitePolicy(("0" * 64,), (other.manifest.fingerprint,), evaluation=vaults.FEW).to_yaml()
    )
    served = replace(given, site=replace(given.site, dataset=other.path))
    fails(served, "one site", "its vault serves dataset")
    stranger = KeyDomain.of_secret(bytes(31) + b"\1", n=2)
    stranger.evaluation_key().save(tmp_path / "stranger.eval")
    fails(
        replace(served, site=replace(served.site, evaluation_key=tmp_path / "stranger.eval")), "one site", "belongs to"
    )
    too_long = replace(served, site=replace(served.site, vault=f"unix:/{107 * 'x'}"))
    fails(too_long, "vault", "has 108 bytes and is longer than 107 bytes", "one site")
    missing = replace(served, site=replace(served.site, vault=f"{address}.not"))
    monkeypatch.setattr(vault_connection, "CONNECT_SECONDS", 0.1)
    fails(missing, "vault", "no vault answers at", "one site")


def test_datasets(given: Given, dataset: EncryptedDataset) -> None:
    """A folder that is no dataset fails with its reason; a damaged byte is found by --deep alone."""
    shard = dataset.path / dataset.manifest.shards[0].file
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert given.found()["dataset"][0] == "ok"
    status, message = given.found(deep=True)["dataset"]
    assert status == "FAIL"
    assert str(shard) in message
    empty = replace(given, site=replace(given.site, dataset=given.identity))
    fails(empty, "dataset", "cannot read an encrypted dataset", "evaluation key", "one site", "split sizes")


def test_policies(given: Given, dataset: EncryptedDataset) -> None:
    """An expired policy, or one of another dataset, fails; one without a bundle is a warning with what to do."""
    listed = SitePolicy(("0" * 64,), (dataset.manifest.fingerprint,), evaluation=vaults.FEW)
    skipped = ("split sizes", "approvals", "policy's owner")
    for policy, reason in (
        (replace(listed, until=datetime(2020, 1, 1, tzinfo=UTC).date()), "this site's policy ended with 2020-01-01"),
        (replace(listed, datasets=("1" * 64,)), "does not list its dataset"),
    ):
        given.site.policy.write_text(policy.to_yaml())
        found = given.found()
        assert found["policy"][0] == "FAIL"
        assert reason in found["policy"][1]
        assert [found[check][0] for check in skipped] == ["skip"] * 3
    given.site.policy.write_text(replace(listed, bundles=()).to_yaml())
    found = given.found()
    assert statuses(found) == {**dict.fromkeys(CHECKS, "ok"), **AS_ROOT, "approvals": "warn"}
    assert "`fedpp-site review` and `fedpp-site approve`" in found["approvals"][1]


def test_a_failed_check_is_status_1(given: Given) -> None:
    """The other lines are printed, and nothing on stderr."""
    (given.identity / PRIVATE_KEY).unlink()
    done = command("doctor", *given.arguments(), check=1)
    assert len(done.stdout.splitlines()) == len(CHECKS)
    assert done.stdout.startswith("FAIL  node key: there is no")
    assert done.stderr == ""
