"""The client by which the executor and the launchers speak to the SuperNode, on loopback."""

from typing import Any

from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient


def runtime_client(address: str, component: str, authentication: Any) -> RuntimeHttpClient:
    """Return a client of a SuperNode's runtime at HOST:PORT, as one of Flower's components, with its interceptor."""
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # on loopback
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name=component), authentication],
        retry_invoker=make_simple_http_retry_invoker(),
    )
