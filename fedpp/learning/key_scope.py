"""The key while a model is loaded: configurations name its domain and never hold it.

::

    with scope.under(key.algebra()):
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
    """Let what is made from configurations in this block compute in this algebra."""
    token = _CURRENT.set(algebra)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def describe(algebra: Algebra) -> dict[str, Any]:
    """Return the entries of a configuration that say which algebra it needs. Law: `current` accepts them under it."""
    return {"n": algebra.n, "domain": algebra.domain}


def current(config: dict[str, Any]) -> Algebra:
    """Take `describe`'s entries out of a configuration and return the algebra of the scope that fits them.

    Plain numbers have no key and need no scope. Raises `KeyFileError` outside any scope, `DomainMismatchError` under
    another domain and `ModelError` under another n.
    """
    n, domain = config.pop("n"), config.pop("domain")
    if n == 1 and not domain:
        return Algebra.plaintext()
    algebra = _CURRENT.get()
    if algebra is None:
        raise KeyFileError(
            f"the model needs the evaluation key of domain {domain[:16]}: load it within `with scope.under(algebra):`"
        )
    if algebra.domain != domain:
        raise DomainMismatchError(
            f"the model belongs to domain {domain[:16]}, the key to {algebra.domain[:16]}: take the other"
        )
    if algebra.n != n:
        raise ModelError(f"the model has ciphertexts of n = {n}, the key of n = {algebra.n}: take the other")
    return algebra
