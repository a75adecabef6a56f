"""Checks before a site joins: each is made by itself, and reports what to do if it fails.

`join` makes the same checks, and stops at the first that fails.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Generic, Literal, TypeVar

from cryptography import x509

from fedpp.cipher.domain_card import DomainCard
from fedpp.cipher.evaluation_key import AnyKey
from fedpp.config.run_config import SiteConfig
from fedpp.config.site_policy import SitePolicy, today
from fedpp.dataset.encrypted_dataset import EncryptedDataset, open_key
from fedpp.errors import ConfigError, FederationError, FedppError, UnreachableError
from fedpp.texts import counted
from fedpp.vault_api.vault_client import SiteInfo, VaultClient

from ..client.same_site import require_one_domain, require_one_site
from .node_identity import PRIVATE_KEY, require_coordinator, require_key
from .reachability import FLEET, MAX_AHEAD, MAX_BEHIND, OTHERS, Coordinator, Reply, clock_error

SOON = timedelta(days=30)  # before the end of a certificate

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Status = Literal["ok", "warn", "skip", "FAIL"]


class _Warning(Exception):  # noqa: N818  it ends a check, and is no error
    """A warning: the check passes, and its user should read this."""


@dataclass(frozen=True)
class CheckResult(Generic[T_co]):
    """The result of one check."""

    check: str
    status: Status
    message: str
    value: T_co | None = None  # for later checks
    error: FedppError | None = None  # of a check that failed


def examine(
    superlink: str, ca: Path, identity: Path, site: SiteConfig, *, domain: Path | None = None, deep: bool = False
) -> Iterator[CheckResult[object]]:
    """Yield the results of all checks, in the order in which `join` depends on them.

    A check whose input an earlier one did not get is skipped, and says so. With `domain` there is no vault yet, and
    the domain's card replaces it. If `deep`, every byte of the dataset is read.
    """
    yield _check("node key", lambda: _key(identity))
    yield from _check_coordinator(superlink, ca, identity)
    yield from _check_data(site, domain, deep=deep)


def _check(name: str, function: Callable[[], tuple[str, T]]) -> CheckResult[T]:
    """Run a check, which returns its message and its value."""
    try:
        message, value = function()
    except FedppError as error:
        return CheckResult(name, "FAIL", str(error), error=error)
    except _Warning as warning:
        return CheckResult(name, "warn", str(warning))
    return CheckResult(name, "ok", message, value)


def _skip(name: str, needs: str) -> CheckResult[object]:
    return CheckResult(name, "skip", f"it needs the {needs}")


def _key(identity: Path) -> tuple[str, None]:
    require_key(identity)
    return f"{identity / PRIVATE_KEY}, ECDSA P-384, for its owner alone", None


def _check_coordinator(superlink: str, ca: Path, identity: Path) -> Iterator[CheckResult[object]]:
    """Yield the checks of the coordinator; those after a failed one are skipped."""
    authority = _check("CA certificate", lambda: _authority(ca))
    yield authority
    port = _check("coordinator", lambda: _port(superlink, ca))
    yield port
    if authority.status == "FAIL" or isinstance(port.error, ConfigError):
        yield _skip("identity's coordinator", "CA certificate" if authority.status == "FAIL" else "coordinator")
    else:
        yield _check("identity's coordinator", lambda: _one_coordinator(identity, Coordinator.parse(superlink, ca)))
    coordinator = port.value
    if coordinator is None or authority.status == "FAIL":
        needs = "CA certificate" if authority.status == "FAIL" else "coordinator"
        yield from (_skip(name, needs) for name in ("coordinator's certificate", "Fleet API", "clock", "other paths"))
        return
    certificate = _check("coordinator's certificate", lambda: _certificate(coordinator))
    yield certificate
    if certificate.status == "FAIL":
        yield from (_skip(name, "coordinator's certificate") for name in ("Fleet API", "clock", "other paths"))
        return
    fleet = _check("Fleet API", lambda: _fleet(coordinator))
    yield fleet
    reply = fleet.value
    yield _check("clock", lambda: _clock(reply)) if reply is not None else _skip("clock", "Fleet API")
    yield _check("other paths", lambda: _other_paths(coordinator))


def _authority(ca: Path) -> tuple[str, None]:
    try:
        found = x509.load_pem_x509_certificate(ca.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"there is no certificate {ca}: ask the coordinator for its ca.pem") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read the certificate {ca}: {error.strerror}: name the coordinator's ca.pem, readable for this user"
        ) from None
    except ValueError:
        raise ConfigError(f"{ca} is no certificate in PEM: ask the coordinator for its ca.pem") from None
    now, begin, end = datetime.now(UTC), found.not_valid_before_utc, found.not_valid_after_utc
    if not begin <= now <= end:
        raise ConfigError(
            f"{ca} is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d} and not today: is this machine's clock right? "
            "else ask the coordinator for its new ca.pem"
        )
    return _until(end), None


def _port(superlink: str, ca: Path) -> tuple[str, Coordinator]:
    coordinator = Coordinator.parse(superlink, ca)
    coordinator.require_port()
    return f"{coordinator} answers", coordinator


def _one_coordinator(identity: Path, coordinator: Coordinator) -> tuple[str, None]:
    require_coordinator(identity, coordinator.identity())
    return "this identity was used with no other", None


def _certificate(coordinator: Coordinator) -> tuple[str, None]:
    return f"it is {coordinator.host}'s, {_until(coordinator.certificate_end())}", None


def _until(end: datetime) -> str:
    left = end - datetime.now(UTC)
    message = f"valid until {end:%Y-%m-%d}, {left.days} more days"
    if left < SOON:
        raise _Warning(f"{message}: ask the coordinator to renew it")
    return message


def _fleet(coordinator: Coordinator) -> tuple[str, Reply]:
    reply = coordinator.request("POST", FLEET)
    if reply.status in {502, 503, 504}:
        raise UnreachableError(
            f"the proxy at {coordinator} answers, and no SuperLink behind it: is the coordinator up?"
        )
    if reply.status in {403, 404}:
        raise FederationError(
            f"{coordinator} answers {reply.status} to {FLEET}: its proxy must let /v1/fleet/ pass; or it is no "
            "SuperLink"
        )
    return "it is let through", reply


def _clock(reply: Reply) -> tuple[str, None]:
    ahead = clock_error(reply)
    if ahead is None:
        raise _Warning("the coordinator's reply has no date: compare both clocks by hand")
    if not -MAX_BEHIND <= ahead <= MAX_AHEAD:
        which = "behind" if ahead < timedelta() else "ahead of"
        raise FederationError(
            f"this machine's clock is at least {abs(ahead).total_seconds():.0f} s {which} the coordinator's, which "
            f"refuses what is signed more than {MAX_AHEAD.seconds} s in its future or {MAX_BEHIND.seconds} s in its "
            "past: set both clocks (NTP)"
        )
    return "it agrees with the coordinator's", None


def _other_paths(coordinator: Coordinator) -> tuple[str, None]:
    if reached := [path for path in OTHERS if coordinator.request("GET", path).status != 403]:
        raise _Warning(
            f"{', '.join(reached)} can be reached: the coordinator's control interface is open to anybody who reaches "
            f"{coordinator}, and can start and stop runs by it; ask its staff to put their proxy in front"
        )
    return "the coordinator's proxy closes all paths but the Fleet API", None


def _check_data(site: SiteConfig, domain: Path | None, *, deep: bool) -> Iterator[CheckResult[object]]:
    opened = _check("dataset", lambda: _dataset(site, deep=deep))
    yield opened
    dataset = opened.value
    key_check = _check("evaluation key", lambda: _evaluation_key(site, dataset)) if dataset else None
    yield key_check or _skip("evaluation key", "dataset")
    vault_check = (
        _check("vault", lambda: _vault(site.vault)) if domain is None else _check("domain", lambda: _card(domain))
    )
    yield vault_check
    key, vault = key_check.value if key_check else None, vault_check.value
    if dataset is None or key is None or vault is None:
        yield _skip("one site", "dataset, evaluation key and vault")
    else:
        yield _check("one site", lambda: _one_site(key, dataset, vault))
    allowed = _check("policy", lambda: _policy(site.policy, dataset))
    yield allowed
    policy = allowed.value
    if policy is not None and dataset is not None:
        yield _check("split sizes", lambda: _split_sizes(policy, dataset))
    else:
        yield _skip("split sizes", "dataset and policy")
    yield _check("approvals", lambda: _approvals(policy)) if policy else _skip("approvals", "policy")
    yield _check("policy's owner", lambda: _owner(site.policy)) if policy else _skip("policy's owner", "policy")


def _dataset(site: SiteConfig, *, deep: bool) -> tuple[str, EncryptedDataset]:
    dataset = EncryptedDataset.open_with(site.dataset, site.at_rest_key)
    if deep:
        dataset.verify()
    how = "every byte is as it was written" if deep else "it opens; --deep reads every byte"
    return f"{dataset.manifest.fingerprint[:16]}, {counted(len(dataset), 'sequence')}, {how}", dataset


def _evaluation_key(site: SiteConfig, dataset: EncryptedDataset) -> tuple[str, AnyKey]:
    if dataset.manifest.scheme != "more-frame" and not site.evaluation_key.is_file():
        raise ConfigError(f"there is no evaluation key {site.evaluation_key}: `fedpp-site keygen` writes it")
    key = open_key(site.evaluation_key, dataset.manifest)
    return f"of domain {key.domain[:16]}", key


def _vault(address: str) -> tuple[str, SiteInfo | DomainCard]:
    with VaultClient(address) as vault:
        info = vault.info()
    return f"{info.site or 'a vault without a name'} answers at {address}", info


def _card(domain: Path) -> tuple[str, SiteInfo | DomainCard]:
    from fedpp.keys.key_store import CARD

    return f"{domain}, whose vault `join` starts", DomainCard.load(domain / CARD)


def _one_site(key: AnyKey, dataset: EncryptedDataset, vault: SiteInfo | DomainCard) -> tuple[str, None]:
    if isinstance(vault, DomainCard):
        require_one_domain(key, dataset, vault.fingerprint)
    else:
        require_one_site(key, dataset, vault)
    return "vault, evaluation key and dataset are of one domain, and the vault serves this dataset", None


def _policy(path: Path, dataset: EncryptedDataset | None) -> tuple[str, SitePolicy]:
    policy = SitePolicy.load(path)
    policy.require_current(today())
    if dataset is not None:
        policy.require_dataset(dataset.manifest.fingerprint)
    return f"{path} is read{' and lists this dataset' if dataset is not None else ''}", policy


def _split_sizes(policy: SitePolicy, dataset: EncryptedDataset) -> tuple[str, None]:
    if few := policy.evaluation.warning(dataset.patients()):
        raise _Warning(few)
    return f"each split is empty or has at least {policy.evaluation.min_patients} patients", None


def _approvals(policy: SitePolicy) -> tuple[str, None]:
    if not policy.bundles:
        raise _Warning(
            "no bundle is approved, so nothing may run yet: ask the coordinator for its bundle, then `fedpp-site "
            "review` and `fedpp-site approve` it"
        )
    return f"{len(policy.bundles)} bundle{'s' * (len(policy.bundles) > 1)} may run", None


def _owner(policy: Path) -> tuple[str, None]:
    if any(os.access(path, os.W_OK) for path in (policy, policy.parent)):
        raise _Warning(f"this user can write {policy}, so code that runs could approve other code: let another own it")
    return "another user's than this one", None
