"""The model of an earlier run, which a run may go on from. It is read before any site is asked."""

from pathlib import Path

from fedpp.config.run_config import SEALED_SUFFIX
from fedpp.errors import ModelError
from fedpp.learning.model_file import EncryptedModel

InitialModel = bytes | EncryptedModel  # sealed, or in clear


def read(path: Path, domain: str) -> InitialModel:
    """Read a model.sealed, which the coordinator cannot look into, or a model.npz of the domain of this fingerprint.

    Raises `ModelError` or, of a model of another domain, `DomainMismatchError`.
    """
    if path.suffix != SEALED_SUFFIX:
        model = EncryptedModel.load(path)
        model.require_fitting(domain, ())  # its classes are compared once the sites have told theirs
        return model
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror}; name a model.sealed or model.npz") from None
    if not content:
        raise ModelError(f"the model {path} is empty: take it from the earlier run's folder, or from a site, again")
    return content
