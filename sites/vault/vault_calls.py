"""One call of the vault, from its first message to its record: each ends in one line of the log, and of the audit.

"Who" is the common name of the client's certificate. Over a Unix socket gRPC tells no credentials: there it is "unix
socket", and what the caller says of itself, its user and process number, is kept as its `claims`, which nobody checked.
Who may connect to the socket at all is decided by the socket's permissions.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from fedpp.errors import ConfigError, FederationError, FedppError, VaultError
from fedpp.texts import one_line
from fedpp.vault_api.vault_client import CLAIMS

ANSWERED = "answered"
LONGEST_TOLD, LONGEST_OUTCOME, LONGEST_WHO, LONGEST_CLAIMS = 500, 300, 64, 64

_log = logging.getLogger("fedpp.vault")

Append = Callable[[Mapping[str, Any]], None]


class Call:
    """What is known of a call so far; `end` records it, once."""

    def __init__(self, method: str, context: grpc.ServicerContext, append: Append) -> None:
        self._append, self._ended = append, False
        self._facts: dict[str, str | int] = {"method": method, "who": _who(context), "claims": _claims(context)}

    def tell(self, **facts: str | int) -> None:
        """Add facts to the record: nothing that identifies a patient."""
        self._facts |= facts

    def answer(self, size: int, **facts: str | int) -> None:
        """Record that the call is answered, in `size` bytes: before they leave."""
        self.tell(bytes=size, **facts)
        self.end(ANSWERED)
        told = ", ".join(f"{k} {v}" for k, v in self._facts.items() if k not in {"method", "who", "claims"} and v != "")
        _log.info("%s: %s", self._facts["method"], told)

    def end(self, outcome: str) -> None:
        """Record the call, if it is not yet; raise `VaultError` if that cannot be."""
        if not self._ended:
            self._append({**self._facts, "outcome": outcome})
            self._ended = True


@contextmanager
def answering(method: str, context: grpc.ServicerContext, append: Append) -> Iterator[Call]:
    """Answer our own errors with their one line; of any other error the caller learns only that it happened."""
    # gRPC ends a call that raises with the status set here, in place of the exception's text, and logs the rest.
    context.set_code(grpc.StatusCode.INTERNAL)
    context.set_details("the vault failed: its own log says where")
    call = Call(method, context, append)
    try:
        yield call
    except FedppError as error:
        _refuse(call, method, context, error)
    except grpc.RpcError:
        _end(call, "ended before it was whole: the caller left, sent too much, or nothing for too long")
        raise
    except Exception as error:
        _end(call, f"failed: {type(error).__name__}")
        raise
    context.set_code(grpc.StatusCode.OK)
    context.set_details("")


def _refuse(call: Call, method: str, context: grpc.ServicerContext, error: FedppError) -> None:
    told = str(error)
    try:
        call.end(_short(told))
    except VaultError as unwritable:
        told = str(unwritable)
    _log.warning("%s refused: %s", method, _short(told))
    asked_wrongly = isinstance(error, ConfigError | VaultError | FederationError)
    code = grpc.StatusCode.INVALID_ARGUMENT if asked_wrongly else grpc.StatusCode.FAILED_PRECONDITION
    context.abort(code, told[:LONGEST_TOLD])  # gRPC drops what is longer than its headers may be


def _end(call: Call, outcome: str) -> None:
    try:
        call.end(outcome)
    except VaultError as unwritable:  # nothing is answered in any case
        _log.warning("a call that %s was not recorded: %s", outcome, unwritable)


def _short(text: str) -> str:
    """Return a text as one line whose length in JSON is bounded: no caller may make its record too long to write."""
    return one_line(text).encode("ascii", "replace").decode()[:LONGEST_OUTCOME]


def _who(context: grpc.ServicerContext) -> str:
    for name in context.auth_context().get("x509_common_name", ()):
        if isinstance(name, bytes):
            return _short(name.decode(errors="replace"))[:LONGEST_WHO]
    return "unix socket"


def _claims(context: grpc.ServicerContext) -> str:
    for name, value in context.invocation_metadata():
        if name == CLAIMS and isinstance(value, str):
            return _short(value)[:LONGEST_CLAIMS]
    return ""
