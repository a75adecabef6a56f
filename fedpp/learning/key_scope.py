"""Key scope: the evaluation key under which a model is loaded, since saved configurations name only its domain.

::

    with layers.under(key.algebra()):
        model = keras.models.load_model(path)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from fedpp.cipher.components import Algebra
from fedpp.errors import DomainMismatchError, KeyFileError, ModelError

_CURRENT: ContextVar[Algebra | None] = ContextVar("algebra", default=None)


@contextmanager
def under(algebra: Algebra) -> Iterator[None]:
    """Use this algebra for all layers, losses and optimizers made from configurations in this block."""
    token = _CURRENT.set(algebra)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def describe(algebra: Algebra) -> dict[str, Any]:
    """Return the configuration entries that name an algebra. Law: `current` accepts them under it."""
    return {"n": algebra.n, "domain": algebra.domain}


def current(config: dict[str, Any]) -> Algebra:
    """Remove `describe`'s entries from a configuration and return the scope's algebra.

    Plaintext algebra has no key and needs no scope. Raises `KeyFileError` outside any scope, `DomainMismatchError`
    under another domain and `ModelError` under another n.
    """
    n, domain = config.pop("n"), config.pop("domain")
    if n == 1 and not domain:
        return Algebra.plaintext()
    algebra = _CURRENT.get()
    if algebra is None:
        raise KeyFileError(
            f"the model needs the evaluation key of domain {domain[:16]}: load it within `with layers.under(algebra):`"
        )
    if algebra.domain != domain:
        raise DomainMismatchError(
            f"the model belongs to domain {domain[:16]}, the key to {algebra.domain[:16]}: use the model's key"
        )
    if algebra.n != n:
        raise ModelError(
            f"the model has ciphertexts of n = {n}, the key of n = {algebra.n}: use the key of the model's domain"
        )
    return algebra
