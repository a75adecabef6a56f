"""Task runtime: the SuperNode's loopback API, where the executor acquires tasks and a launcher takes and answers one.

Flower's own programs for this (`flower-superexec`, `flwr-clientapp`) install and run any bundle that the coordinator
names; ours use the same private functions and check the site's policy first.

Needed until: Flower asks a site's own code before it unpacks a bundle, or makes these functions public.
"""

from collections.abc import Callable
from typing import Any

from flwr.clientapp.client_app import LoadClientAppError
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.object_ref import load_app
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.utils import disable_process_dumping
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

__all__ = [
    "LoadClientAppError",
    "acquirer",
    "disable_process_dumping",
    "load_app",
    "pull_task_input",
    "push_message",
    "push_task_output",
    "start_heartbeat",
    "start_parent_process_monitor",
    "task_client",
]

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


def acquirer(address: str, secret: bytes) -> Callable[[], str]:
    """Return a function that acquires the next task at HOST:PORT and returns its token, empty if there is none.

    An AgentApp is a bundle too, so its tasks are acquired, and subject to the site's policy, like a ClientApp's.
    """
    authentication = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({_ACQUIRE}))
    client = _client(address, "SuperExec", authentication)
    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP, TaskType.AGENT_APP])

    def acquire() -> str:
        reply = client.AcquireTask(request)
        return str(reply.token) if reply.HasField("task") else ""

    return acquire


def task_client(address: str, token: str) -> RuntimeHttpClient:
    """Return a client at HOST:PORT for the task of this token."""
    return _client(address, "flwr-clientapp", RuntimeTokenHttpInterceptor(token))


def start_heartbeat(client: RuntimeHttpClient) -> HeartbeatSender:
    """Start the thread that reports to the SuperNode that this process lives; a failed heartbeat is retried."""
    send = make_task_heartbeat_fn_http(client)

    def beat() -> bool:
        try:
            return send()
        except Exception:  # noqa: BLE001  it would end Flower's thread with a traceback
            return False

    sender = HeartbeatSender(beat)
    sender.start()
    return sender


def _client(address: str, component: str, authentication: Any) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # on loopback
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name=component), authentication],
        retry_invoker=make_simple_http_retry_invoker(),
    )
