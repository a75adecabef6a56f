"""Checks that an evaluation key, a dataset and a vault belong to one domain and one site."""

from fedpp.cipher.evaluation_key import AnyKey
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import DomainMismatchError, FederationError
from fedpp.vault_api.vault_client import SiteInfo


def require_one_domain(key: AnyKey, dataset: EncryptedDataset, vault: str) -> None:
    """Raise `DomainMismatchError` unless a key and a dataset are of the vault's domain, given by its fingerprint."""
    for what, domain in (("vault", vault), ("dataset", dataset.manifest.domain)):
        if domain != key.domain:
            raise DomainMismatchError(
                f"its {what} belongs to domain {domain[:16]}, its evaluation key to "
                f"{key.domain[:16]}: give the trainer the key, dataset and vault of one domain"
            )


def require_one_site(key: AnyKey, dataset: EncryptedDataset, info: SiteInfo) -> None:
    """Raise `FedppError` for a key, a dataset and a vault that do not belong together."""
    require_one_domain(key, dataset, info.domain)
    if info.dataset != dataset.manifest.fingerprint:  # the vault would count with another dataset's labels
        raise FederationError(
            f"its vault serves dataset {info.dataset[:16]}, its trainer reads "
            f"{dataset.manifest.fingerprint[:16]}: give both the same"
        )
