"""Flower's SuperNode, made to come back: its process ends when a part of it has, and says when to try again is no use.

Five things differ from `flower-supernode` (measured with 1.41):
- SuperLink counts a node that was killed as online for up to a minute, and lets it in again after that alone. Here
  the next process of the same identity, on the same machine, first says that the one before is gone: SuperLink then
  answers at once for what that one had been asked.
- SuperLink gives one reason for "not enrolled" and for "online". Here the two are told apart by the node's number,
  which is kept from the first time on, and the latter is waited for.
- A heartbeat that gets an unforeseen answer ends its thread and nothing else: SuperLink then takes a node for lost
  that waits for work. Any other call that does ends the work, and not the process. Here the whole process ends, and
  `join` starts another.
- A TLS handshake that breaks off or takes too long, as in a network that is cut, and an answer 500, as of a SuperLink
  whose disk is full, are taken for what never passes: Flower gives up. Here it tries again, unless it is a certificate
  that does not fit.
- An answer is the one to the question in hand (`fedpp.flower.message_in_hand`).
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import httpx
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
)
from flwr.proto.node_pb2 import Node as FlowerNode
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.start_client_internal import _pull_and_store_message, _push_messages

from fedpp.errors import FederationError
from fedpp.files import lock_folder
from fedpp.flower.message_in_hand import one_at_a_time

from .node_identity import PUBLIC_KEY, Node, here

NOTICE_SECONDS = 5.0  # in which who waits for a lost answer asks SuperLink for it, and is told
POLL_SECONDS = 5.0
WAIT_SECONDS = 2.5 * HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL  # SuperLink forgets a node in 60 s
ORPHAN_SECONDS = 20.0  # for a SuperNode whose `join` was killed to end


class _Patient:
    """Makes what may pass an error that Flower tries again after: it gives up on each whose text names TLS."""

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Pass a call on."""
        try:
            answer = call_next(context)
        except httpx.TransportError as error:
            if "certificate" in str(error).lower():
                raise
            raise type(error)("no connection") from error
        if answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            answer.close()
            raise httpx.RemoteProtocolError("no answer: the coordinator failed")
        return answer


class _Client(FleetHttpClient):
    """Flower's, whose first call waits where that helps."""

    identity: Path
    hopeless: Path  # file for the reason why no further try can help

    def __init__(
        self, base_url: str, *, interceptors: Sequence[ProtobufClientInterceptor] = (), **settings: Any
    ) -> None:
        super().__init__(base_url, interceptors=[_Patient(), *interceptors], **settings)

    def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802  Flower's name
        """Let SuperLink count this node as online."""
        before, running = Node.load(self.identity), here(self.identity)
        if before is not None and before.running == running:
            self._replace(before)
        deadline, noted = time.monotonic() + WAIT_SECONDS, False
        while True:
            try:
                response = super().ActivateNode(request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    self._give_up(
                        "the coordinator refuses this node's signature: set this machine's clock (it may be at most "
                        "5 s ahead of the coordinator's)"
                    )
                if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
                    raise
                if before is None or not self._is_enrolled(before):
                    self._give_up(
                        f"this node is not enrolled: give {self.identity / PUBLIC_KEY} to the coordinator for `python "
                        "-m coordinator enrol`; if it is enrolled, another process uses a copy of this identity"
                    )
                if time.monotonic() > deadline:
                    self._give_up(
                        "another process uses this node's identity, on another machine or in a copy of its folder: "
                        "end it, or give each site an identity of its own"
                    )
            else:
                Node(response.node_id, running).save(self.identity)
                return response
            if not noted:
                _note(
                    "the coordinator still counts this node as online, as it does for a minute after a crash: waiting"
                )
                noted = True
            time.sleep(POLL_SECONDS)

    def DeactivateNode(self, request: DeactivateNodeRequest) -> DeactivateNodeResponse:  # noqa: N802  Flower's name
        """Let SuperLink count this node as offline, and remember that it does."""
        response = super().DeactivateNode(request)
        Node(request.node_id).save(self.identity)
        return response

    def _replace(self, before: Node) -> None:
        """Tell SuperLink that a killed process of this identity is gone."""
        try:
            self.DeactivateNode(DeactivateNodeRequest(node_id=before.number))
        except httpx.HTTPStatusError:  # it was gone already, or is not enrolled any more
            return
        _note(f"this site's SuperNode was killed: joining again in {NOTICE_SECONDS:.0f} s")
        time.sleep(NOTICE_SECONDS)

    def _is_enrolled(self, before: Node) -> bool:
        """Tell whether SuperLink knows this key as the node that it was: asked for a run, it looks at that first."""
        try:
            self.GetRun(GetRunRequest(node=FlowerNode(node_id=before.number), run_id=0))
        except httpx.HTTPStatusError as error:
            return error.response.status_code != httpx.codes.UNAUTHORIZED
        return True

    def _give_up(self, reason: str) -> NoReturn:
        self.hopeless.write_text(reason)
        raise FederationError(reason)  # for Flower to end on


def main() -> int:
    """Run `flower-supernode` with the arguments after `--`; return the exit status."""
    own, flower = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    parser = argparse.ArgumentParser(prog="node", description=__doc__.split("\n")[0])
    for name in ("identity", "hopeless"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args(own)
    _Client.identity, _Client.hopeless = options.identity, options.hopeless
    if _locked(options.identity / "flwr") is None:
        options.hopeless.write_text("a SuperNode that an earlier `fedpp-site join` started still runs: end it first")
        return 1
    fleet_http_connection.FleetHttpClient = _Client  # type: ignore[attr-defined]
    pull, push = one_at_a_time(_pull_and_store_message, _push_messages)
    start_client_internal._pull_and_store_message = pull  # noqa: SLF001  Flower's
    start_client_internal._push_messages = push  # noqa: SLF001
    threading.excepthook = _end
    sys.argv = flower
    flower_supernode()
    _restart("gave up")  # with threads left that would keep the process
    return 1


def _locked(folder: Path) -> int | None:
    """Return a descriptor that is held as long as this process lives, or nothing if another one does not end."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (lock := lock_folder(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return lock


def _end(failed: threading.ExceptHookArgs) -> None:
    error = " ".join(f"{failed.exc_type.__name__}: {failed.exc_value}".split())[:300]
    _restart(f"lost one of its threads: {error}")


def _restart(reason: str) -> None:
    """End the process as a signal would, for `join` to start another."""
    _note(f"the SuperNode {reason}")
    os.kill(os.getpid(), signal.SIGINT)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
