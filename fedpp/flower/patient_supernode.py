"""Patient SuperNode: Flower's SuperNode, patched to rejoin after crashes and to report when a retry cannot help.

Differences from `flower-supernode`, each still there in Flower 1.42:
- SuperLink counts a killed node as online for up to a minute and refuses it for so long. Here the next process of the
  same identity on the same machine first reports its predecessor as offline; SuperLink then fails the requests that
  the predecessor had, at once.
- SuperLink gives one error for "not enrolled" and "online already". Here the node number, kept from the first
  activation on, tells them apart: "online already" is waited for.
- An unexpected reply to a heartbeat ends the heartbeat thread only, and SuperLink then counts the waiting node as lost.
  An unexpected reply to another call ends the worker loop, and not the process. Here the whole process ends, and
  `join` starts another.
- Flower gives up after a TLS handshake that breaks off or times out (a cut network) and after status 500 (a SuperLink
  whose disk is full). Here both are retried, but not a certificate that does not verify.
- A reply belongs to the request in hand, and after it the next request is asked for soon (`message_in_hand`).

Needed until: SuperLink lets a restarted node replace itself and names its reason for a refusal, the heartbeat thread
survives unexpected replies, and the retries cover broken handshakes and status 500.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

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
from fedpp.texts import printable

from .message_in_hand import one_at_a_time, soon_again
from .node_record import NodeRecord, place_of

NOTICE_SECONDS = 5.0  # for the coordinator to query SuperLink and see the predecessor's requests fail
POLL_SECONDS = 5.0
WAIT_SECONDS = 2.5 * HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL  # SuperLink forgets a node in 60 s


class _RetryableErrors:
    """Interceptor that turns passing failures into errors which Flower retries; it gives up on any text with "TLS"."""

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Pass a call on."""
        try:
            response = call_next(context)
        except httpx.TransportError as error:
            if "certificate" in str(error).lower():
                raise
            raise type(error)("no connection") from error
        if response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            response.close()
            raise httpx.RemoteProtocolError("no reply: the coordinator failed")
        return response


class RejoiningClient(FleetHttpClient):
    """Flower's client of SuperLink, whose first call waits while waiting can help."""

    identity: Path
    public_key: Path
    coordinator: str  # as the site knows it
    hopeless: Path  # file for the reason why no further try can help
    notes: TextIO = sys.stderr  # of our notes, beside Flower's messages on stderr

    def __init__(
        self, base_url: str, *, interceptors: Sequence[ProtobufClientInterceptor] = (), **settings: Any
    ) -> None:
        super().__init__(base_url, interceptors=[_RetryableErrors(), *interceptors], **settings)

    def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802  Flower's name
        """Activate this node, so that SuperLink counts it as online."""
        before, running = NodeRecord.load(self.identity), place_of(self.identity)
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
                        f"this node is not enrolled: give {self.public_key} to the coordinator for `python "
                        "-m coordinator enrol`; if it is enrolled, another process uses a copy of this identity"
                    )
                if time.monotonic() > deadline:
                    self._give_up(
                        "another process uses this node's identity, on another machine or in a copy of its folder: "
                        "end it, or give each site an identity of its own"
                    )
            else:
                NodeRecord(response.node_id, running, self.coordinator).save(self.identity)
                _note(f"joined as node {response.node_id}")
                return response
            if not noted:
                _note(
                    "the coordinator still counts this node as online, as it does for a minute after a crash: waiting"
                )
                noted = True
            time.sleep(POLL_SECONDS)

    def DeactivateNode(self, request: DeactivateNodeRequest) -> DeactivateNodeResponse:  # noqa: N802  Flower's name
        """Deactivate this node, so that SuperLink counts it as offline, and record that."""
        response = super().DeactivateNode(request)
        NodeRecord(request.node_id, coordinator=self.coordinator).save(self.identity)
        return response

    def _replace(self, before: NodeRecord) -> None:
        """Report a killed process of this identity as offline."""
        try:
            self.DeactivateNode(DeactivateNodeRequest(node_id=before.number))
        except httpx.HTTPStatusError:  # offline already, or not enrolled any more
            return
        _note(f"this site's SuperNode was killed: joining again in {NOTICE_SECONDS:.0f} s")
        time.sleep(NOTICE_SECONDS)

    def _is_enrolled(self, before: NodeRecord) -> bool:
        """Tell whether SuperLink has this key under the recorded number, which it checks before it looks up a run."""
        try:
            self.GetRun(GetRunRequest(node=FlowerNode(node_id=before.number), run_id=0))
        except httpx.HTTPStatusError as error:
            return error.response.status_code != httpx.codes.UNAUTHORIZED
        return True

    def _give_up(self, reason: str) -> NoReturn:
        self.hopeless.write_text(reason)
        raise FederationError(reason)  # for Flower to end on


def run(identity: Path, public_key: Path, coordinator: str, hopeless: Path, arguments: Sequence[str]) -> None:
    """Run `flower-supernode` with its path and arguments, patched, in this process; it ends by a signal to itself.

    `coordinator` is recorded with the node's number. `hopeless` is written if no further try can help, with the reason.
    """
    RejoiningClient.identity, RejoiningClient.public_key, RejoiningClient.hopeless = identity, public_key, hopeless
    RejoiningClient.coordinator = coordinator
    fleet_http_connection.FleetHttpClient = RejoiningClient  # type: ignore[attr-defined]
    pull, push = soon_again(*one_at_a_time(_pull_and_store_message, _push_messages))
    start_client_internal._pull_and_store_message = pull  # noqa: SLF001  Flower's
    start_client_internal._push_messages = push  # noqa: SLF001
    threading.excepthook = _end
    sys.argv = list(arguments)
    flower_supernode()
    _restart("gave up")  # with threads left that would keep the process


def _end(failed: threading.ExceptHookArgs) -> None:
    error = " ".join(f"{failed.exc_type.__name__}: {failed.exc_value}".split())[:300]
    _restart(f"lost one of its threads: {error}")


def _restart(reason: str) -> None:
    """End the process as a signal would, for `join` to start another."""
    _note(f"the SuperNode {reason}")
    os.kill(os.getpid(), signal.SIGINT)


def _note(text: str) -> None:
    for stream in {RejoiningClient.notes, sys.stderr}:
        print(f"note: {printable(text)}", file=stream, flush=True)
