"""Site of a vault in masked runs: its keys, dataset, journal and policy, which all phases use."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from fedpp.cipher.components import Algebra
from fedpp.config.site_policy import SitePolicy
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import VaultError
from fedpp.key_material import subkey
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.key_store import Site
from fedpp.texts import one_line

from ..split_counts import SplitCounts
from .run_journal import RunJournal

_log = logging.getLogger("fedpp.vault")

LogHead = tuple[int, str]  # records of the audit log, and the hash of the newest


@dataclass(frozen=True, kw_only=True)
class JournalSite:
    """The site's keys, its journal, and the head of its audit log: enough to leave a run, without vault and data."""

    site: Site
    journal: RunJournal
    log_head: Callable[[], LogHead]
    now: Callable[[], datetime]
    contracts: dict[str, Any] = field(default_factory=dict)  # `AcceptedContract` by digest, as far as they were read

    @property
    def name(self) -> str:
        """Return the site's public name."""
        return self.site.identity.name

    @cached_property
    def digest_key(self) -> bytes:
        """Return the key epoch's key of digests of states and weights, which confirm no guess to an outsider."""
        return digest_key(self.site.domain)


@dataclass(frozen=True, kw_only=True)
class RunSite(JournalSite):
    """A site that takes part: also with its dataset, and its policy as it stands now."""

    dataset: EncryptedDataset
    policy: Callable[[], SitePolicy]

    @cached_property
    def counts(self) -> SplitCounts:
        """Return what counts predictions of the dataset."""
        return SplitCounts(self.site.domain, self.dataset)

    @cached_property
    def algebra(self) -> Algebra:
        """Return the algebra of the domain's rows."""
        return self.site.domain.computing_key().algebra()

    def own_secret(self, purpose: str, info: bytes) -> bytes:
        """Return 32 bytes that only this site can derive, for a purpose."""
        return subkey(self.site.identity.seed_bytes(), salt=f"fedpp run {purpose} 1".encode(), info=info)


def digest_key(domain: KeyDomain) -> bytes:
    """Return the key epoch's key of digests of states and weights."""
    return domain.derive("run states")


def refused(text: str, detail: str) -> VaultError:
    """Return the refusal of a fixed text; the vault's own log has the detail."""
    noted(detail)
    return VaultError(text)


def noted(detail: str) -> None:
    """Write a line to the vault's own log."""
    _log.warning("masked run: %s", one_line(detail))
