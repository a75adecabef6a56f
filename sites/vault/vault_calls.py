"""Record of one call of the vault: each call ends in one line of the log and of the audit log.

`who` is the common name of the client's certificate, or of a Unix socket's caller the user and process number that the
kernel states (`sites.vault.peer_check`). `claims` are those that the caller states, unchecked.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from fedpp.errors import ConfigError, FederationError, FedppError, VaultError
from fedpp.texts import one_line
from fedpp.vault_api.vault_connection import CLAIMS

from .peer_check import named_peer

REPLIED = "replied"
MAX_DETAILS, MAX_TEXT, MAX_WHO, MAX_CLAIMS = 500, 300, 64, 64  # characters
MAX_BYTES = 800  # of a caller's text in JSON, which has up to 12 bytes a character; a longer one is shortened

_log = logging.getLogger("fedpp.vault")

Append = Callable[[Mapping[str, Any]], None]


class Call:
    """Facts about a running call; `end` records them, once."""

    def __init__(self, method: str, context: grpc.ServicerContext, append: Append) -> None:
        self._append, self._ended = append, False
        self._facts: dict[str, str | int] = {"method": method, "who": _who(context), "claims": _claims(context)}

    def add(self, **facts: str | int) -> None:
        """Add facts to the record: nothing that identifies a patient."""
        self._facts |= facts

    def reply(self, size: int, **facts: str | int) -> None:
        """Record a reply of `size` bytes, before they leave."""
        self.add(bytes=size, **facts)
        self.end(REPLIED)
        shown = (f"{k} {v}" for k, v in self._facts.items() if k not in {"method", "who", "claims"} and v != "")
        _log.info("%s: %s", self._facts["method"], one_line(", ".join(shown)))

    def end(self, outcome: str) -> None:
        """Record the call unless that is done; raise `VaultError` if it cannot be recorded."""
        if not self._ended:
            fitting = {
                k: _short(v) if isinstance(v, str) and len(json.dumps(v)) > MAX_BYTES else v
                for k, v in self._facts.items()
            }
            self._append({**fitting, "outcome": outcome})
            self._ended = True


@contextmanager
def recording(method: str, context: grpc.ServicerContext, append: Append) -> Iterator[Call]:
    """Record a call; refuse it with the line of a `FedppError`, and without details after any other error."""
    # gRPC ends a call that raises with the status set here, in place of the exception's text, and logs the rest.
    context.set_code(grpc.StatusCode.INTERNAL)
    context.set_details("the vault failed: its own log says where")
    call = Call(method, context, append)
    try:
        yield call
    except FedppError as error:
        _refuse(call, method, context, error)
    except grpc.RpcError:
        _end(call, "incomplete: the caller left, sent too much, or nothing for too long")
        raise
    except Exception as error:
        _end(call, f"failed: {type(error).__name__}")
        raise
    context.set_code(grpc.StatusCode.OK)
    context.set_details("")


def record_refused(who: str, connections: int, append: Append) -> None:
    """Record refused connections, which reach no method; log a failure to do so."""
    outcome = "refused: this user may not connect, see --allow-user"
    _log.warning("connection of %s %s", who, outcome)
    try:
        append({"method": "Connect", "who": who, "claims": "", "connections": connections, "outcome": outcome})
    except VaultError as unwritable:
        _log.warning("refused connections were not recorded: %s", one_line(str(unwritable)))


def _refuse(call: Call, method: str, context: grpc.ServicerContext, error: FedppError) -> None:
    reason = str(error)
    try:
        call.end(_short(reason))
    except VaultError as unwritable:
        reason = str(unwritable)
    _log.warning("%s refused: %s", method, _short(reason))
    of_caller = isinstance(error, ConfigError | VaultError | FederationError)
    code = grpc.StatusCode.INVALID_ARGUMENT if of_caller else grpc.StatusCode.FAILED_PRECONDITION
    context.abort(code, reason[:MAX_DETAILS])  # gRPC drops what is longer than its headers may be


def _end(call: Call, outcome: str) -> None:
    try:
        call.end(outcome)
    except VaultError as unwritable:  # there is no reply in any case
        _log.warning("a call was not recorded (%s): %s", outcome, one_line(str(unwritable)))


def _short(text: str) -> str:
    """Return a text as one line of bounded length in JSON, so that no caller makes its record too long to write."""
    return one_line(text).encode("ascii", "replace").decode()[:MAX_TEXT]


def _who(context: grpc.ServicerContext) -> str:
    for name in context.auth_context().get("x509_common_name", ()):
        if isinstance(name, bytes):
            return _short(name.decode(errors="replace"))[:MAX_WHO]
    return named_peer(context.peer()) or "unix socket"  # of this user, at gRPC's own socket


def _claims(context: grpc.ServicerContext) -> str:
    for name, value in context.invocation_metadata():
        if name == CLAIMS and isinstance(value, str):
            return _short(value)[:MAX_CLAIMS]
    return ""
