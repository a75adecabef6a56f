"""Initial model of a run (warm start): the model of an earlier run, read before any request is sent to a site."""

from pathlib import Path

from fedpp.config.run_config import SEALED_SUFFIX
from fedpp.errors import ModelError
from fedpp.learning.model_file import EncryptedModel

InitialModel = bytes | EncryptedModel  # sealed, or in clear


def read(path: Path, domain: str) -> InitialModel:
    """Read a model.sealed, which the coordinator cannot unseal, or a model.npz of the domain of this fingerprint.

    Raises `ModelError` or, for a model of another domain, `DomainMismatchError`.
    """
    if path.suffix != SEALED_SUFFIX:
        model = EncryptedModel.load(path)
        model.require_fitting(domain, ())  # its classes are compared once the sites have described theirs
        return model
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror}; name a model.sealed or model.npz") from None
    if not content:
        raise ModelError(f"the model {path} is empty: copy it again from the earlier run's folder, or from a site")
    return content
