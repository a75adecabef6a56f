"""Initial model of a run in clear (warm start): that of an earlier run, read before any request is sent to a site."""

from pathlib import Path

from fedpp.learning.model_file import EncryptedModel


def read(path: Path, domain: str) -> EncryptedModel:
    """Read a model.npz of the domain of this fingerprint; raise `ModelError` or `DomainMismatchError`."""
    model = EncryptedModel.load(path)
    model.require_fitting(domain, ())  # its classes are compared once the sites have described theirs
    return model
