"""Guard against callers that block others: idle and overlong calls are cancelled, and calls of a method limited.

gRPC gives each call a thread for as long as it lasts, also a call that never sends anything. So each method is served
as a stream here, whose messages are watched one by one; on the wire that is the same.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

IDLE_SECONDS = 20.0  # longest wait for a caller to send its next message, or to take ours
MAX_SECONDS = 600.0  # of a call
MAX_CALLS_PER_METHOD = 64  # at a time: a flood of one method leaves threads for the others
MAX_CALLS = 640  # more than of one method: a flood of one leaves threads for the other 21


class _Watched:
    """One running call, and the time since when it waits for its caller."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.context, self.started = context, time.monotonic()
        self.waiting_since: float | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self.waiting_since = time.monotonic()
        try:
            yield
        finally:
            self.waiting_since = None

    def overdue(self, idle: float) -> bool:
        now, since = time.monotonic(), self.waiting_since
        return (since is not None and now - since > idle) or now - self.started > MAX_SECONDS


if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]


class CallGuard(grpc.ServerInterceptor):
    """Interceptor that bounds every method of a server; a thread watches the running calls until `close`."""

    def __init__(self, idle_seconds: float) -> None:
        self._idle, self._lock, self._closed = idle_seconds, threading.Lock(), threading.Event()
        self._running: set[_Watched] = set()
        self._of_method: Counter[str] = Counter()
        threading.Thread(target=self._watch, name="call guard", daemon=True).start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Handler | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return the method's handler as one of a stream."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method: str = handler_call_details.method
        codec = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            behaviour: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

            def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
                with self._guarding(method, context) as call:
                    for response in behaviour(_argument(handler, requests, call), context):
                        with call.waiting():
                            yield response

            return grpc.stream_stream_rpc_method_handler(stream, *codec)
        behaviour_of_one: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary

        def reply(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with self._guarding(method, context) as call:
                return behaviour_of_one(_argument(handler, requests, call), context)

        return grpc.stream_unary_rpc_method_handler(reply, *codec)

    @contextmanager
    def _guarding(self, method: str, context: grpc.ServicerContext) -> Iterator[_Watched]:
        call = _Watched(context)
        with self._lock:
            full = self._of_method[method] >= MAX_CALLS_PER_METHOD
            if not full:
                self._of_method[method] += 1
                self._running.add(call)
        if full:
            name = method.rpartition("/")[2]
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_CALLS_PER_METHOD} calls of {name} run: try again later"
            )
        try:
            yield call
        finally:
            with self._lock:
                self._of_method[method] -= 1
                self._running.discard(call)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._idle / 4)):
            with self._lock:
                overdue = [call for call in self._running if call.overdue(self._idle)]
            for call in overdue:
                call.context.cancel()


def _argument(handler: "Handler", requests: Iterator[Any], call: _Watched) -> Any:
    """Return the method's argument: the stream of messages, or its only message."""
    messages = _messages(requests, call)
    if handler.request_streaming:
        return messages
    for message in messages:
        return message
    return call.context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call came without its message")


def _messages(requests: Iterator[Any], call: _Watched) -> Iterator[Any]:
    while True:
        with call.waiting():
            try:
                message = next(requests)
            except StopIteration:
                return
        yield message
